"""How a rollout lies on devices: environments spread over the axis "data", everything else the same everywhere."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rpd_jax.learning.rollout import AXES, Rollout

AXIS = "data"
REPLICATED = PartitionSpec()


def make_mesh() -> Mesh:
    """A mesh over all devices of all processes.

    Environments and replay must spread evenly over it, see `rpd_jax.settings.check_machine`.
    """
    return Mesh(np.array(jax.devices()), (AXIS,))


def one_device() -> Mesh:
    """A mesh of this process's first device."""
    return Mesh(np.array(jax.local_devices()[:1]), (AXIS,))


def axis_name(mesh: Mesh) -> str | None:
    """The axis along which the devices of a computation on the mesh talk to each other; None: there is one only."""
    return AXIS if mesh.size > 1 else None


# Within such a computation. XLA does not leave out a collective of one device, so they are left out here.


def device_key(key: jax.Array, axis: str | None) -> jax.Array:
    """The key of the device that asks; on one device it is `key` itself."""
    return key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis))


def mean_of_devices(tree: Any, axis: str | None) -> Any:
    """The mean over the devices of each array."""
    return tree if axis is None else jax.lax.pmean(tree, axis)


def max_of_devices(array: jax.Array, axis: str | None) -> jax.Array:
    """The greatest of the devices' values."""
    return array if axis is None else jax.lax.pmax(array, axis)


def of_all_devices(tree: Any, axis: str | None) -> Any:
    """The parts [B/D, ...] that D devices hold of arrays [B, ...], put together."""
    return tree if axis is None else jax.lax.all_gather(tree, axis, tiled=True)


def rollout_specs(rollout: Rollout) -> Rollout:
    """The axis of each of a Rollout's arrays that the devices share: that of the environments."""
    specs = {name: PartitionSpec(*(AXIS if axis == "N" else None for axis in axes)) for name, axes in AXES.items()}
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
    num_parts = mesh.size // mesh.local_mesh.size

    def spread_array(array: jax.Array, spec: PartitionSpec) -> jax.Array:
        local = jax.device_put(array, NamedSharding(mesh.local_mesh, spec))
        shape = [size * num_parts if axis == AXIS else size for size, axis in zip(array.shape, spec, strict=True)]
        shards = [shard.data for shard in local.addressable_shards]
        return jax.make_array_from_single_device_arrays(tuple(shape), NamedSharding(mesh, spec), shards)

    return jax.tree.map(spread_array, tree, specs)
