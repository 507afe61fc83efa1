"""The residual network that ViT's authors put before a transformer, as an image encoder (Dosovitskiy et al. 2020)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from octo_teacher.model.vit_encoders import FilmConditioning, check_condition, normalize_images, standardize_weights


class BareConv(nn.Module):
    """Convolution of x [B, H, W, C] with standardised kernels, without bias, zeros around as for padding SAME."""

    features: int
    kernel_size: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = standardize_weights(self.param("kernel", nn.initializers.lecun_normal(), shape))
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class ResidualUnit(nn.Module):
    """relu(x + y) with y = convolutions 1x1, 3x3 (strided) and 1x1 of x, each with GroupNorm; 4 * features channels.

    x passes a 1x1 convolution and GroupNorm of its own where its shape is not that of y.
    """

    features: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        residual = x
        if x.shape[-1] != 4 * self.features or self.stride != 1:
            residual = BareConv(4 * self.features, 1, self.stride, self.dtype, name="conv_proj")(x)
            residual = nn.GroupNorm(dtype=self.dtype, name="gn_proj")(residual)
        y = BareConv(self.features, 1, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(nn.GroupNorm(dtype=self.dtype, name="gn1")(y))
        y = BareConv(self.features, 3, self.stride, self.dtype, name="conv2")(y)
        y = nn.relu(nn.GroupNorm(dtype=self.dtype, name="gn2")(y))
        y = BareConv(4 * self.features, 1, dtype=self.dtype, name="conv3")(y)
        y = nn.GroupNorm(dtype=self.dtype, scale_init=nn.initializers.zeros, name="gn3")(y)
        return nn.relu(residual + y)


class Stage(nn.Module):
    """Residual units one after the other, the first with a stride."""

    units: int
    features: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ResidualUnit(self.features, self.stride, self.dtype, name="unit1")(x)
        for index in range(2, self.units + 1):
            x = ResidualUnit(self.features, dtype=self.dtype, name=f"unit{index}")(x)
        return x


class ViTResnet(nn.Module):
    """A 7x7 convolution and max pooling, both with stride 2, then stages of residual units.

    Called with uint8 images [B, H, W, C]; `constant_channels` more channels of zeros are understood behind them.
    Returns features at a quarter of the images' size, halved again by every stage but the first.

    Attributes:
        use_film: condition the output of every stage but the first; without stages, that of the pooling.
        width: 64 * width channels in the first convolution, doubled by every stage but the first.
        num_layers: residual units of each stage.
        img_norm_type: see `normalize_images`.
    """

    use_film: bool = False
    width: float = 1
    num_layers: tuple[int, ...] = ()
    img_norm_type: str = "default"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, constant_channels: int = 0, condition: jax.Array | None = None) -> jax.Array:
        check_condition(self.use_film, condition)
        black = jnp.zeros((*images.shape[:-1], constant_channels), images.dtype)
        x = normalize_images(jnp.concatenate([images, black], axis=-1), self.img_norm_type)
        width = int(64 * self.width)
        x = BareConv(width, 7, 2, self.dtype, name="conv_root")(x)
        x = nn.relu(nn.GroupNorm(dtype=self.dtype, name="gn_root")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for index, units in enumerate(self.num_layers):
            x = Stage(units, width * 2**index, 2 if index else 1, self.dtype, name=f"block{index + 1}")(x)
            if index and self.use_film:
                x = FilmConditioning(dtype=self.dtype)(x, condition)
        if self.use_film and not self.num_layers:
            x = FilmConditioning(dtype=self.dtype)(x, condition)
        return x


class ResNet26FILM(ViTResnet):
    """ViTResnet with four stages of two units, conditioned."""

    use_film: bool = True
    num_layers: tuple[int, ...] = (2, 2, 2, 2)
