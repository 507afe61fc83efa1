"""The Gaussian policy's log density and entropy."""

import math

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def gaussian_log_prob(
    actions: Float[ArrayLike, "*B A"], mean: Float[ArrayLike, "*B A"], log_std: Float[ArrayLike, " A"]
) -> Float[Array, "*B"]:
    """Log density of actions: Σ_dims −(a − μ)²/(2σ²) − log σ − ½ log 2π.

    Args:
        actions: float [..., A].
        mean: float [..., A], μ.
        log_std: float [A], log σ.

    Returns:
        float [...].
    """
    if not jnp.shape(actions) == jnp.shape(mean) == (*jnp.shape(mean)[:-1], *jnp.shape(log_std)):
        shapes = ", ".join(str(jnp.shape(array)) for array in (actions, mean, log_std))
        raise ValueError(f"actions, mean and log_std of shapes {shapes} are not [..., A], [..., A] and [A]")
    scaled = (actions - mean) * jnp.exp(-log_std)
    return jnp.sum(-0.5 * jnp.square(scaled) - log_std - 0.5 * math.log(2.0 * math.pi), axis=-1)


def gaussian_entropy(log_std: Float[ArrayLike, " A"]) -> Float[Array, ""]:
    """Entropy of the Gaussian: Σ_dims log σ + ½ (1 + log 2π), a scalar of log_std [A]."""
    return jnp.sum(log_std + 0.5 * (1.0 + math.log(2.0 * math.pi)))
