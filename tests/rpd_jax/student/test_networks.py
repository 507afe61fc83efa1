"""The student's layers, initialisation, observations and policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpd_jax.student.gaussian import gaussian_log_prob
from rpd_jax.student.networks import ActorCritic

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
STATE = RNG.normal(size=(3, 29)).astype(np.float32)


@pytest.mark.parametrize("observation", ["rgb", "rgb+state", "state"])
@pytest.mark.parametrize("encoder", ["nature", "small"])
def test_policy_sees_what_the_observation_names(observation, encoder):
    network = ActorCritic(7, observation, encoder, image_size=64)
    params = network.init(jax.random.key(0), FRAMES, STATE)
    mean, log_std, value = network.apply(params, FRAMES, STATE)
    assert mean.shape == (3, 7) and log_std.shape == (7,) and value.shape == (3,)
    value_of = lambda frames, state: network.apply(params, frames, state, method=ActorCritic.value)  # noqa: E731
    assert bool(np.allclose(value_of(255 - FRAMES, STATE), value)) == (observation == "state")
    assert bool(np.allclose(value_of(FRAMES, STATE + 1), value)) == (observation == "rgb")


def test_frames_of_another_size_are_resized_for_the_student():
    network = ActorCritic(7, image_size=64)
    params = network.init(jax.random.key(0), FRAMES)
    large = FRAMES.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(network.apply(params, large)[2], network.apply(params, FRAMES)[2], rtol=1e-5)


def test_initialisation_is_the_papers():
    params = ActorCritic(7, image_size=64).init(jax.random.key(0), FRAMES)["params"]
    conv = params["image_encoder"]["conv1"]
    bound = 1 / np.sqrt(8 * 8 * 3)
    for array in (conv["kernel"], conv["bias"]):
        assert np.abs(array).max() <= bound
    assert conv["kernel"].std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
    hidden, output = (params["actor"][name]["kernel"] for name in ("hidden", "output"))
    np.testing.assert_allclose(hidden @ hidden.T, 2 * np.eye(256), atol=1e-4)
    np.testing.assert_allclose(output.T @ output, 2e-4 * np.eye(7), atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(params["critic"]["output"]["kernel"]), np.sqrt(2), rtol=1e-5)
    assert not params["critic"]["hidden"]["bias"].any()
    np.testing.assert_allclose(params["log_std"], -0.5)


def test_policy_step_draws_from_the_gaussian_it_reports():
    network = ActorCritic(7, image_size=64, initial_log_std=-1.2)
    params = network.init(jax.random.key(0), FRAMES)
    frames = np.repeat(FRAMES[:1], 400, axis=0)
    step = jax.jit(lambda key: network.apply(params, frames, None, key, method=ActorCritic.policy_step))
    action, log_prob, _ = step(jax.random.key(1))
    mean, log_std, _ = network.apply(params, FRAMES[:1])
    np.testing.assert_allclose(
        log_prob, gaussian_log_prob(action, jnp.broadcast_to(mean, action.shape), log_std), rtol=1e-4
    )
    np.testing.assert_allclose(action.std(axis=0), np.exp(-1.2), rtol=0.15)
    np.testing.assert_allclose(action.mean(axis=0), mean[0], atol=0.08)
    np.testing.assert_array_equal(step(jax.random.key(1))[0], action)
    best = network.apply(params, FRAMES[:1], method=ActorCritic.mean_action)
    np.testing.assert_array_equal(best, mean)


@pytest.mark.parametrize("stop", [True, False])
def test_value_gradient_enters_the_encoder_only_if_allowed(stop):
    network = ActorCritic(7, image_size=64, value_stop_gradient=stop)
    params = network.init(jax.random.key(0), FRAMES)
    grads = jax.grad(lambda params: network.apply(params, FRAMES)[2].sum())(params)["params"]
    assert all(np.any(leaf) != stop for leaf in jax.tree.leaves(grads["image_encoder"]))
    assert np.any(grads["critic"]["hidden"]["kernel"])


def test_unknown_options_are_errors():
    with pytest.raises(ValueError, match="observation='depth'"):
        ActorCritic(7, observation="depth").init(jax.random.key(0), FRAMES)
    with pytest.raises(ValueError, match="encoder='vit'"):
        ActorCritic(7, encoder="vit").init(jax.random.key(0), FRAMES)
