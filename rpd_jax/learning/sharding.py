"""How a rollout lies on many devices: environments spread over the axis "data", everything else the same everywhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"
REPLICATED = PartitionSpec()


def make_mesh() -> Mesh | None:
    """A mesh over all devices of all processes, or None where there is only one device.

    Environments and replay must spread evenly over it, see `rpd_jax.settings.check_machine`.
    """
    devices = jax.devices()
    return Mesh(np.array(devices), (AXIS,)) if len(devices) > 1 else None


def rollout_specs(rollout: Any) -> Any:
    """The axis of each of a Rollout's arrays that the devices share: that of the environments."""
    specs = {name: PartitionSpec(None, AXIS) for name in rollout.__dataclass_fields__}
    specs |= {name: PartitionSpec(AXIS) for name in ("next_done", "next_value")}
    if rollout.teacher_actions is not None:
        before = rollout.teacher_actions.ndim - 3  # [..., T, N, A]
        specs["teacher_actions"] = PartitionSpec(*[None] * (before + 1), AXIS)
    return rollout.replace(**{name: spec for name, spec in specs.items() if getattr(rollout, name) is not None})


def replay_specs(replay: Any) -> Any:
    """Each device keeps a ring of its own; they fill at the same pace."""
    if replay is None:
        return None
    names = [name for name in ("frames", "states", "labels") if getattr(replay, name) is not None]
    return replay.replace(count=REPLICATED, **{name: PartitionSpec(AXIS) for name in names})


def shardings(mesh: Mesh, specs: Any) -> Any:
    """`specs` on `mesh`."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )


def spread(mesh: Mesh, tree: Any, specs: Any) -> Any:
    """Arrays of all processes together, of which `tree` holds this process's part; without a way through the host."""
    devices = mesh.local_devices

    def spread_array(array: jax.Array, sharding: NamedSharding) -> jax.Array:
        axis = list(sharding.spec).index(AXIS)
        parts = jnp.split(array, len(devices), axis=axis)
        shards = [jax.device_put(part, device) for part, device in zip(parts, devices, strict=True)]
        shape = list(array.shape)
        shape[axis] = parts[0].shape[axis] * mesh.size
        return jax.make_array_from_single_device_arrays(tuple(shape), sharding, shards)

    return jax.tree.map(spread_array, tree, shardings(mesh, specs))
