"""Advantages equal the expected arrays and a plain float64 loop."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpd_jax.learning.advantages import gae

EXPECTED = np.load(Path(__file__).parents[2] / "data" / "ppo" / "update.npz")


def gae_by_returns(rewards, values, dones, next_value, next_done, final_values, gamma, gae_lambda, finite_horizon):
    """Sums λ-weighted n-step advantages of one environment in float64, without any recursion."""
    num_steps = len(rewards)
    ended = np.append(dones[1:], next_done).astype(bool)
    next_values = np.where(ended, 0.0, np.append(values[1:], next_value)) + final_values
    advantages = np.zeros(num_steps)
    for t in range(num_steps):
        returns, discounted = [], 0.0
        for k in range(t, num_steps):
            discounted += gamma ** (k - t) * rewards[k]
            returns.append(discounted + gamma ** (k - t + 1) * next_values[k])
            if ended[k]:
                break
        weights = gae_lambda ** np.arange(len(returns))
        if finite_horizon:
            weights /= weights.sum()
        else:
            # The standard form gives the longest return the weight of all longer ones.
            weights[:-1] *= 1.0 - gae_lambda
        advantages[t] = weights @ np.asarray(returns) - values[t]
    return advantages


@pytest.mark.parametrize("gamma", [0.8, 0.99])
@pytest.mark.parametrize("finite_horizon", [False, True])
def test_equals_expected_arrays(gamma, finite_horizon):
    names = ("rewards", "values", "dones", "next_value", "next_done", "final_values")
    advantages = gae(*(EXPECTED[name] for name in names), gamma, 0.9, finite_horizon)
    expected = EXPECTED[f"gae/finite{int(finite_horizon)}/gamma{gamma}"]
    np.testing.assert_allclose(advantages, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(1, 1), (2, 3), (7, 2), (24, 4)]),
    done_rate=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    gamma=st.sampled_from([0.0, 0.8, 0.99, 1.0]),
    gae_lambda=st.sampled_from([0.0, 0.9, 0.95]),
    finite_horizon=st.booleans(),
    bool_flags=st.booleans(),
)
def test_equals_weighted_returns_for_any_done_pattern(
    seed, shape, done_rate, gamma, gae_lambda, finite_horizon, bool_flags
):
    rng = np.random.default_rng(seed)
    num_steps, num_envs = shape
    rewards, values = rng.normal(size=(2, *shape))
    next_value = rng.normal(size=num_envs)
    flags = rng.random((num_steps + 1, num_envs)) < done_rate
    dones, next_done = flags[:-1], flags[-1]
    # An episode's last value exists where one ended, also where it is a termination worth nothing.
    final_values = np.where(flags[1:], rng.normal(size=shape) * (rng.random(shape) < 0.7), 0.0)
    as_flag = (lambda x: x) if bool_flags else (lambda x: x.astype(np.float32))
    advantages = gae(
        rewards, values, as_flag(dones), next_value, as_flag(next_done), final_values, gamma, gae_lambda, finite_horizon
    )
    assert advantages.shape == shape and advantages.dtype == np.float32
    for env in range(num_envs):
        expected = gae_by_returns(
            rewards[:, env],
            values[:, env],
            dones[:, env],
            next_value[env],
            next_done[env],
            final_values[:, env],
            gamma,
            gae_lambda,
            finite_horizon,
        )
        np.testing.assert_allclose(advantages[:, env], expected, rtol=2e-4, atol=2e-5)
