"""Image encoders that turn frames into a grid of features: convolutional stems and plain patches.

Residual networks are in resnet.py, on the same parts.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rpd_jax.errors import UserError


def normalize_images(images: jax.Array, kind: str) -> jax.Array:
    """Scales uint8 images [..., C] to float32: "default" to [-1, 1], "imagenet" by ImageNet's mean and deviation."""
    images = images.astype(jnp.float32)
    if kind == "default":
        return images / 127.5 - 1.0
    if kind == "imagenet":
        repeats = images.shape[-1] // 3
        mean = jnp.tile(jnp.array([0.485, 0.456, 0.406]), repeats)
        std = jnp.tile(jnp.array([0.229, 0.224, 0.225]), repeats)
        return (images / 255.0 - mean) / std
    raise UserError(f"img_norm_type={kind!r} is not implemented: known are default, imagenet.")


def standardize_weights(kernel: jax.Array) -> jax.Array:
    """Per output channel over (kh, kw, in), (kernel - mean) / (population deviation + 1e-5) (Qiao et al. 2019)."""
    kernel = kernel - jnp.mean(kernel, axis=(0, 1, 2))
    return kernel / (jnp.std(kernel, axis=(0, 1, 2)) + 1e-5)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv2d(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Convolution of x [B, H, W, C] with kernel [kh, kw, C, F] and zero padding on every side."""
    return _conv2d(x, kernel, stride, padding)


def _conv2d(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _conv2d_as_product(x, kernel, stride, padding):
    """The same as one product with the matrix of all that the kernel sees."""
    height, width, channels, features = kernel.shape
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = (x.shape[1] - height) // stride + 1, (x.shape[2] - width) // stride + 1
    windows = [
        x[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
        for i, j in np.ndindex(height, width)
    ]
    seen = jnp.concatenate(windows, axis=-1).reshape(-1, height * width * channels)
    return (seen @ kernel.reshape(-1, features)).reshape(len(x), rows, columns, features)


def _conv2d_gradients(stride, padding, residuals, grads):
    def gradients_of(convolution):
        # Only the gradients are computed, not the convolution.
        return lambda x, kernel, grads: jax.vjp(lambda x, kernel: convolution(x, kernel, stride, padding), x, kernel)[
            1
        ](grads)

    # XLA's gradients of convolutions are slow on a CPU.
    return jax.lax.platform_dependent(
        *residuals, grads, cpu=gradients_of(_conv2d_as_product), default=gradients_of(_conv2d)
    )


conv2d.defvjp(lambda x, kernel, stride, padding: (_conv2d(x, kernel, stride, padding), (x, kernel)), _conv2d_gradients)


def pad_unevenly(x: jax.Array, padding: str | tuple[Any, ...], kernel_size: int, stride: int) -> jax.Array:
    """Pads x [B, H, W, C] with zeros before a convolution that has none.

    Args:
        padding: "SAME", "VALID", or for height and width a number of zeros on both sides, or before and behind.
    """
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise UserError(f"padding={padding!r} of a convolution is not implemented: known are SAME, VALID, numbers.")
        pads = jax.lax.padtype_to_pads(x.shape[1:3], (kernel_size, kernel_size), (stride, stride), padding)
    else:
        pads = [(size, size) if isinstance(size, int) else size for size in padding]
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


class InputConv(nn.Module):
    """A convolution with bias, the kernel optionally weight-standardised at every use.

    `padding` is a number of zeros on every side, or what `pad_unevenly` takes.

    With `constant` [C2], called on x [B, H, W, C1] as if x had C2 more channels of these constant values: their part of
    the result is the same for every image, so it is convolved once. The sum is exact, borders included.
    """

    features: int
    kernel_size: int
    stride: int
    padding: int | str | tuple[Any, ...]
    standardize: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, constant: jax.Array | None = None) -> jax.Array:
        channels = x.shape[-1] + (0 if constant is None else constant.shape[-1])
        shape = (self.kernel_size, self.kernel_size, channels, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.standardize:
            kernel = standardize_weights(kernel)
        kernel, x = kernel.astype(self.dtype), x.astype(self.dtype)
        y = self._convolve(x, kernel[:, :, : x.shape[-1]])
        if constant is not None:
            plane = jnp.broadcast_to(constant.astype(self.dtype), (1, *x.shape[1:3], constant.shape[-1]))
            y = y + self._convolve(plane, kernel[:, :, x.shape[-1] :])
        return y + bias.astype(self.dtype)

    def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        if isinstance(self.padding, int):
            return conv2d(x, kernel, self.stride, self.padding)
        return conv2d(pad_unevenly(x, self.padding, self.kernel_size, self.stride), kernel, self.stride, 0)


class StdConv(InputConv):
    """Weight-standardised convolution; its own name because parameters are stored under it."""

    standardize: bool = True


class FilmConditioning(nn.Module):
    """x * (1 + a(c)) + b(c) for feature maps x [B, H, W, C] and conditions c [B, D]."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        zeros = nn.initializers.zeros
        scale = nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=zeros, bias_init=zeros)(condition)
        shift = nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=zeros, bias_init=zeros)(condition)
        return x * (1 + scale[:, None, None]) + shift[:, None, None]


