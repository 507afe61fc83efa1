"""From environments whose arrays are JAX's a rollout is collected where they lie, and is that of NumPy's arrays."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from collect_on_device import collect_twice, make_learner
from reaching_env import ReachingEnv, any_parameters

from configs import default
from rpd_jax import settings
from rpd_jax.acting import collect
from rpd_jax.envs.cpu_env import CpuVectorEnv
from rpd_jax.envs.maniskill_env import ManiSkillEnv
from rpd_jax.learning.advantages import gae
from rpd_jax.learning.learner import Learner
from rpd_jax.student.networks import ActorCritic

SCRIPT = Path(__file__).parent / "collect_on_device.py"
ROOT = SCRIPT.parents[3]
KEY = jax.random.key(2)
STEPS, ENVS, GAMMA = 20, 5, 0.8


def test_nothing_goes_to_the_host_but_the_episodes_results_once():
    """Nor from it, with or without a teacher that acts in some of the episodes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    run = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["evaluation"] == told["steps"] > 5  # since it ends when enough episodes have ended
    assert told["fetches"] == [["ended, actors, success, return, length"]] * 2
    # What this is worth: the ways that it would have refused.
    assert told["devices"] == 2 and len(told["trapped"]) == 9 and all(told["trapped"].values()), told["trapped"]


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX sees no CUDA device")
@pytest.mark.parametrize("guided", [False, True])
def test_on_a_gpu_too(guided):
    on_gpu = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert len(collect_twice(guided, on_gpu, *make_learner())) == 1


class Remembering(ReachingEnv):
    """Keeps what each step gave."""

    def __init__(self, *args):
        super().__init__(*args)
        self.steps = []

    def step(self, actions):
        self.steps.append(super().step(actions))
        return self.steps[-1]


class Glancing(ActorCritic):
    """A student of the state that sees how bright a frame is, too: convolutions take long to compile."""

    def _features(self, rgb, state):
        return super()._features(rgb, state + rgb.mean(axis=(1, 2, 3))[:, None] / 128.0 - 1.0)


@pytest.fixture(scope="module")
def learner():
    config = default.get_config()
    config.algorithm, config.profile, config.student.observation = "ppo", "cpu_state", "state"
    config.env.num_envs = ENVS
    config = settings.resolve(config)
    return Learner(Glancing.from_config(config.student), config)


@pytest.fixture(scope="module")
def collected(learner):
    """A rollout from arrays of each kind, with its episodes and steps; the student's parameters."""
    found = {}
    for kind, on_host in (("numpy", True), ("jax", False)):
        envs = Remembering(ENVS, on_host)
        position = collect.start(envs, 3)
        assert isinstance(position.done, np.ndarray) == on_host
        params = jax.device_put(any_parameters(learner.network, envs))
        rollout, position, episodes = collect.rollout(envs, learner, params, position, STEPS, KEY)
        assert isinstance(position.done, np.ndarray) == on_host
        found[kind] = rollout, episodes, envs.steps
    return found, params


def test_the_kind_of_arrays_changes_nothing(collected):
    """But the last bits of the values of last observations, which are computed in batches of another size."""
    (host, host_episodes, _), (device, device_episodes, _) = collected[0].values()
    np.testing.assert_allclose(device.final_values, host.final_values, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, host.replace(final_values=None), device.replace(final_values=None))
    jax.tree.map(np.testing.assert_array_equal, host_episodes, device_episodes)
    for name in ("dones", "final_values", "valid"):
        assert np.asarray(getattr(device, name)).any() and not np.asarray(getattr(device, name)).all(), name


@pytest.mark.parametrize("kind", ["numpy", "jax"])
def test_each_ended_episode_is_worth_its_last_observation(collected, learner, kind):
    (rollout, episodes, steps), params = collected[0][kind], collected[1]
    expected, results = np.zeros((STEPS, ENVS)), {"success": [], "return": [], "length": []}
    for t, step in enumerate(steps):
        for n in range(ENVS):
            if step.terminated[n] or step.truncated[n]:
                last = (np.repeat(np.asarray(array[n])[None], ENVS, axis=0) for array in step[4:7:2])
                expected[t, n] = learner.value(params, *last)[n]
                for name, of_row in zip(results, (step.episode.success, *step.episode[2:]), strict=True):
                    results[name].append(of_row[n])
            elif t + 1 < STEPS and not steps[t + 1].valid[n]:
                expected[t, n] = rollout.values[t + 1, n]  # cut as by a limit of time
    assert np.unique(expected).size > 20 and np.isfinite(expected).all()
    np.testing.assert_allclose(rollout.final_values, expected, rtol=1e-5, atol=1e-6)
    for name, values in episodes.items():
        np.testing.assert_array_equal(values, np.asarray(results[name], np.float32))

    terms = ("rewards", "values", "dones", "next_value", "next_done", "final_values")
    advantages = gae(*(getattr(rollout, name) for name in terms), GAMMA, 0.9, finite_horizon=False)
    truncated = np.stack([step.truncated & ~step.terminated for step in steps])
    assert truncated.sum() > 5
    bootstrapped = rollout.rewards + GAMMA * expected - rollout.values
    np.testing.assert_allclose(advantages[truncated], bootstrapped[truncated], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("on_host", [True, False])
def test_success_may_end_what_an_episode_is_worth(collected, learner, on_host):
    """Then only episodes that ran out of time are worth their last observation, and what was cut."""
    (rollout, _, steps), params = collected[0]["numpy" if on_host else "jax"], collected[1]
    ending = copy.copy(learner)
    ending.config = learner.config.copy_and_resolve_references()
    ending.config.ppo.bootstrap_success = False

    def collected_again():
        envs = Remembering(ENVS, on_host)
        return collect.rollout(envs, ending, params, collect.start(envs, 3), STEPS, KEY)[0]

    other = collected_again()
    terminated = np.stack([step.terminated for step in steps])
    assert terminated.sum() > 5 and np.all(np.asarray(rollout.final_values)[terminated] != 0)
    expected = np.where(terminated, 0.0, rollout.final_values)
    np.testing.assert_allclose(other.final_values, expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, other.replace(final_values=None), rollout.replace(final_values=None))
    # Where rewards come at every step, an end by success would be a loss.
    ending.config.env.reward_mode = "normalized_dense"
    jax.tree.map(np.testing.assert_array_equal, collected_again(), rollout)


@pytest.mark.slow
def test_the_simulator_s_two_backends_give_the_same_rollout(learner):
    task = {"env_id": "PushCube-v1", "image_size": 16, "reward_mode": "normalized_dense", "mesh_detail": 0.07}
    task |= {"camera": {}, "max_episode_steps": 5}
    collected = []
    for make in (
        lambda: CpuVectorEnv(task, 1, max_episode_steps=5, workers=1),
        lambda: ManiSkillEnv(task, 1, max_episode_steps=5, sim_backend="physx_cpu", render_backend="cpu"),
    ):
        with make() as envs:
            position = collect.start(envs, 3)
            params = jax.device_put(any_parameters(learner.network, envs))
            rollout, _, episodes = collect.rollout(envs, learner, params, position, 12, KEY)
            collected.append((rollout, episodes))
    (host, host_episodes), (device, device_episodes) = collected
    assert np.flatnonzero(host.final_values).tolist() == [4, 9]
    np.testing.assert_allclose(device.final_values, host.final_values, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, host.replace(final_values=None), device.replace(final_values=None))
    jax.tree.map(np.testing.assert_array_equal, host_episodes, device_episodes)
