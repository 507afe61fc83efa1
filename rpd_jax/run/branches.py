"""A branch of a pytree that Orbax saved, read without the rest of it."""

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

# What Orbax, and the code behind it, raise where a checkpoint is damaged.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, NotImplementedError)


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
        restored = checkpointer.restore(path, args=arguments)
    finally:
        logger.setLevel(level)
        checkpointer.close()
    for name in names:
        restored = restored[name]
    return restored
