"""What networks see of the simulator's state: running statistics, scales, and who sees it at all."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from rpd_jax.student import state_features
from rpd_jax.student.networks import ActorCritic
from rpd_jax.student.state_features import LEAST_DEVIATION, RANGE, SCALES, StateFeatures, with_statistics

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
STATE = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)


def fresh(dim):
    """The variables of a student that has seen nothing."""
    statistics = StateFeatures().init(jax.random.key(0), jnp.zeros((1, dim)))["statistics"]
    return {"statistics": {"state_features": statistics}}


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 7, 40]), min_size=1, max_size=5),
    offset=st.floats(-5, 5),
    scale=st.floats(0.01, 10),
    seed=st.integers(0, 1000),
)
def test_statistics_of_parts_are_those_of_the_whole(sizes, offset, scale, seed):
    parts = [offset + scale * np.random.default_rng((seed, i)).normal(size=(n, 3)) for i, n in enumerate(sizes)]
    variables = fresh(3)
    for part in parts:
        variables = with_statistics(variables, part.astype(np.float32))
    found, whole = variables["statistics"]["state_features"], np.concatenate(parts)
    assert found["count"] == len(whole)
    np.testing.assert_allclose(found["mean"], whole.mean(axis=0), rtol=1e-4, atol=1e-4 * scale + 1e-5)
    np.testing.assert_allclose(found["variance"], whole.var(axis=0), rtol=1e-3, atol=1e-4 * (scale**2 + 1e-3))


def test_states_of_lost_steps_do_not_count():
    valid = np.array([True, False, True])
    spoilt = np.where(valid[:, None], STATE, np.nan)
    found = with_statistics(fresh(5), spoilt, valid)["statistics"]["state_features"]
    np.testing.assert_allclose(found["mean"], STATE[valid].mean(axis=0), rtol=1e-5)
    assert found["count"] == 2
    jax.tree.map(np.testing.assert_array_equal, with_statistics(fresh(5), STATE, ~np.ones(3, bool)), fresh(5))


def test_statistics_rest_after_enough_frames(monkeypatch):
    monkeypatch.setattr(state_features, "STATISTICS_FRAMES", 4)
    first = with_statistics(fresh(5), np.concatenate([STATE, STATE]))
    again = with_statistics(first, STATE + 100.0)
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_features_are_the_normalised_state_and_the_state_at_finer_scales():
    mean, variance = np.array([1.0, 0.0], np.float32), np.array([4.0, 1e-12], np.float32)
    variables = {"statistics": {"mean": mean, "variance": variance, "count": np.float32(9)}}
    states = np.array([[3.0, 0.001], [1e6, -1.0]], np.float32)
    features = StateFeatures().apply(variables, states)
    deviation = np.array([2.0, LEAST_DEVIATION])
    expected = [np.clip((states - mean) / deviation, -RANGE, RANGE)]
    expected += [np.tanh(scale * states / deviation) for scale in SCALES]
    np.testing.assert_allclose(features, np.concatenate(expected, axis=1), rtol=1e-5)


def test_no_gradient_reaches_the_statistics():
    network = ActorCritic(7, "state", state="scaled", critic="state")
    variables = with_statistics(network.init(jax.random.key(0), None, STATE), STATE)
    assert variables["statistics"]["state_features"]["count"] == 3

    def loss(variables):
        mean, _, value = network.apply(variables, None, STATE)
        return jnp.sum(mean**2) + jnp.sum(value**2)

    grads = jax.grad(loss)(variables)
    assert all(np.all(leaf == 0.0) for leaf in jax.tree.leaves(grads["statistics"]))
    assert np.any(grads["params"]["trunk_0"]["kernel"])


@pytest.mark.parametrize("state", state_features.KINDS)
def test_a_critic_of_the_state_leaves_the_actor_to_its_pixels(state):
    network = ActorCritic(7, "rgb", "small", image_size=40, critic="state", state=state)
    variables = network.init(jax.random.key(0), FRAMES, STATE)
    mean, _, value = network.apply(variables, FRAMES, STATE)
    other_mean, _, other_value = network.apply(variables, FRAMES, STATE + 1.0)
    np.testing.assert_array_equal(mean, other_mean)
    assert not np.allclose(value, other_value)
    # Export and evaluation have no state to give.
    np.testing.assert_array_equal(network.apply(variables, FRAMES, None, method="mean_action"), mean)
    # The critic's value is no longer made of pixels, and its gradient moves nothing that the actor is made of.
    np.testing.assert_array_equal(network.apply(variables, 255 - FRAMES, STATE)[2], value)
    of_value = jax.grad(lambda v: network.apply(v, FRAMES, STATE)[2].sum())(variables)["params"]
    of_actor = jax.grad(lambda v: network.apply(v, FRAMES, STATE)[0].sum())(variables)["params"]
    moved = {part for part, grads in of_value.items() if any(map(np.any, jax.tree.leaves(grads)))}
    assert moved == {"critic", "critic_trunk"}
    assert not moved & {part for part, grads in of_actor.items() if any(map(np.any, jax.tree.leaves(grads)))}
    # Nor does the state enter the actor's gradient.
    other = jax.grad(lambda v: network.apply(v, FRAMES, STATE + 1.0)[0].sum())(variables)["params"]
    jax.tree.map(np.testing.assert_array_equal, of_actor, other)


@pytest.mark.parametrize("state", state_features.KINDS)
def test_the_guess_of_the_state_is_for_training_only(state):
    network = ActorCritic(7, "rgb", "small", image_size=40, state=state, state_coef=0.5)
    assert network.reads_state and not network.sees_state
    variables = network.init(jax.random.key(0), FRAMES, STATE)
    if state == "scaled":
        variables = with_statistics(variables, STATE)
    mean, _, _, error = network.apply(variables, FRAMES, STATE, method="look")
    assert error.shape == (len(STATE),)
    # Of the state as the networks see it, without its finer scales.
    guess = variables["params"]["state_error"]["guess"]
    assert guess["kernel"].shape == (256, STATE.shape[1])
    target = STATE
    if state == "scaled":
        spread = np.maximum(STATE.std(axis=0), LEAST_DEVIATION)
        target = np.clip((STATE - STATE.mean(axis=0)) / spread, -RANGE, RANGE)
    zeros = jax.tree.map(jnp.zeros_like, guess)
    blind = {**variables, "params": {**variables["params"], "state_error": {"guess": zeros}}}
    np.testing.assert_allclose(
        network.apply(blind, FRAMES, STATE, method="look")[3], np.mean(target**2, axis=1), rtol=1e-4, atol=1e-6
    )
    # The actor does not see it; its encoder learns from it.
    np.testing.assert_array_equal(network.apply(variables, FRAMES, STATE + 1.0)[0], mean)
    np.testing.assert_array_equal(network.apply(variables, FRAMES, None, method="mean_action"), mean)
    grads = jax.grad(lambda v: network.apply(v, FRAMES, STATE, method="look")[3].sum())(variables)["params"]
    moved = {part for part, grads in grads.items() if any(map(np.any, jax.tree.leaves(grads)))}
    assert moved == {"image_encoder", "state_error"}
