"""Where no label moves, a student rests: in what it draws, in what it learns, and in no other dimension."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpd_jax.student.networks import ActorCritic
from rpd_jax.student.still import RESTS, held, resting, with_rests

STATES = np.random.default_rng(0).normal(size=(64, 9)).astype(np.float32)
NETWORK = ActorCritic(observation="state", critic="state", initial_log_std=-2.0)
LABELS = np.random.default_rng(1).uniform(-1, 1, (20, 7)).astype(np.float32)
LABELS[:, 3:6] = (0.0, 0.25, -1.0)
RESTING, MOVING = np.array([3, 4, 5]), np.array([0, 1, 2, 6])


@functools.cache
def fresh():
    return NETWORK.init(jax.random.key(0), None, STATES)


@pytest.fixture(scope="module")
def rested():
    return with_rests(fresh(), LABELS)


def test_resting_dimensions_are_what_the_labels_say_and_others_what_they_were(rested):
    action, _, value = NETWORK.apply(rested, None, STATES, jax.random.key(1), method=ActorCritic.policy_step)
    mean = NETWORK.apply(rested, None, STATES, method=ActorCritic.mean_action)
    before, _, value_before = NETWORK.apply(fresh(), None, STATES, jax.random.key(1), method=ActorCritic.policy_step)
    np.testing.assert_array_equal(mean[:, RESTING], np.tile(LABELS[0, RESTING], (64, 1)))
    np.testing.assert_allclose(action[:, RESTING], mean[:, RESTING], atol=5e-5)
    np.testing.assert_allclose(action[:, MOVING], before[:, MOVING], atol=1e-6)
    np.testing.assert_array_equal(value, value_before)
    assert (np.std(action, axis=0)[MOVING] > 0.05).all()


def test_no_gradient_reaches_what_rests(rested):
    """Neither PPO's ratio, which would be huge beside so small a σ, nor a distillation term."""

    def loss(variables):
        mean, log_std, value = NETWORK.apply(variables, None, STATES)
        return jnp.sum((mean - 0.5) ** 2) + jnp.sum(log_std) + jnp.sum(value)

    gradient = jax.grad(loss)(rested)["params"]
    output = gradient["actor"]["output"]
    for leaf in (output["kernel"], output["bias"], gradient["log_std"]):
        assert not np.any(leaf[..., RESTING])
        assert np.all(np.any(leaf[..., MOVING].reshape(-1, 4), axis=0))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=7, max_size=7), st.integers(1, 5), st.integers(0, 2**31))
def test_dimensions_rest_exactly_where_labels_are_alike(alike, count, seed):
    """Not if they are so everywhere: nothing would be left to improve."""
    labels = np.random.default_rng(seed).uniform(-1, 1, (count, 7)).astype(np.float32)
    labels[:, alike] = labels[0, alike] + np.linspace(0, 5e-4, count, dtype=np.float32)[:, None]
    expected = np.ptp(labels, axis=0) < 1e-3
    expected &= not expected.all()
    log_std = with_rests(fresh(), labels)["params"]["log_std"]
    np.testing.assert_array_equal(log_std == RESTS, expected)
    np.testing.assert_array_equal(log_std[~expected], -2.0)
    assert resting(with_rests(fresh(), labels)) == [index + 1 for index in range(7) if expected[index]]


def test_without_labels_or_rests_nothing_changes():
    jax.tree.map(np.testing.assert_array_equal, with_rests(fresh(), np.zeros((0, 7), np.float32)), fresh())
    mean, log_std = np.ones((2, 3), np.float32), np.full(3, -10.0, np.float32)  # the least that settings allow
    found = jax.grad(lambda mean, log_std: sum(map(jnp.sum, held(mean, log_std))), argnums=(0, 1))(mean, log_std)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, np.ones_like(leaf)), found)
