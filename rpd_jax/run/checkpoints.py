"""The whole training state on disk, through Orbax: whole or not at all, the newest few and the best few kept."""

import contextlib
import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from rpd_jax.errors import UserError, no_room
from rpd_jax.run import processes
from rpd_jax.run.branches import DAMAGE, late_traces_dropped, read_branch, reading
from rpd_jax.run.row_files import RowFiles, Rows, Span, check_complete

# The folder of the rows of all checkpoints, beside them.
ROWS = "replay"
_SET_ASIDE = ".replaced"  # what the folder of a checkpoint is called while another takes its place


class CheckpointError(UserError):
    """A checkpoint could not be written."""


class Checkpoints:
    """Checkpoints of one run, one per iteration number.

    Orbax writes a checkpoint under a temporary name and renames it when it is complete, so that one cut short by a kill
    or a full disk is never mistaken for a good one. Rows that a checkpoint needs (the replay's) are written before it,
    those alone that the one before lacks, and removed after it, when no checkpoint needs them any more.
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
        self._bring_back()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies,
            best_fn=_success_of if keep_best else None,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)
        self._row_files = RowFiles(self._directory / ROWS)
        self._spans: list[Span] = []  # of the rows of the newest checkpoint, where they are this run's

    @property
    def latest(self) -> int | None:
        """The newest complete checkpoint's iteration, or None."""
        return self._manager.latest_step()

    @property
    def saved(self) -> list[int]:
        """The iterations that there are complete checkpoints of."""
        return list(self._manager.all_steps())

    def save(
        self,
        iteration: int,
        state: Any,
        progress: dict[str, Any],
        success: float | None = None,
        rows: Rows | None = None,
    ) -> None:
        """Writes checkpoint number `iteration`.

        Args:
            iteration: that of the newest checkpoint, which is replaced, or a higher one.
            state: a pytree of arrays.
            progress: plain JSON values.
            success: of the student at this iteration, if it was measured.
            rows: what it holds besides, if anything. Where the checkpoint before is this process's own, or `read_rows`
                was called, only those are written that came since.

        Raises:
            CheckpointError: the disk is full or cannot be written; earlier checkpoints are untouched.
        """
        metrics = None if success is None else {"success": success}
        try:
            with _silent_orbax():
                spans = []
                if rows is not None:
                    spans = self._row_files.add(iteration, rows, self._spans, self._check_room)
                    progress = progress | {"spans": spans}
                self._check_room(state)
                items = {"state": ocp.args.StandardSave(state), self._progress_item: ocp.args.JsonSave(progress)}
                with self._replaced(iteration):
                    self._manager.save(iteration, args=ocp.args.Composite(**items), metrics=metrics, force=True)
                    self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            cause = no_room(error) or (error.strerror if isinstance(error, OSError) else None)
            if cause is None:
                raise
            shutil.rmtree(f"{self._folder(iteration)}.orbax-checkpoint-tmp", ignore_errors=True)
            self._remove_unneeded_rows()
            raise CheckpointError(
                f"Could not save checkpoint {iteration} in {self._directory} ({cause}): make room on the disk and run "
                f"the same command again; it {self.continues}."
            ) from error
        self._spans = spans
        self._remove_unneeded_rows()

    @contextlib.contextmanager
    def _replaced(self, iteration: int) -> Iterator[None]:
        """Sets a checkpoint of this iteration aside until the `with` block has written another: one is always whole."""
        if self.latest != iteration:
            yield
            return
        if processes.is_first():
            self._folder(iteration).rename(f"{self._folder(iteration)}{_SET_ASIDE}")
        processes.wait_for_all()
        self._manager.reload()
        try:
            yield
        finally:
            self._bring_back()
            self._manager.reload()

    def _bring_back(self) -> None:
        """Gives checkpoints that were set aside their place again, unless others have taken it."""
        if processes.is_first():
            for aside in self._directory.glob(f"*{_SET_ASIDE}"):
                if aside.with_suffix("").exists():
                    shutil.rmtree(aside)
                else:
                    aside.rename(aside.with_suffix(""))
        processes.wait_for_all()

    def _folder(self, iteration: int) -> Path:
        return self._directory / str(iteration)

    @property
    def continues(self) -> str:
        """What the same command does after a run was cut short, as the end of a sentence about it."""
        return "starts from the beginning" if self.latest is None else f"continues from checkpoint {self.latest}"

    def progress(self) -> dict[str, Any] | None:
        """The progress of the newest checkpoint, or None if there is none; raises UserError as `restore`."""
        if self.latest is None:
            return None
        with self._told_if_damaged():
            return self._read_progress(self.latest)

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
        with self._told_if_damaged(), reading():
            restored = self._manager.restore(iteration, args=ocp.args.Composite(**items))
        return iteration, restored["state"], restored[self._progress_item]

    def read_part(self, iteration: int, *names: str) -> Any:
        """One branch of the state in a checkpoint; see `read_part` below."""
        return read_part(self._folder(iteration) / "state", *names)

    def read_rows(
        self, first: int, end: int, sharding: jax.sharding.Sharding, put: Callable[[Span, Any], None]
    ) -> None:
        """Reads rows of the newest checkpoint, which the next one needs no longer write.

        Args:
            first: number of the oldest row.
            end: number of rows that came.
            sharding: of their arrays, as they were when they were saved.
            put: called with those of each file.

        Raises:
            UserError: they are damaged.
        """
        spans = spans_of(self.progress())
        with self._told_if_damaged(f", or {self._row_files.directory} to continue with an empty replay"):
            check_complete(spans, first, end)
            for span in spans:
                put(span, self._row_files.read(span, sharding=sharding))
        self._spans = spans

    @property
    def lacks_rows(self) -> bool:
        """True if the newest checkpoint needs rows and the folder of all rows is gone."""
        return bool(spans_of(self.progress() or {})) and not self._row_files.directory.exists()

    def _read_progress(self, iteration: int) -> dict[str, Any]:
        return _read_json(self._folder(iteration) / self._progress_item)

    @contextlib.contextmanager
    def _told_if_damaged(self, mend: str = "") -> Iterator[None]:
        """Turns what damage to the newest checkpoint raises inside the `with` block into one sentence."""
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(
                f"Checkpoint {self._directory / str(self.latest)} cannot be read ({_reason(error)}): "
                f"remove that folder to continue from the one before{mend}."
            ) from error

    def _remove_unneeded_rows(self) -> None:
        """Removes the rows that no checkpoint names; none if one of them cannot be asked."""
        if not processes.is_first() or not self._row_files.directory.exists():
            return
        with contextlib.suppress(*DAMAGE):
            needed = [spans_of(self._read_progress(iteration)) for iteration in self._manager.all_steps()]
            self._row_files.remove_all_but(span for spans in needed for span in spans)

    def _check_room(self, arrays: Any) -> None:
        """Raises OSError where arrays do not fit onto the disk: Orbax would leave threads that complain."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
        if shutil.disk_usage(self._directory).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._directory))

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
    try:
        return read_branch(path, names)
    except DAMAGE as error:
        raise unreadable(path.parent, error) from error


def spans_of(progress: dict[str, Any]) -> list[Span]:
    """Where the rows of a checkpoint with this progress are."""
    return [Span(*span) for span in progress.get("spans", ())]


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """The progress that a checkpoint folder of a training run holds; raises UserError where it cannot be read."""
    try:
        return _read_json(checkpoint / "progress")
    except DAMAGE as error:
        raise unreadable(checkpoint, error) from error


def unreadable(checkpoint: Path, error: Exception) -> UserError:
    """The sentence for a damaged checkpoint."""
    return UserError(f"Checkpoint {checkpoint} cannot be read ({_reason(error)}): name another one (--checkpoint).")


def _read_json(item: Path) -> dict[str, Any]:
    """What Orbax's JsonSave wrote, without the barriers of its JsonRestore: one process may read it alone."""
    content = json.loads((item / "metadata").read_bytes())
    if not isinstance(content, dict):
        raise ValueError("its progress is not one")
    return content


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def _silent_orbax() -> Iterator[None]:
    """Where a save fails, Orbax tells so by an error, and by a stack trace for each array, from threads and futures.

    The traces are dropped; after a failure for good, since they still come when the process ends.
    """
    levels = {name: logging.getLogger(name).level for name in ("absl", "asyncio")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with late_traces_dropped():
        yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _success_of(metrics: dict[str, float]) -> float:
    return metrics["success"]
