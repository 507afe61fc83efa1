"""The metrics of a run for Weights & Biases as well, where `log.wandb` asks for it."""

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from rpd_jax.errors import UserError


def check_installed() -> None:
    """Raises UserError if the package is missing."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError("log.wandb is on, but wandb is not installed: pip install 'rpd-jax[wandb]', or leave it off.")


class WandbLog:
    """One W&B run per run directory; a run that is started again continues the same one."""

    def __init__(self, workdir: Path, settings: Mapping):
        """Starts it; `settings` are shown beside the run. Environment variables (WANDB_MODE, ...) choose the rest.

        Raises:
            UserError: W&B is not installed or refuses.
        """
        check_installed()
        import wandb

        identity = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16]
        try:
            self._run = wandb.init(
                project="rpd-jax",
                name=workdir.name,
                id=identity,
                resume="allow",
                dir=workdir,
                config=dict(settings),
                settings=wandb.Settings(init_timeout=60, console="off"),
            )
        except wandb.errors.Error as error:
            sentence = " ".join(str(error).split())
            mend = "run wandb login, set WANDB_MODE=offline, or leave log.wandb off"
            raise UserError(f"W&B did not start ({sentence}): {mend}.") from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars, measured after `step` environment steps."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()
