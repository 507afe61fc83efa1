"""Losses of PPO and of the distillation terms: pure functions of arrays and floats.

The student is a Gaussian N(μ, σ²) with a log standard deviation log σ that does not depend on the observation;
a is an action it took, r the ratio of its new to its old density, a_T a teacher's action for the same observation.
The objective that is minimised (Jülg et al. 2025) is

    pg_loss − entropy_coef·entropy + value_coef·value_loss + λ·distill_loss.
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from rpd_jax.student.gaussian import gaussian_log_prob


def normalize_advantages(
    advantages: Float[ArrayLike, " B"], std_floor: float = 0.0, axis_name: str | None = None
) -> Float[Array, " B"]:
    """Advantages [B] with zero mean and unit spread: (A − mean) / (max(std, floor) + 1e-8), unbiased std.

    The floor keeps noise of the value function from being blown up to unit scale where no reward has been seen. Mean
    and std are those of the minibatch, of which each device along `axis_name` (if given) holds a part.
    """
    chex.assert_rank(advantages, 1)
    everyone = advantages if axis_name is None else jax.lax.all_gather(advantages, axis_name, tiled=True)
    spread = jnp.maximum(jnp.std(everyone, ddof=1), std_floor)
    return (advantages - jnp.mean(everyone)) / (spread + 1e-8)


def clipped_surrogate(
    log_ratio: Float[ArrayLike, " B"], advantages: Float[ArrayLike, " B"], clip: float
) -> Float[Array, ""]:
    """PPO's clipped policy loss: mean of max(−A·r, −A·clip(r, 1 − ε, 1 + ε)) (Schulman et al. 2017, equation 7).

    Args:
        log_ratio: float [B], log r = new log-prob − old log-prob.
        advantages: float [B], A.
        clip: ε.

    Returns:
        scalar.
    """
    _assert_vectors(log_ratio, advantages)
    ratio = jnp.exp(log_ratio)
    return jnp.mean(jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 1.0 - clip, 1.0 + clip)))


def value_loss(values: Float[ArrayLike, " B"], returns: Float[ArrayLike, " B"]) -> Float[Array, ""]:
    """Squared error of the value function: ½ mean (V − R)², of values and returns [B]."""
    _assert_vectors(values, returns)
    return 0.5 * jnp.mean(jnp.square(values - returns))


def clipped_value_loss(
    values: Float[ArrayLike, " B"], old_values: Float[ArrayLike, " B"], returns: Float[ArrayLike, " B"], clip: float
) -> Float[Array, ""]:
    """Value loss that takes no reward for moving further than ε from the old value.

    ½ mean max((V − R)², (V_old + clip(V − V_old, −ε, ε) − R)²), of values, old values and returns [B].
    """
    _assert_vectors(values, old_values, returns)
    clipped = old_values + jnp.clip(values - old_values, -clip, clip)
    return 0.5 * jnp.mean(jnp.maximum(jnp.square(values - returns), jnp.square(clipped - returns)))


def approx_kl(log_ratio: Float[ArrayLike, " B"]) -> Float[Array, ""]:
    """Estimate of KL(old ‖ new) from samples of the old policy: mean of (r − 1) − log r, of log_ratio [B].

    Source: http://joschu.net/blog/kl-approx.html, estimator k3.
    """
    _assert_vectors(log_ratio)
    return jnp.mean(jnp.expm1(log_ratio) - log_ratio)


def clip_fraction(log_ratio: Float[ArrayLike, " B"], clip: float) -> Float[Array, ""]:
    """Share of samples whose ratio is further than ε from one, of log_ratio [B]."""
    _assert_vectors(log_ratio)
    return jnp.mean((jnp.abs(jnp.expm1(log_ratio)) > clip).astype(jnp.float32))


def rpd_mse(mean: Float[ArrayLike, "B A"], teacher_actions: Float[ArrayLike, "B A"]) -> Float[Array, ""]:
    """RPD-MSE: mean over batch and action dimensions of (μ − a_T)², both [B, A]."""
    _assert_actions(mean, teacher_actions)
    return jnp.mean(jnp.square(mean - teacher_actions))


def rpd_l1(mean: Float[ArrayLike, "B A"], teacher_actions: Float[ArrayLike, "B A"]) -> Float[Array, ""]:
    """RPD-L1: mean over batch and action dimensions of |μ − a_T|, both [B, A]."""
    _assert_actions(mean, teacher_actions)
    return jnp.mean(jnp.abs(mean - teacher_actions))


def rpd_bc(
    mean: Float[ArrayLike, "B A"], log_std: Float[ArrayLike, " A"], teacher_actions: Float[ArrayLike, "B A"]
) -> Float[Array, ""]:
    """RPD-BC: mean over the batch of −log N(a_T; μ, σ²), of mean and actions [B, A] and log_std [A]."""
    _assert_actions(mean, teacher_actions)
    return -jnp.mean(gaussian_log_prob(teacher_actions, mean, log_std))


def gaussian_kl(
    mean: Float[ArrayLike, "*B A"],
    log_std: Float[ArrayLike, " A"],
    other_mean: Float[ArrayLike, "*B A"],
    other_std: Float[ArrayLike, "*B A"],
) -> Float[Array, "*B"]:
    """KL( N(μ, σ²) ‖ N(m, s²) ) = Σ_dims log(s/σ) + (σ² + (μ − m)²) / (2s²) − ½, with *variances* σ², s².

    Args:
        mean: float [..., A], μ.
        log_std: float [A], log σ.
        other_mean: float [..., A], m.
        other_std: float [..., A], s > 0.

    Returns:
        float [...].
    """
    chex.assert_equal_shape([mean, other_mean, other_std])
    chex.assert_shape(log_std, mean.shape[-1:])
    variance_ratio = jnp.square(jnp.exp(log_std) / other_std)
    shift = jnp.square((mean - other_mean) / other_std)
    return 0.5 * jnp.sum(variance_ratio + shift - 1.0 - jnp.log(variance_ratio), axis=-1)


def ppd(
    mean: Float[ArrayLike, "B A"],
    log_std: Float[ArrayLike, " A"],
    log_ratio: Float[ArrayLike, " B"],
    teacher_samples: Float[ArrayLike, "S B A"],
    clip: float,
    std_floor: float = 0.0,
) -> Float[Array, ""]:
    """Proximal policy distillation: mean of KL( N(μ, σ²) ‖ N(m, s²) ) · max(r, 1 − ε) (Spigler 2024).

    m and s are mean and population standard deviation of the teacher's samples.

    Args:
        mean: float [B, A], μ.
        log_std: float [A], log σ.
        log_ratio: float [B], log r.
        teacher_samples: float [S, B, A].
        clip: ε.
        std_floor: s is at least this; without one, a teacher that repeats itself makes the loss infinite.

    Returns:
        scalar.
    """
    chex.assert_rank(teacher_samples, 3)
    _assert_actions(mean, teacher_samples[0])
    _assert_vectors(log_ratio)
    chex.assert_equal(len(log_ratio), len(mean))
    teacher_mean, teacher_std = jnp.mean(teacher_samples, axis=0), jnp.std(teacher_samples, axis=0)
    kl = gaussian_kl(mean, log_std, teacher_mean, jnp.maximum(teacher_std, std_floor))
    return jnp.mean(kl * jnp.maximum(jnp.exp(log_ratio), 1.0 - clip))


def distillation_loss(
    kind: str,
    mean: Float[ArrayLike, "B A"],
    log_std: Float[ArrayLike, " A"],
    log_ratio: Float[ArrayLike, " B"],
    teacher_samples: Float[ArrayLike, "S B A"],
    clip: float,
    std_floor: float = 0.0,
) -> Float[Array, ""]:
    """The distillation term of a kind; all but ppd take the first of the samples [S, B, A]."""
    if kind == "mse":
        return rpd_mse(mean, teacher_samples[0])
    if kind == "l1":
        return rpd_l1(mean, teacher_samples[0])
    if kind == "bc":
        return rpd_bc(mean, log_std, teacher_samples[0])
    if kind == "ppd":
        return ppd(mean, log_std, log_ratio, teacher_samples, clip, std_floor)
    raise ValueError(f"{kind!r} is not a distillation loss")


# Looked at while a loss is traced, so that they cost nothing in a run: an array of another rank would be broadcast, and
# the mean over the wrong shape is a number like any other.


def _assert_vectors(*arrays):
    """All [B]."""
    chex.assert_rank(arrays, 1)
    chex.assert_equal_shape(arrays)


def _assert_actions(*arrays):
    """All [B, A]."""
    chex.assert_rank(arrays, 2)
    chex.assert_equal_shape(arrays)
