"""Where the critic learns alone, before the policy begins or after it went far enough, the policy rests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from rpd_jax import settings
from rpd_jax.learning.learner import Learner
from rpd_jax.learning.rollout import Rollout
from rpd_jax.learning.schedules import Coefficients
from rpd_jax.student.networks import ActorCritic

T, N, D = 6, 4, 5
FRAMES = jnp.asarray(np.random.default_rng(2).integers(0, 256, (T, N, 40, 40, 3), np.uint8))
STATES = jnp.asarray(np.random.default_rng(1).normal(size=(T, N, D)), jnp.float32)


def make_learner(**changes):
    config = default.get_config()
    config.algorithm, config.profile, config.student.observation = "ppo", "cpu_state", "state"
    config.student.critic = "state"
    config.env.num_envs, config.ppo.rollout_steps, config.ppo.num_minibatches, config.ppo.update_epochs = N, T, 2, 3
    config.update_from_flattened_dict(changes)
    config = settings.resolve(config)
    return Learner(ActorCritic.from_config(config.student), config)


def collected(learner, state, frames=None):
    """A rollout of the student of `state`."""
    rng = np.random.default_rng(0)
    seen = [(None if frames is None else frames[t], STATES[t]) for t in range(T)]
    acted = [learner.policy_step(state.params, *seen[t], jax.random.key(t)) for t in range(T)]
    return Rollout(
        rgb=frames,
        state=STATES,
        actions=jnp.stack([action for action, _, _ in acted]),
        logprobs=jnp.stack([logprob for _, logprob, _ in acted]),
        dones=jnp.zeros((T, N)),
        next_done=jnp.zeros(N),
        next_value=jnp.zeros(N),
        final_values=jnp.zeros((T, N)),
        **{name: jnp.asarray(rng.normal(size=(T, N)), jnp.float32) for name in ("values", "rewards")},
    )


def moved(before, after):
    parts = before["params"]
    changed = {}
    for part in parts:
        pairs = zip(jax.tree.leaves(parts[part]), jax.tree.leaves(after["params"][part]), strict=True)
        changed[part] = any(not np.array_equal(a, b) for a, b in pairs)
    return {part for part, is_changed in changed.items() if is_changed}


def test_the_policy_rests_while_the_critic_learns_first():
    """And what follows is not spoilt by moments that rested with it."""
    learner = make_learner(**{"ppo.critic_first": 48, "ppo.entropy_coef": 0.1})
    state = learner.init(jax.random.key(0), None, STATES[0])
    rollout = collected(learner, state)
    rest = Coefficients(0.0, 0.0, 1e-3, policy=0.0, restart=False)
    after, metrics = learner.update(state, rollout, jax.random.key(1), rest)
    assert metrics["optimizer_steps"] == 6 and metrics["approx_kl"] < 1e-6
    assert moved(state.params, after.params) == {"critic", "critic_trunk"}

    # The first steps of the policy are those of a fresh optimiser.
    again = Coefficients(0.0, 0.0, 1e-3, policy=1.0, restart=True)
    restarted, _ = learner.update(after, rollout, jax.random.key(2), again)
    fresh, _ = learner.update(learner.init_from(after.params), rollout, jax.random.key(2), again)
    jax.tree.map(np.testing.assert_array_equal, restarted.params["params"], fresh.params["params"])
    assert {"actor", "trunk_0", "log_std"} <= moved(after.params, restarted.params)


@pytest.mark.parametrize("critic", ["state", "shared"])
def test_what_a_resting_policy_sees_by_rests(critic):
    """Neither the critic on its features nor the guess of the state from them moves an encoder."""
    settings = {"profile": "cpu", "refine": "pixels", "student.observation": "rgb", "student.image_size": 40}
    settings |= {"student.critic": critic, "student.state_coef": 1.0, "student.value_stop_gradient": False}
    learner = make_learner(**settings, **{"env.image_size": 40, "ppo.critic_first": 48})
    state = learner.init(jax.random.key(0), FRAMES[0], STATES[0])
    rollout = collected(learner, state, FRAMES)
    of_critic = {"critic", "critic_trunk"} if critic == "state" else {"critic"}
    rest = Coefficients(0.0, 0.0, 1e-3, policy=0.0, restart=False)
    after, metrics = learner.update(state, rollout, jax.random.key(1), rest)
    assert metrics["optimizer_steps"] == 6 and metrics["state_loss"] > 0.1
    assert moved(state.params, after.params) == of_critic
    goes_on, _ = learner.update(after, rollout, jax.random.key(1), Coefficients(0.0, 0.0, 1e-3))
    assert of_critic | {"actor", "state_error"} < moved(after.params, goes_on.params)


@pytest.mark.parametrize("critic", ["state", "shared"])
def test_the_critic_goes_on_where_the_target_kl_ends_the_update(critic):
    """The policy, and Adam's moments of it, are what they are without that; what both share counts as the policy's."""
    ended = {}
    for goes_on in (False, True):
        settings = {"ppo.target_kl": 1e-3, "ppo.critic_continues": goes_on, "student.critic": critic}
        learner = make_learner(**settings, **{"ppo.update_epochs": 20})
        state = learner.init(jax.random.key(0), None, STATES[0])
        rollout = collected(learner, state)
        ended[goes_on] = learner.update(state, rollout, jax.random.key(1), Coefficients(0.0, 0.0, 1e-2))
    (before, metrics), (after, others) = ended[False], ended[True]
    assert 1 <= metrics["optimizer_steps"] < 10 and metrics["target_kl_stop"] == 1
    jax.tree.map(np.testing.assert_array_equal, metrics, others)
    of_critic = {"critic", "critic_trunk"} if critic == "state" else {"critic"}
    assert moved(before.params, after.params) == of_critic
    moments = [ended[goes_on][0].opt_state[1] for goes_on in (False, True)]
    for name in ("mu", "nu"):
        assert moved(*(getattr(moment, name) for moment in moments)) == of_critic
    values = [learner.value(one.params, None, STATES.reshape(-1, D)) for one in (before, after)]
    returns = rollout.rewards.reshape(-1)  # nearly: what they say of each other matters here, not the discount
    assert np.mean((values[1] - returns) ** 2) < 0.8 * np.mean((values[0] - returns) ** 2)


def test_a_number_that_is_not_finite_undoes_what_the_critic_did_alone():
    learner = make_learner(**{"ppo.target_kl": 1e-3, "ppo.critic_continues": True, "ppo.value_coef": 1e6})
    state = learner.init(jax.random.key(0), None, STATES[0])
    rollout = collected(learner, state)
    rollout = rollout.replace(rewards=1e33 * rollout.rewards)  # its square is infinite
    after, metrics = learner.update(state, rollout, jax.random.key(1), Coefficients(0.0, 0.0, 1e-3))
    assert learner.nonfinite_term(metrics) is not None
    jax.tree.map(np.testing.assert_array_equal, after, state)
