"""The whole training state on disk, through Orbax: whole or not at all, the newest few and the best few kept."""

import contextlib
import errno
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from rpd_jax.errors import UserError, no_room

# What Orbax, and the code behind it, raise where a checkpoint is damaged.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, NotImplementedError)


class CheckpointError(UserError):
    """A checkpoint could not be written."""


class Checkpoints:
    """Checkpoints of one run, one per iteration number.

    Orbax writes a checkpoint under a temporary name and renames it when it is complete, so that one cut short by a kill
    or a full disk is never mistaken for a good one.
    """

    def __init__(self, directory: str | Path, keep: int, keep_best: int = 0, progress_item: str = "progress"):
        """Opens `directory` (made if missing); what a killed process left half-written there is removed.

        Args:
            directory: of one run.
            keep: checkpoints to keep, the newest ones.
            keep_best: further ones to keep: those saved with the highest success.
            progress_item: what the progress is called inside a checkpoint.
        """
        self._progress_item = progress_item
        self._directory = Path(directory).absolute()
        policies = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(keep),
                checkpoint_managers.BestN(
                    get_metric_fn=_success_of, n=keep_best, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies,
            best_fn=_success_of if keep_best else None,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    @property
    def latest(self) -> int | None:
        """The newest complete checkpoint's iteration, or None."""
        return self._manager.latest_step()

    def save(self, iteration: int, state: Any, progress: dict[str, Any], success: float | None = None) -> None:
        """Writes checkpoint number `iteration`.

        Args:
            iteration: higher than that of every checkpoint there is.
            state: a pytree of arrays.
            progress: plain JSON values.
            success: of the student at this iteration, if it was measured.

        Raises:
            CheckpointError: the disk is full or cannot be written; earlier checkpoints are untouched.
        """
        metrics = None if success is None else {"success": success}
        items = {"state": ocp.args.StandardSave(state), self._progress_item: ocp.args.JsonSave(progress)}
        try:
            _check_room(self._directory, state)
            with _silent_orbax():
                self._manager.save(iteration, args=ocp.args.Composite(**items), metrics=metrics, force=True)
                self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            cause = no_room(error) or (error.strerror if isinstance(error, OSError) else None)
            if cause is None:
                raise
            shutil.rmtree(f"{self._directory / str(iteration)}.orbax-checkpoint-tmp", ignore_errors=True)
            raise CheckpointError(
                f"Could not save checkpoint {iteration} in {self._directory} ({cause}): make room on the disk and run "
                f"the same command again; it {self.continues}."
            ) from error

    @property
    def continues(self) -> str:
        """What the same command does after a run was cut short, as the end of a sentence about it."""
        return "starts from the beginning" if self.latest is None else f"continues from checkpoint {self.latest}"

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
        items = {"state": ocp.args.StandardRestore(abstract), self._progress_item: ocp.args.JsonRestore()}
        try:
            restored = self._manager.restore(iteration, args=ocp.args.Composite(**items))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"Checkpoint {self._directory / str(iteration)} cannot be read ({str(error).splitlines()[0]}): "
                "remove that folder to continue from the one before."
            ) from error
        return iteration, restored["state"], restored[self._progress_item]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception_info) -> None:
        self.close()

    def close(self) -> None:
        """Releases Orbax's threads."""
        self._manager.close()


def newest_checkpoint(directory: Path) -> Path:
    """The folder of the newest checkpoint in `directory`, which another process may be writing to.

    Raises:
        UserError: there is none.
    """
    saved = [path for path in directory.glob("*") if path.name.isdigit()]
    if not saved:
        raise UserError(f"{directory} holds no checkpoint: wait until the run has saved one (checkpoint.every).")
    return max(saved, key=lambda path: int(path.name))


def read_part(path: Path, *names: str) -> Any:
    """One branch of a saved state, on this process's first device; nothing else of it is read.

    Args:
        path: the folder `state` of a checkpoint.
        names: of the keys that lead to the branch.

    Raises:
        UserError: it cannot be read, or has no such branch.
    """
    checkpointer = ocp.PyTreeCheckpointer()
    logger = logging.getLogger("absl")  # Orbax warns of a file that only checkpoints of a single tree have
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        branch = checkpointer.metadata(path).item_metadata.tree
        for name in names:
            branch = branch[name]
        wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), branch)
        for name in reversed(names):
            wanted = {name: wanted}
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        placement = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=sharding), wanted)
        arguments = ocp.args.PyTreeRestore(item=wanted, restore_args=placement, partial_restore=True)
        restored = checkpointer.restore(path, args=arguments)
    except DAMAGE as error:
        raise unreadable(path.parent, error) from error
    finally:
        logger.setLevel(level)
        checkpointer.close()
    for name in names:
        restored = restored[name]
    return restored


def unreadable(checkpoint: Path, error: Exception) -> UserError:
    """The sentence for a damaged checkpoint."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return UserError(f"Checkpoint {checkpoint} cannot be read ({reason}): name another one (--checkpoint).")


def _check_room(directory: Path, state: Any) -> None:
    """Raises OSError where the arrays of `state` do not fit onto the disk: Orbax would leave threads that complain."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    if shutil.disk_usage(directory).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


@contextlib.contextmanager
def _silent_orbax() -> Iterator[None]:
    """Where a save fails, Orbax tells so by an error, and by a stack trace for each array, from threads and futures.

    The traces are dropped; after a failure for good, since they still come when the process ends.
    """
    levels = {name: logging.getLogger(name).level for name in ("absl", "asyncio")}
    hook = sys.unraisablehook
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda unraisable: (
        None if "Event loop is closed" in str(unraisable.exc_value) else hook(unraisable)
    )
    yield
    sys.unraisablehook = hook
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _success_of(metrics: dict[str, float]) -> float:
    return metrics["success"]
