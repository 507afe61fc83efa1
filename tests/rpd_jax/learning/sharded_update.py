"""One update on all devices of one or several processes; a program of test_processes.py, which reads what it writes.

python sharded_update.py OUTPUT [ADDRESS NUM_PROCESSES PROCESS_ID]
"""

import os
import sys
from pathlib import Path

import numpy as np

STEPS, ENVS, MINIBATCHES = 6, 8, 3


def make_learner(mesh=None):
    from configs import default
    from rpd_jax import settings
    from rpd_jax.learning.learner import Learner
    from rpd_jax.student.networks import ActorCritic

    config = default.get_config()
    config.profile = "paper"
    config.update_from_flattened_dict(
        {
            "algorithm": "ppd",
            "student.observation": "state",
            "env.num_envs": ENVS,
            "ppo.rollout_steps": STEPS,
            "ppo.update_epochs": 2,
            "ppo.num_minibatches": MINIBATCHES,
            "ppo.target_kl": 0.0,
            "distill.std_floor": 0.9,
            "distill.replay": 2 * STEPS * ENVS,
            "distill.replay_batch": 4,
        }
    )
    config = settings.resolve(config)
    return Learner(ActorCritic.from_config(config.student), config, mesh)


def make_arrays():
    """A rollout as numpy arrays, all environments of all processes."""
    rng = np.random.default_rng(0)
    shape = (STEPS, ENVS)
    flags = rng.random((STEPS + 1, ENVS)) < 0.2
    arrays = {
        "state": rng.normal(size=(*shape, 10)),
        "actions": rng.normal(0.0, 0.6, size=(*shape, 7)),
        "logprobs": rng.normal(-4.0, 0.5, size=shape),
        "values": rng.normal(size=shape),
        "rewards": rng.normal(size=shape),
        "final_values": np.where(flags[1:], rng.normal(size=shape), 0.0),
        "dones": flags[:-1],
        "next_done": flags[-1],
        "next_value": rng.normal(size=ENVS),
        "teacher_actions": rng.normal(size=(1, 10, *shape, 7)),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def local_orders(num_devices):
    """int32 [epochs, devices, frames of a device]."""
    rng = np.random.default_rng(1)
    frames = STEPS * ENVS // num_devices
    orders = [[rng.permutation(frames) for _ in range(num_devices)] for _ in range(2)]
    return np.array(orders, np.int32)


def environments(name, array, part):
    """The part of an array that belongs to some environments."""
    from rpd_jax.learning.rollout import AXES

    return np.take(array, part, axis=AXES[name].index("N"))


def update(learner, part=slice(None), orders=None):
    """Returns metrics and the new state; `part`: environments of this process."""
    import jax
    import jax.numpy as jnp

    from rpd_jax.learning.rollout import Rollout
    from rpd_jax.learning.schedules import Coefficients

    arrays = make_arrays()
    state = learner.init(jax.random.key(0), None, arrays["state"][0])
    own = np.arange(ENVS)[part]
    rollout = Rollout(rgb=None, **{k: jnp.asarray(environments(k, x, own)) for k, x in arrays.items()})
    rollout = learner.spread(rollout)
    replay = learner.create_replay(7, 10)
    # The replayed frames are other ones on several devices: they carry no weight.
    coefficients = Coefficients(distill=1.0, replay=0.0, learning_rate=3e-4)
    again = {"permutations": orders, "per_minibatch": True}
    state, metrics = learner.update(state, rollout, jax.random.key(0), coefficients, replay, **again)
    del metrics["replay_loss"], metrics["minibatches"]["replay_loss"]
    replay = learner.extend_replay(replay, rollout)
    return jax.device_get(metrics), state, replay, rollout


def main():
    output, *cluster = sys.argv[1:]
    if cluster:
        os.environ |= dict(
            zip(("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"), cluster, strict=True)
        )
    from rpd_jax.run import processes

    with processes.connected():
        measure(Path(output))


def measure(output):
    """Writes what the tests look at to `output`."""
    import jax

    from rpd_jax.acting.kept_replay import read_labelled
    from rpd_jax.acting.training_state import TrainingState
    from rpd_jax.errors import UserError
    from rpd_jax.learning.schedules import Coefficients
    from rpd_jax.learning.sharding import make_mesh
    from rpd_jax.run import processes
    from rpd_jax.run.checkpoints import Checkpoints
    from rpd_jax.run.stop import Interrupted

    mesh = make_mesh()
    learner = make_learner(mesh)
    devices, index, count = jax.device_count(), jax.process_index(), jax.process_count()
    part = slice(index * ENVS // count, (index + 1) * ENVS // count)
    orders = local_orders(devices).reshape(2, -1)
    metrics, state, replay, rollout = update(learner, part, orders)
    with Checkpoints(output / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(1, {"learner": state, "replay": replay}, {})
    kept = TrainingState(state, replay, 1, came=learner.rows_of(rollout))
    for save in (True, False):
        with Checkpoints(output / "rows", keep=1) as checkpoints:
            if save:
                kept.save(checkpoints, step=8)
            else:
                restored = TrainingState(state, learner.create_replay(7, 10)).restored(checkpoints, print)
    assert (restored.came, int(restored.replay.count)) == (kept.came, int(replay.count)) == (kept.came, kept.came)
    for name in ("states", "labels"):
        for found, expected in zip(
            *(getattr(x, name).addressable_shards for x in (restored.replay, replay)), strict=True
        ):
            np.testing.assert_array_equal(found.data, expected.data)
    if count == 1:  # what a stage before left, on another number of devices: every ring is full of it, nothing is lost
        rows = read_labelled(output / "rows" / "1", "states", "labels")
        rows = {name: array[:-1] for name, array in rows.items()}
        filled = learner.fill_replay(learner.create_replay(7, 10), None, **rows)
        rings = [shard.data[: int(filled.count)] for shard in filled.states.addressable_shards]
        assert int(filled.count) == -(-len(rows["states"]) // devices)
        assert {*np.concatenate(rings)[:, 0].tolist()} == {*make_arrays()["state"].reshape(-1, 10)[:-1, 0].tolist()}
    again = {"permutations": orders, "per_minibatch": True}  # as before, so that nothing is compiled twice
    coefficients = Coefficients(distill=1.0, replay=1.0, learning_rate=3e-4)
    replayed = learner.update(state, rollout, jax.random.key(1), coefficients, replay, **again)[1]["replay_loss"]
    outcomes = []
    for reason in (None, Interrupted("SIGTERM"), UserError("full")):
        try:
            with processes.together():
                if reason is not None and index == count - 1:
                    raise reason
            outcomes.append("went on")
        except (Interrupted, UserError) as error:
            outcomes.append(f"{type(error).__name__}: {error}")
    shared = processes.share(0.25 + index)
    local = learner.local_params(learner.init(jax.random.key(0), None, make_arrays()["state"][0]))
    action = learner.mean_action(local, None, make_arrays()["state"][0])
    if index == 0:
        minibatches = metrics.pop("minibatches")
        np.savez(
            output / "metrics.npz",
            devices=devices,
            outcomes=outcomes,
            shared=shared,
            replayed=replayed,
            action=action,
            **metrics,
            **{f"minibatches/{name}": value for name, value in minibatches.items()},
        )


if __name__ == "__main__":
    main()
