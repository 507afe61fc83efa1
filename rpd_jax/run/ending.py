"""How a run ends before its time: its state is saved, and the user is told how to go on."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from rpd_jax.errors import UserError, no_room, out_of_memory
from rpd_jax.run import processes
from rpd_jax.run.checkpoints import CheckpointError, Checkpoints
from rpd_jax.run.metrics import RunRemoved
from rpd_jax.run.stop import Interrupted

# What another program said of its own failure, a policy server's traceback.
_DETAILS = "error.txt"


class Diverged(UserError):
    """The numbers of a run are no longer finite: its state is not worth saving, and a longer run would not mend it."""

    status = 1


@contextlib.contextmanager
def told_if_no_room(workdir: Path) -> Iterator[None]:
    """Turns what a full disk raises inside the `with` block into one sentence; checkpoints are whole in any case."""
    try:
        yield
    except OSError as error:
        cause = no_room(error)
        if cause is None:
            raise
        raise UserError(
            f"Could not write in {workdir} ({cause}): make room on the disk and run the same command again."
        ) from error


@contextlib.contextmanager
def told_if_no_memory(doing: str, lower: str) -> Iterator[None]:
    """Turns what JAX raises inside the `with` block (or a function that this decorates) where memory ran out.

    Args:
        doing: what needs the memory, as in "while labelling".
        lower: the settings that it grows with.

    Raises:
        UserError: instead of JAX's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"Memory ran out {doing} ({cause}): close what else uses it and run the same command again, or lower "
            f"{lower} in a run with another --workdir."
        ) from error


@contextlib.contextmanager
def saved_at_an_early_end(
    checkpoints: Checkpoints,
    done: Callable[[], int],
    save: Callable[[], None],
    *,
    unit: str,
    workdir: Path,
    say: Callable[[str], None],
) -> Iterator[None]:
    """Saves the state where a stop request or an error of the user's ends the `with` block.

    Args:
        checkpoints: of the run.
        done: returns the number that its checkpoint would have.
        save: saves it.
        unit: what that number counts.
        workdir: the run's directory.
        say: called with the sentence that tells what was saved.

    Raises:
        UserError: also where the disk was full.
    """
    try:
        yield
    except (CheckpointError, Diverged, RunRemoved):
        raise
    except (Interrupted, UserError) as reason:
        if not processes.is_common(reason):
            raise  # the processes of a run save together or not at all
        if checkpoints.latest != done():
            save()
        cause = reason if isinstance(reason, Interrupted) else "Stopped by an error"
        if isinstance(reason, UserError) and reason.details:
            (workdir / _DETAILS).write_text(reason.details, encoding="utf-8")
            say(f"All that was said about the error is in {workdir / _DETAILS}.")
        say(f"{cause}: saved after {unit} {done()}; the same command continues.")
        raise
    except OSError as error:
        cause = no_room(error)
        if cause is None:
            raise
        raise UserError(
            f"Could not write in {workdir} ({cause}): make room on the disk and run the same command again; it "
            f"{checkpoints.continues}."
        ) from error
