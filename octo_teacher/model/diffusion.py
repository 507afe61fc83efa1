"""The denoising network of the diffusion head, and the noise schedule of both denoising heads."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


def cosine_beta_schedule(steps: int, s: float = 0.008) -> np.ndarray:
    """Noise variances beta_t, float32 [steps] (Nichol and Dhariwal 2021).

    beta_t = 1 - f(t + 1) / f(t) with f(t) = cos(pi / 2 * (t / steps + s) / (1 + s))^2, clipped to [0, 0.999].
    """
    t = np.linspace(0, steps, steps + 1) / steps
    f = np.cos((t + s) / (1 + s) * np.pi * 0.5) ** 2
    return np.clip(1 - f[1:] / f[:-1], 0, 0.999).astype(np.float32)


def noise_schedule(steps: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns betas of `cosine_beta_schedule`, alphas = 1 - betas and their cumulative products, float32 [steps]."""
    betas = cosine_beta_schedule(steps)
    alphas = 1 - betas
    return jnp.asarray(betas), jnp.asarray(alphas), jnp.asarray(np.cumprod(alphas, dtype=np.float32))


def noised(
    actions: jax.Array,
    alpha_hats: jax.Array,
    make_rng: Callable[[], jax.Array],
    time: jax.Array | None = None,
    noise: jax.Array | None = None,
    draws: tuple[int, ...] = (),
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a network learns to denoise: sqrt(alpha_hat_t) * actions + sqrt(1 - alpha_hat_t) * noise.

    Args:
        actions: float32 [B, W, ...].
        alpha_hats: float32 [steps].
        make_rng: gives the key of what is drawn, and is not called where nothing is.
        time: int [*draws, B, W, 1]; drawn if None.
        noise: float32 [*draws, B, W, ...]; drawn if None.
        draws: how often the actions are noised, as leading axes.

    Returns:
        time, noise, and the noisy actions, float32 [*draws, B, W, ...].
    """
    if time is None or noise is None:
        time_key, noise_key = jax.random.split(make_rng())
        if time is None:
            time = jax.random.randint(time_key, (*draws, *actions.shape[:2], 1), 0, len(alpha_hats))
        if noise is None:
            noise = jax.random.normal(noise_key, (*draws, *actions.shape))
    alpha_hat = alpha_hats[time].reshape(*time.shape, *(1,) * (actions.ndim - 3))
    return time, noise, jnp.sqrt(alpha_hat) * actions + jnp.sqrt(1 - alpha_hat) * noise


class FourierFeatures(nn.Module):
    """[cos f, sin f] of f = 2 pi t w with learned w; t [..., 1] to [..., features]."""

    features: int

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        w = self.param("kernel", nn.initializers.normal(0.2), (self.features // 2, t.shape[-1]))
        f = 2 * jnp.pi * t @ w.T
        return jnp.concatenate([jnp.cos(f), jnp.sin(f)], axis=-1)


class MLP(nn.Module):
    """Dense layers with swish between them."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for index, features in enumerate(self.features):
            x = nn.Dense(features, kernel_init=nn.initializers.xavier_uniform())(x)
            if index + 1 < len(self.features):
                x = nn.swish(x)
        return x


class MLPResNetBlock(nn.Module):
    """x + Dense(swish(Dense(LayerNorm(dropout(x)))))."""

    features: int
    dropout_rate: float
    use_layer_norm: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = nn.Dropout(self.dropout_rate)(x, deterministic=not train) if self.dropout_rate else x
        if self.use_layer_norm:
            y = nn.LayerNorm()(y)
        y = nn.swish(nn.Dense(4 * self.features)(y))
        return x + nn.Dense(self.features)(y)


class MLPResNet(nn.Module):
    """Dense, residual blocks, swish, Dense."""

    num_blocks: int
    out_dim: int
    hidden_dim: int
    dropout_rate: float
    use_layer_norm: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Dense(self.hidden_dim, kernel_init=nn.initializers.xavier_uniform())(x)
        for _ in range(self.num_blocks):
            x = MLPResNetBlock(self.hidden_dim, self.dropout_rate, self.use_layer_norm)(x, train=train)
        return nn.Dense(self.out_dim, kernel_init=nn.initializers.xavier_uniform())(nn.swish(x))


class ScoreActor(nn.Module):
    """Predicts the noise in noisy actions from [time code, embedding, noisy actions].

    Called with embeddings [..., d], noisy actions [..., horizon * action_dim] and times [..., 1] (step numbers, not
    scaled); embeddings broadcast over leading axes.
    """

    out_dim: int
    time_dim: int
    num_blocks: int
    hidden_dim: int
    dropout_rate: float
    use_layer_norm: bool
    dtype: Any = jnp.float32

    def setup(self):
        self.time_preprocess = FourierFeatures(self.time_dim)
        self.cond_encoder = MLP((2 * self.time_dim, self.time_dim))
        self.reverse_network = MLPResNet(
            self.num_blocks, self.out_dim, self.hidden_dim, self.dropout_rate, self.use_layer_norm
        )

    def __call__(self, embeddings: jax.Array, noisy_actions: jax.Array, time: jax.Array, *, train: bool) -> jax.Array:
        code = self.cond_encoder(self.time_preprocess(time.astype(jnp.float32)))
        code = jnp.broadcast_to(code, (*noisy_actions.shape[:-1], code.shape[-1]))
        embeddings = jnp.broadcast_to(embeddings, (*noisy_actions.shape[:-1], embeddings.shape[-1]))
        return self.reverse_network(jnp.concatenate([code, embeddings, noisy_actions], axis=-1), train=train)
