"""A branch of a pytree that Orbax saved, read without the rest of it."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from rpd_jax.errors import out_of_memory

# What Orbax, and the code behind it, raise where a checkpoint is damaged.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, NotImplementedError)
# How its error begins where the data of an array cannot be read.
_UNREADABLE = "Encountered error while reading array"


@contextlib.contextmanager
def late_traces_dropped() -> Iterator[None]:
    """Drops the stack traces of coroutines that Orbax leaves where the `with` block fails.

    After a failure for good: some come when the process ends.
    """
    hook, logger = sys.unraisablehook, logging.getLogger("asyncio")
    sys.unraisablehook = lambda unraisable: None if _is_left_behind(unraisable.exc_value) else hook(unraisable)
    logger.addFilter(_is_no_late_trace)
    yield
    logger.removeFilter(_is_no_late_trace)
    sys.unraisablehook = hook


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Raises the cause where Orbax says by a bare Exception that it cannot read an array in the `with` block.

    It says so of one array, and of others by `late_traces_dropped`.

    Raises:
        ValueError: a file of the array is damaged or missing.
        MemoryError: there was none for it.
    """
    with late_traces_dropped():
        try:
            yield
        except Exception as error:
            cause = error.__cause__
            if type(error) is not Exception or not isinstance(cause, Exception):
                raise
            raise (MemoryError if out_of_memory(cause) else ValueError)(str(cause)) from error


def _is_no_late_trace(record: logging.LogRecord) -> bool:
    """False for what asyncio says of an exception of one array after another one's was raised."""
    return not record.getMessage().partition("\n")[0].endswith("exception was never retrieved")


def _is_left_behind(error: BaseException | None) -> bool:
    return str(error).startswith((_UNREADABLE, "Event loop is closed"))


def read_branch(path: Path, names: tuple[str, ...] = (), sharding: jax.sharding.Sharding | None = None) -> Any:
    """One branch of a saved pytree of arrays.

    Args:
        path: the folder that holds it.
        names: of the keys that lead to the branch; none: all of it.
        sharding: of its arrays; None: they come to this process's first device.

    Raises:
        Exception: one of DAMAGE; it cannot be read, or has no such branch.
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
        sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        placement = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=sharding), wanted)
        arguments = ocp.args.PyTreeRestore(item=wanted, restore_args=placement, partial_restore=True)
        with reading():
            restored = checkpointer.restore(path, args=arguments)
    finally:
        logger.setLevel(level)
        checkpointer.close()
    for name in names:
        restored = restored[name]
    return restored
