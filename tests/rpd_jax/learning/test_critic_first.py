"""While the critic learns first the policy rests, and what follows is not spoilt by moments that rested with it."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import default
from rpd_jax import settings
from rpd_jax.learning.learner import Learner
from rpd_jax.learning.rollout import Rollout
from rpd_jax.learning.schedules import Coefficients
from rpd_jax.student.networks import ActorCritic

T, N, D = 6, 4, 5


def test_the_policy_rests_while_the_critic_learns():
    config = default.get_config()
    config.algorithm, config.profile, config.student.observation = "ppo", "cpu_state", "state"
    config.student.critic = "state"
    config.env.num_envs, config.ppo.rollout_steps, config.ppo.num_minibatches, config.ppo.update_epochs = N, T, 2, 3
    config.ppo.critic_first, config.ppo.entropy_coef = 48, 0.1
    config = settings.resolve(config)
    learner = Learner(ActorCritic.from_config(config.student), config)
    rng = np.random.default_rng(0)
    arrays = {name: jnp.asarray(rng.normal(size=(T, N)), jnp.float32) for name in ("values", "rewards")}
    state = learner.init(jax.random.key(0), None, np.zeros((1, D), np.float32))
    states = jnp.asarray(rng.normal(size=(T, N, D)), jnp.float32)
    acted = [learner.policy_step(state.params, None, states[t], jax.random.key(t)) for t in range(T)]
    rollout = Rollout(
        rgb=None,
        state=states,
        actions=jnp.stack([action for action, _, _ in acted]),
        logprobs=jnp.stack([logprob for _, logprob, _ in acted]),
        dones=jnp.zeros((T, N)),
        next_done=jnp.zeros(N),
        next_value=jnp.zeros(N),
        final_values=jnp.zeros((T, N)),
        **arrays,
    )

    def moved(before, after):
        parts = before.params["params"]
        changed = {}
        for part in parts:
            pairs = zip(jax.tree.leaves(parts[part]), jax.tree.leaves(after.params["params"][part]), strict=True)
            changed[part] = any(not np.array_equal(a, b) for a, b in pairs)
        return {part for part, is_changed in changed.items() if is_changed}

    rest = Coefficients(0.0, 0.0, 1e-3, policy=0.0, restart=False)
    after, metrics = learner.update(state, rollout, jax.random.key(1), rest)
    assert metrics["optimizer_steps"] == 6 and metrics["approx_kl"] < 1e-6
    assert moved(state, after) == {"critic", "critic_trunk"}

    # The first steps of the policy are those of a fresh optimiser.
    again = Coefficients(0.0, 0.0, 1e-3, policy=1.0, restart=True)
    restarted, _ = learner.update(after, rollout, jax.random.key(2), again)
    fresh, _ = learner.update(learner.init_from(after.params), rollout, jax.random.key(2), again)
    jax.tree.map(np.testing.assert_array_equal, restarted.params["params"], fresh.params["params"])
    assert {"actor", "trunk_0", "log_std"} <= moved(after, restarted)
