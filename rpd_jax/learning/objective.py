"""What a minibatch minimises: PPO's loss and the distillation terms (docs/method.md)."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rpd_jax.learning import losses
from rpd_jax.learning.algorithms import find_algorithm
from rpd_jax.learning.minibatches import Samples
from rpd_jax.learning.replay import Labelled
from rpd_jax.learning.schedules import Coefficients
from rpd_jax.student.gaussian import gaussian_entropy, gaussian_log_prob
from rpd_jax.student.networks import ActorCritic

# Of the terms of an objective, those that must be finite.
LOSS_TERMS = ("pg_loss", "v_loss", "entropy", "distill_loss", "replay_loss", "state_loss", "approx_kl")
# Zero where the algorithm does not reinforce.
PPO_TERMS = ("pg_loss", "v_loss", "entropy", "approx_kl", "clip_fraction")


@struct.dataclass
class Replayed:
    """Frames of the replay that join a minibatch, and whether there are any (1 or 0)."""

    rows: Labelled
    weight: jax.Array


def objective(
    params: dict,
    network: ActorCritic,
    config: ConfigDict,
    minibatch: Samples,
    replayed: Replayed | None,
    coefficients: Coefficients,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of a minibatch, which is differentiated with respect to `params`.

    Args:
        params: of the student.
        network: the student.
        config: of the training; reads `algorithm`, `ppo` and `distill`.
        minibatch: its labels, if it has any, join the distillation term.
        replayed: frames of another policy for the replayed term, or None.
        coefficients: λ and its like.
        axis_name: the devices that each hold a part of the minibatch; None: this one holds all.

    Returns:
        the loss, and by name the terms that it is made of or that tell how far the policy has moved.
    """
    rgb, state = minibatch.rgb, minibatch.state
    if replayed is not None:
        # One pass through the network for both kinds of frames.
        rgb = None if rgb is None else jnp.concatenate([rgb, replayed.rows.frames])
        state = None if state is None else jnp.concatenate([state, replayed.rows.states])
    means, log_std, values, state_error = network.apply(params, rgb, state, method=ActorCritic.look)
    size = minibatch.actions.shape[0]
    mean, value = means[:size], values[:size]

    algorithm = find_algorithm(config.algorithm)
    log_ratio = gaussian_log_prob(minibatch.actions, mean, log_std) - minibatch.logprobs
    if algorithm.reinforces:
        entropy = gaussian_entropy(log_std)
        loss, terms = _ppo(config.ppo, minibatch, log_ratio, value, entropy, coefficients.policy, axis_name)
    else:
        loss, terms = jnp.zeros(()), dict.fromkeys(PPO_TERMS, jnp.zeros(()))
    terms |= dict.fromkeys(("distill_loss", "replay_loss", "state_loss"), jnp.zeros(()))
    if minibatch.labels is not None:
        terms["distill_loss"] = _distillation(algorithm, config, mean, log_std, log_ratio, minibatch.labels[0])
        loss = loss + coefficients.distill * terms["distill_loss"]
    if replayed is not None:
        # The policy that met these frames is gone: PPD's ratio is taken as one.
        no_ratio = jnp.zeros(means.shape[0] - size)
        replay_loss = _distillation(algorithm, config, means[size:], log_std, no_ratio, replayed.rows.labels)
        terms["replay_loss"] = replayed.weight * replay_loss
        loss = loss + coefficients.replay * terms["replay_loss"]
    if state_error is not None:
        counts = jnp.ones(means.shape[0]).at[size:].set(0.0 if replayed is None else replayed.weight)
        terms["state_loss"] = jnp.sum(counts * state_error) / jnp.sum(counts)
        loss = loss + network.state_coef * terms["state_loss"]
    return loss, terms | {"loss": loss}


def _ppo(ppo, minibatch, log_ratio, value, entropy, policy, axis_name):
    """The loss without a teacher, and its terms."""
    advantages = minibatch.advantages
    if ppo.normalize_advantages:
        advantages = losses.normalize_advantages(advantages, ppo.advantage_std_floor, axis_name)
    pg_loss = losses.clipped_surrogate(log_ratio, advantages, ppo.clip)
    if ppo.clip_value_loss:
        v_loss = losses.clipped_value_loss(value, minibatch.values, minibatch.returns, ppo.clip)
    else:
        v_loss = losses.value_loss(value, minibatch.returns)
    loss = policy * (pg_loss - ppo.entropy_coef * entropy) + ppo.value_coef * v_loss
    return loss, {
        "pg_loss": pg_loss,
        "v_loss": v_loss,
        "entropy": entropy,
        "approx_kl": losses.approx_kl(jax.lax.stop_gradient(log_ratio)),
        "clip_fraction": losses.clip_fraction(jax.lax.stop_gradient(log_ratio), ppo.clip),
    }


def _distillation(algorithm, config, mean, log_std, log_ratio, labels):
    """The algorithm's distillation term for labels [B, S, A]."""
    samples = labels.swapaxes(0, 1)
    return algorithm.distillation(mean, log_std, log_ratio, samples, config.ppo.clip, config.distill.std_floor)