def check_condition(use_film: bool, condition: jax.Array | None) -> None:
    """Raises UserError if an encoder that is conditioned is given no condition, or one that is not is given one."""
    if bool(use_film) != (condition is not None):
        raise UserError("use_film and task_film_keys of an image tokenizer must be given together.")


class SmallStem(nn.Module):
    """Convolutions with GroupNorm and ReLU, then patches (Xiao et al. 2021).

    Called with uint8 images [B, H, W, C]; `constant_channels` more channels of zeros are understood behind them.
    Returns [B, H / patch_size, W / patch_size, num_features].
    """

    use_film: bool = False
    patch_size: int = 32
    kernel_sizes: tuple[int, ...] = (3, 3, 3, 3)
    strides: tuple[int, ...] = (2, 2, 2, 2)
    features: tuple[int, ...] = (32, 96, 192, 384)
    padding: tuple[Any, ...] = (1, 1, 1, 1)
    num_features: int = 512
    img_norm_type: str = "default"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, constant_channels: int = 0, condition: jax.Array | None = None) -> jax.Array:
        x = normalize_images(images, self.img_norm_type)
        constant = normalize_images(jnp.zeros(constant_channels), self.img_norm_type) if constant_channels else None
        layers = zip(self.features, self.kernel_sizes, self.strides, self.padding, strict=False)
        for features, kernel_size, stride, padding in layers:
            x = StdConv(features, kernel_size, stride, padding, dtype=self.dtype)(x, constant)
            x = nn.relu(nn.GroupNorm(dtype=self.dtype)(x))
            constant = None
        patch = self.patch_size // 16
        x = InputConv(self.num_features, patch, patch, 0, False, dtype=self.dtype, name="embedding")(x, constant)
        check_condition(self.use_film, condition)
        return x if condition is None else FilmConditioning(dtype=self.dtype)(x, condition)


class SmallStem16(SmallStem):
    """SmallStem with patches of 16 pixels."""

    patch_size: int = 16


class SmallStem32(SmallStem):
    """SmallStem with patches of 32 pixels."""


class PatchEncoder(nn.Module):
    """One linear layer per patch; arguments and shapes as SmallStem."""

    use_film: bool = False
    patch_size: int = 32
    num_features: int = 512
    img_norm_type: str = "default"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, constant_channels: int = 0, condition: jax.Array | None = None) -> jax.Array:
        x = normalize_images(images, self.img_norm_type)
        constant = normalize_images(jnp.zeros(constant_channels), self.img_norm_type) if constant_channels else None
        x = InputConv(
            self.num_features, self.patch_size, self.patch_size, 0, False, dtype=self.dtype, name="embedding"
        )(x, constant)
        check_condition(self.use_film, condition)
        return x if condition is None else FilmConditioning(dtype=self.dtype)(x, condition)
