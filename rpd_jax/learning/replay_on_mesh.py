"""A replay on a mesh: each device adds the frames of its own environments to a ring of its own, in place."""

from functools import partial

import jax
from jax.sharding import Mesh, PartitionSpec

from rpd_jax.learning import minibatches, sharding
from rpd_jax.learning.replay import Labelled, Replay
from rpd_jax.learning.rollout import Rollout, check_arrays
from rpd_jax.learning.sharding import AXIS


@partial(jax.jit, static_argnames=("mesh", "image_size"), donate_argnames="replay")
def extend(replay: Replay, rollout: Rollout, *, mesh: Mesh, image_size: int) -> Replay:
    """Adds a labelled rollout, its frames at `image_size`; the old `replay` must not be used afterwards."""
    check_arrays(rollout)
    check_arrays(replay)
    specs = sharding.replay_specs(replay)
    compute = jax.shard_map(
        partial(_extend_on_device, image_size=image_size),
        mesh=mesh,
        in_specs=(specs, sharding.rollout_specs(rollout)),
        out_specs=specs,
        check_vma=False,
    )
    return compute(replay, rollout)


@partial(jax.jit, static_argnames="mesh", donate_argnames="replay")
def fill(replay: Replay, rows: Labelled, *, mesh: Mesh) -> Replay:
    """Adds rows that lie spread over the mesh; the old `replay` must not be used afterwards."""
    specs = sharding.replay_specs(replay)
    add = jax.shard_map(Replay.add, mesh=mesh, in_specs=(specs, PartitionSpec(AXIS)), out_specs=specs, check_vma=False)
    return add(replay, rows)


def _extend_on_device(replay, rollout, image_size):
    fresh = Labelled(
        frames=None if rollout.rgb is None else minibatches.flat_frames(rollout.rgb, image_size),
        states=None if rollout.state is None else minibatches.flat(rollout.state),
        labels=minibatches.flat_labels(rollout.teacher_actions)[0],
    )
    return replay.add(fresh.newest(replay.capacity))
