"""A student that begins as another run's does what that one does, and its critic knows nothing of it."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from random_student import STATE_DIM, make_run
from stopping import TRAINING

from rpd_jax.errors import UserError
from rpd_jax.evaluate.begun_as import begun_as
from rpd_jax.evaluate.trained_student import load_student
from rpd_jax.student.networks import ActorCritic
from rpd_jax.student.still import resting, with_rests

ROOT = Path(__file__).resolve().parents[3]
FRAMES = np.random.default_rng(1).integers(0, 256, (3, 40, 40, 3), np.uint8)
STATES = np.ones((3, STATE_DIM), np.float32)


@pytest.mark.parametrize("observation", ["rgb", "state"])
def test_it_acts_like_the_other_with_a_critic_of_its_own(tmp_path, observation):
    make_run(tmp_path / "run", observation=observation)
    other = load_student(tmp_path / "run")
    sees = {"observation": observation, "encoder": "small", "image_size": 40, "state": other.network.state}
    network = ActorCritic(**sees, critic="state", initial_log_std=-2.0)
    seen = (FRAMES if observation == "rgb" else None, STATES)
    fresh = network.init(jax.random.key(0), *seen)
    begun = begun_as(network, fresh, other)
    mean, log_std, _ = network.apply(begun, *seen)
    expected = other.compiled_mean_action()(*seen)
    np.testing.assert_allclose(mean, expected, atol=1e-6)
    assert np.abs(mean - network.apply(fresh, *seen)[0]).max() > 0.01
    np.testing.assert_array_equal(log_std, np.full(7, -2.0, np.float32))
    for name in ("critic", "critic_trunk"):
        jax.tree.map(np.testing.assert_array_equal, begun["params"][name], fresh["params"][name])


def test_where_the_other_rests_it_rests(tmp_path):
    make_run(tmp_path / "run", observation="state")
    other = load_student(tmp_path / "run")
    labels = np.eye(7, dtype=np.float32)[:5]  # alike in the last two dimensions
    other = dataclasses.replace(other, params=with_rests(other.params, labels))
    network = ActorCritic(observation="state", state=other.network.state, initial_log_std=-2.0)
    fresh = network.init(jax.random.key(0), None, STATES)
    begun = begun_as(network, fresh, other)
    assert resting(begun) == [6, 7]
    np.testing.assert_array_equal(begun["params"]["log_std"][:5], np.full(5, -2.0, np.float32))
    np.testing.assert_allclose(network.apply(begun, None, STATES)[0][:, 5:], 0.0, atol=1e-6)


def test_an_actor_that_is_built_differently_is_refused(tmp_path):
    make_run(tmp_path / "run", observation="state")
    other = load_student(tmp_path / "run")

    def begin(states, **changes):
        network = ActorCritic(**{"observation": "state", "state": other.network.state} | changes)
        frames = FRAMES if network.sees_frames else None
        return begun_as(network, network.init(jax.random.key(0), frames, states), other)

    with pytest.raises(UserError, match=r"start is a student with observation='state', and this one has 'rgb'"):
        begin(STATES, observation="rgb", image_size=40)
    with pytest.raises(UserError, match="is a student of a task with another state"):
        begin(np.ones((3, STATE_DIM + 1), np.float32))


@pytest.mark.slow
def test_a_run_begins_as_another_one_s_student(tmp_path):
    """While its critic learns the policy rests: it is the other's to the bit, but for its σ."""
    settings = TRAINING | {"student.critic": "state", "ppo.critic_first": 32, "ppo.learning_rate": 1e-3}
    for name, others in (("first", {}), ("second", {"student.start": tmp_path / "first", "seed": 1})):
        flags = [f"--config.{key}={value}" for key, value in (settings | others).items()]
        command = ["train.py", "--config=configs/push_cube_sparse.py", f"--workdir={tmp_path / name}", *flags]
        outcome = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert outcome.returncode == 0, outcome.stderr
    first, second = (load_student(tmp_path / name).params["params"] for name in ("first", "second"))
    for name in ("actor", "trunk_0", "trunk_1"):
        jax.tree.map(np.testing.assert_array_equal, second[name], first[name])
    assert np.abs(second["critic"]["output"]["kernel"] - first["critic"]["output"]["kernel"]).max() > 1e-3
