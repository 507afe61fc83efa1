"""Generalised advantage estimation in its standard and its finite-horizon form."""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float32
from ml_collections import ConfigDict

from rpd_jax.learning.rollout import Rollout


def advantages_of(rollout: Rollout, ppo: ConfigDict) -> Float32[Array, "T N"]:
    """`gae` of a rollout with a config's `ppo` settings."""
    return gae(
        rollout.rewards,
        rollout.values,
        rollout.dones,
        rollout.next_value,
        rollout.next_done,
        rollout.final_values,
        ppo.gamma,
        ppo.gae_lambda,
        ppo.finite_horizon,
    )


def gae(
    rewards: Float[ArrayLike, "T N"],
    values: Float[ArrayLike, "T N"],
    dones: Float[ArrayLike, "T N"] | Bool[ArrayLike, "T N"],
    next_value: Float[ArrayLike, " N"],
    next_done: Float[ArrayLike, " N"] | Bool[ArrayLike, " N"],
    final_values: Float[ArrayLike, "T N"],
    gamma: float,
    gae_lambda: float,
    finite_horizon: bool,
) -> Float32[Array, "T N"]:
    """Estimates the advantages of a rollout of T steps in N environments.

    With n[t] = 1 − dones[t+1] (not done after step t) and V'[t] = n[t]·V(s[t+1]) + final_values[t], so that both
    termination and truncation bootstrap from the last frame of the ended episode:

    - standard (Schulman et al. 2016): δ = r + γV' − V(s);  A[t] = δ + γλ·n·A[t+1];
    - finite-horizon (ManiSkill's PPO): the λ-weights of the n-step returns that exist in the rollout are normalised
      to sum to one: c ← 1 + λn·c,  R ← λγn·R + c·r,  B ← λγn·B + γV';  A = (R + B)/c − V(s).

    Args:
        rewards: float [T, N].
        values: float [T, N], V of the observation at each step.
        dones: bool or float [T, N]; dones[t] says that an episode ended *before* step t, so that the observation at
            t is the first one of an episode.
        next_value: float [N], V of the observation after the last step.
        next_done: bool or float [N], the same flag as `dones` for the observation after the last step.
        final_values: float [T, N], V of the ended episode's last observation where an episode ended at step t, else 0.
        gamma: discount γ.
        gae_lambda: λ.
        finite_horizon: which of the two forms.

    Returns:
        float32 [T, N] advantages; the value target is advantages + values.
    """
    chex.assert_rank([rewards, next_value], [2, 1])
    chex.assert_equal_shape([rewards, values, dones, final_values])
    chex.assert_equal_shape([rewards[0], next_value, next_done])
    rewards, values, final_values = (jnp.asarray(x, jnp.float32) for x in (rewards, values, final_values))
    next_value = jnp.asarray(next_value, jnp.float32)
    alive = 1.0 - jnp.concatenate([jnp.asarray(dones, jnp.float32)[1:], jnp.asarray(next_done, jnp.float32)[None]])
    bootstrap = alive * jnp.concatenate([values[1:], next_value[None]]) + final_values

    def standard_step(advantage, step):
        reward, value, alive, bootstrap = step
        delta = reward + gamma * bootstrap - value
        advantage = delta + gamma * gae_lambda * alive * advantage
        return advantage, advantage

    def finite_horizon_step(carry, step):
        weight, reward_sum, value_sum = carry
        reward, value, alive, bootstrap = step
        weight = 1.0 + gae_lambda * alive * weight
        reward_sum = gae_lambda * gamma * alive * reward_sum + weight * reward
        value_sum = gae_lambda * gamma * alive * value_sum + gamma * bootstrap
        return (weight, reward_sum, value_sum), (reward_sum + value_sum) / weight - value

    zeros = jnp.zeros_like(next_value)
    steps = (rewards, values, alive, bootstrap)
    if finite_horizon:
        return jax.lax.scan(finite_horizon_step, (zeros, zeros, zeros), steps, reverse=True)[1]
    return jax.lax.scan(standard_step, zeros, steps, reverse=True)[1]
