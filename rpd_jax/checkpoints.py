"""The whole training state on disk, through Orbax: whole or not at all, the last few kept."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from rpd_jax.errors import UserError


class Checkpoints:
    """Checkpoints of one run, one per iteration number.

    Orbax writes a checkpoint under a temporary name and renames it when it is complete, so that one cut short by a kill
    or a full disk is never mistaken for a good one.
    """

    def __init__(self, directory: str | Path, keep: int):
        """Opens `directory` (made if missing), of which the newest `keep` checkpoints are kept."""
        self._directory = Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    @property
    def latest(self) -> int | None:
        """The newest complete checkpoint's iteration, or None."""
        return self._manager.latest_step()

    def save(self, iteration: int, state: Any, progress: dict[str, Any]) -> None:
        """Writes `state` (a pytree of arrays) and `progress` (plain JSON values) as checkpoint number `iteration`.

        Raises:
            UserError: the disk is full or cannot be written; earlier checkpoints are untouched.
        """
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        try:
            self._manager.save(iteration, args=arguments, force=True)
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and "No space" not in str(error) and "ENOSPC" not in str(error):
                raise
            raise UserError(
                f"Could not save checkpoint {iteration} in {self._directory} ({error}): make room on the disk and run "
                f"the same command again; it continues from checkpoint {self.latest}."
            ) from error

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Returns (iteration, state, progress) of the newest checkpoint, or None if there is none.

        Args:
            like: a pytree of arrays with the structure, shapes and dtypes to expect.

        Raises:
            UserError: the checkpoint does not fit `like` or is damaged.
        """
        iteration = self.latest
        if iteration is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(iteration, args=arguments)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"Checkpoint {self._directory / str(iteration)} cannot be read ({str(error).splitlines()[0]}): "
                "remove that folder to continue from the one before."
            ) from error
        return iteration, restored["state"], restored["progress"]

    def close(self) -> None:
        """Releases Orbax's threads."""
        self._manager.close()
