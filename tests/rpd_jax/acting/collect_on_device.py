"""Collects from environments of JAX arrays, and counts what goes to the host; run by test_collect_on_device.py.

The arrays lie on both of two devices. JAX gives NumPy a view of an array on one CPU device behind everybody's back;
of these each way to the host goes through what is trapped here, and the other way is what the transfer guard refuses.
"""

import contextlib
import json
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from ml_collections import ConfigDict
from reaching_env import SIZE, ReachingEnv, any_parameters

from configs import default
from rpd_jax import settings
from rpd_jax.acting import collect
from rpd_jax.acting.episodes import run_episodes
from rpd_jax.acting.guide import Guide
from rpd_jax.acting.labelling import Labeller
from rpd_jax.learning.learner import Learner
from rpd_jax.student.networks import ActorCritic

STEPS, ENVS, SHARE = 12, 8, 0.6


class TowardsGoal:
    """A teacher of JAX's, that sees the state."""

    worthwhile_batch, sees_state = 1, True

    def begin(self, rgb, instruction, key, num_samples=1, first_frame=0, state=None):
        samples = _samples(key, jax.device_put(np.int32(first_frame), state.sharding), state, num_samples)
        return lambda: samples

    def close(self):
        pass


@jax.jit(static_argnums=3)
def _samples(key, first_frame, state, num_samples):
    def of_row(row, state):
        noise = jax.random.normal(jax.random.fold_in(key, first_frame + row), (num_samples, 7))
        return 0.2 * noise + jnp.pad(state[3:6] - state[:3], (0, 4))

    return jax.vmap(of_row, out_axes=1)(jnp.arange(len(state)), state)


def make_learner() -> tuple[Learner, ConfigDict]:
    config = default.get_config()
    config.algorithm, config.profile, config.student.observation = "dagger", "cpu_state", "state"
    config.env.update(num_envs=ENVS, image_size=SIZE)
    config.ppo.update(rollout_steps=STEPS, num_minibatches=1)
    config.distill.update(averaged=2)
    config = settings.resolve(config)
    return Learner(ActorCritic.from_config(config.student), config), config


def collect_twice(guided: bool, sharding: Sharding, learner: Learner, config: ConfigDict) -> list[str]:
    """Two rollouts with frames; what the second, when all is compiled, fetched by `jax.device_get`."""
    envs, labeller, fetches = ReachingEnv(ENVS, False, sharding), Labeller(TowardsGoal(), config, learner), []
    position = collect.start(envs, 3)
    params = jax.device_put(any_parameters(learner.network, envs), sharding)
    for number, context in enumerate((contextlib.nullcontext(), counted(fetches))):
        key = jax.device_put(jax.random.key(number), sharding)
        labeller.begin(key)
        guide = Guide(labeller, SHARE, key, STEPS) if guided else None
        with context:
            rollout, position, episodes = collect.rollout(envs, learner, params, position, STEPS, key, guide=guide)
        assert rollout.rgb.shape == (STEPS, ENVS, SIZE, SIZE, 3)
        assert rollout.final_values.any() and not rollout.valid.all()
        assert all(len(values) for values in episodes.values())
    return fetches


def evaluate(sharding: Sharding, learner: Learner) -> tuple[list[str], int]:
    """What an evaluation fetches after its first step, and the steps in which it does."""
    envs, fetches = ReachingEnv(ENVS, False, sharding), []
    params = jax.device_put(any_parameters(learner.network, envs), sharding)
    with contextlib.ExitStack() as stack:
        steps = []

        def count(finished):
            if not steps:
                stack.enter_context(counted(fetches))
            steps.append(finished)

        run_episodes(envs, lambda rgb, state, key: learner.mean_action(params, rgb, state), 2 * ENVS, 3, on_step=count)
    return fetches, len(steps) - 1


@contextlib.contextmanager
def counted(fetches: list[str]):
    """Notes each call of `jax.device_get`; any other way of an array to the host is an error, and the way back too."""
    array, get = type(jnp.zeros(())), jax.device_get
    value, allowed = array._value, []

    def read(array):
        if not allowed:
            raise AssertionError(f"an array of {array.shape} {array.dtype} went to the host by itself")
        return value.fget(array)

    def fetch(tree):
        fetches.append(", ".join(tree) if isinstance(tree, dict) else "")
        allowed.append(True)
        try:
            return get(tree)
        finally:
            allowed.pop()

    with (
        mock.patch.object(array, "_value", property(read)),
        mock.patch.object(jax, "device_get", fetch),
        jax.transfer_guard("disallow"),
    ):
        yield


def trapped(sharding) -> dict[str, bool]:
    """Whether `counted` refuses each way to the host and back."""
    array = jax.device_put(np.arange(4.0, dtype=np.float32), sharding)
    add, ways = jax.jit(jnp.add), {}
    for name, way in {
        "np.asarray": lambda: np.asarray(add(array, array)),
        "np.stack": lambda: np.stack([add(array, array)]),
        "np mask": lambda: np.zeros(4)[array > array],
        "assignment": lambda: np.zeros(4).__setitem__(slice(None), add(array, array)),
        "float": lambda: float(jnp.sum(array)),
        "bool": lambda: bool((array > array).any()),
        "a NumPy argument": lambda: add(array, np.ones(4, np.float32)),
        "a constant": lambda: array + 1.0,
        "an index": lambda: array[2],
    }.items():
        try:
            with counted([]):
                way()
            ways[name] = False
        except (AssertionError, jax.errors.JaxRuntimeError):
            ways[name] = True
    return ways


if __name__ == "__main__":
    both = NamedSharding(Mesh(np.array(jax.devices()), ("both",)), PartitionSpec())
    learner = make_learner()
    fetches = [collect_twice(guided, both, *learner) for guided in (False, True)]
    evaluation, steps = evaluate(both, learner[0])
    told = {"fetches": fetches, "evaluation": len(evaluation), "steps": steps}
    json.dump(told | {"devices": len(jax.devices()), "trapped": trapped(both)}, sys.stdout)
