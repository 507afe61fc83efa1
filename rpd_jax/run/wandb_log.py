"""The metrics of a run for Weights & Biases as well, where `log.wandb` asks for it."""

import importlib.util
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from rpd_jax.errors import UserError
from rpd_jax.run.whole_file import write_whole

ID_FILE = "wandb_id"


def check_installed() -> None:
    """Raises UserError if the package is missing."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError("log.wandb is on, but wandb is not installed: pip install 'rpd-jax[wandb]', or leave it off.")


def run_id(workdir: Path) -> str:
    """The name of a run directory's W&B run: drawn once, and kept there, so that one begun anew has another."""
    path = workdir / ID_FILE
    kept = path.read_text(errors="replace").strip() if path.exists() else ""
    if not re.fullmatch("[0-9a-f]{16}", kept):
        kept = secrets.token_hex(8)
        write_whole(path, kept + "\n")
    return kept


class WandbLog:
    """One W&B run per run directory; a run that is started again continues the same one."""

    def __init__(self, workdir: Path, settings: Mapping):
        """Starts it; `settings` are shown beside the run. Environment variables (WANDB_MODE, ...) choose the rest.

        Raises:
            UserError: W&B is not installed or refuses.
        """
        check_installed()
        import wandb

        try:
            self._run = wandb.init(
                project="rpd-jax",
                name=workdir.name,
                id=run_id(workdir),
                resume="allow",
                dir=workdir,
                config=dict(settings),
                settings=wandb.Settings(init_timeout=60, finish_timeout=300, console="off"),
            )
        except wandb.errors.Error as error:
            sentence = " ".join(str(error).split())
            mend = "run wandb login, set WANDB_MODE=offline, or leave log.wandb off"
            raise UserError(f"W&B did not start ({sentence}): {mend}.") from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars, measured after `step` environment steps."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Sends what is left; where that takes more than five minutes it stays on disk, for `wandb sync`."""
        self._run.finish()
