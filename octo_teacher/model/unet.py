"""A U-Net over the steps of an action chunk, the denoising network of a diffusion policy (Chi et al. 2023)."""

import jax
import jax.numpy as jnp
from flax import linen as nn


def mish(x: jax.Array) -> jax.Array:
    """x * tanh(log(1 + exp(x)))."""
    return x * jnp.tanh(jax.nn.softplus(x))


def _dense(features: int) -> nn.Dense:
    return nn.Dense(features, kernel_init=nn.initializers.xavier_uniform())


class SinusoidalPosEmb(nn.Module):
    """[sin f, cos f] of f_i = t * 10000^(-i / (features / 2 - 1)); t [..., 1] to [..., features]."""

    features: int

    def __call__(self, t: jax.Array) -> jax.Array:
        half = self.features // 2
        f = t * jnp.exp(jnp.arange(half) * -(jnp.log(10000.0) / (half - 1)))
        return jnp.concatenate([jnp.sin(f), jnp.cos(f)], axis=-1)


class Conv1dBlock(nn.Module):
    """mish(GroupNorm(convolution)) over the steps of x [B, W, steps, C]; the norm's moments are those of all W."""

    features: int
    kernel_size: int
    n_groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.features, (self.kernel_size,), padding=self.kernel_size // 2)(x)
        return mish(nn.GroupNorm(self.n_groups)(x))


class Downsample1d(nn.Module):
    """Halves the steps."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Conv(self.features, (3,), strides=(2,))(x)


class Upsample1d(nn.Module):
    """Doubles the steps."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.ConvTranspose(self.features, (4,), strides=(2,))(x)


class ConditionalResidualBlock1D(nn.Module):
    """x + block(scale(c) * block(x) + shift(c)); x passes a linear map first if `residual_proj`."""

    features: int
    kernel_size: int
    n_groups: int
    residual_proj: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        y = Conv1dBlock(self.features, self.kernel_size, self.n_groups)(x)
        scale, shift = jnp.split(_dense(2 * self.features)(mish(condition))[..., None, :], 2, axis=-1)
        y = Conv1dBlock(self.features, self.kernel_size, self.n_groups)(y * scale + shift)
        if self.residual_proj:
            x = nn.Conv(self.features, (1,), padding=0)(x)
        return y + x


class ConditionalUnet1D(nn.Module):
    """Features of noisy actions, conditioned on an embedding and on the time.

    Called with embeddings [B, W, d], noisy actions [B, W, steps, dimensions] and times [B, W, 1]; returns
    [B, W, steps, down_features[0]]. Every level but the last halves the steps: they must be a multiple of
    2 ** (len(down_features) - 1).
    """

    down_features: tuple[int, ...]
    mid_layers: int
    kernel_size: int
    time_features: int
    n_groups: int = 8

    @nn.compact
    def __call__(self, embeddings: jax.Array, noisy_actions: jax.Array, time: jax.Array) -> jax.Array:
        def blocks(x: jax.Array, features: int, *projected: bool) -> jax.Array:
            for residual_proj in projected:
                x = ConditionalResidualBlock1D(features, self.kernel_size, self.n_groups, residual_proj)(x, condition)
            return x

        code = SinusoidalPosEmb(self.time_features)(time.astype(jnp.float32))
        code = mish(_dense(4 * self.time_features)(code))
        code = _dense(self.time_features)(code)
        condition = jnp.concatenate([embeddings, code], axis=-1)
        x, skipped = noisy_actions, []
        for level, features in enumerate(self.down_features):
            x = blocks(x, features, True, False)
            if level:
                skipped.append(x)
            if level < len(self.down_features) - 1:
                x = Downsample1d(features)(x)
        x = blocks(x, self.down_features[-1], *[False] * self.mid_layers)
        for features, skip in reversed(list(zip(self.down_features, skipped, strict=False))):
            x = blocks(jnp.concatenate([x, skip], axis=-1), features, True, False)
            x = Upsample1d(features)(x)
        return Conv1dBlock(self.down_features[0], self.kernel_size, self.n_groups)(x)
