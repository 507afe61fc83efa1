"""The Gaussian policy's log density and entropy."""

import math

import jax
import jax.numpy as jnp


def gaussian_log_prob(actions: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """Log density of actions: Σ_dims −(a − μ)²/(2σ²) − log σ − ½ log 2π.

    Args:
        actions: float [..., A].
        mean: float [..., A], μ.
        log_std: float [A], log σ.

    Returns:
        float [...].
    """
    scaled = (actions - mean) * jnp.exp(-log_std)
    return jnp.sum(-0.5 * jnp.square(scaled) - log_std - 0.5 * math.log(2.0 * math.pi), axis=-1)


def gaussian_entropy(log_std: jax.Array) -> jax.Array:
    """Entropy of the Gaussian: Σ_dims log σ + ½ (1 + log 2π), a scalar of log_std [A]."""
    return jnp.sum(log_std + 0.5 * (1.0 + math.log(2.0 * math.pi)))
