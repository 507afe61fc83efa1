"""Strided convolution in the formulation that is fast on the device at hand."""

import jax
import jax.numpy as jnp


def space_to_depth(images: jax.Array, block: int) -> jax.Array:
    """Moves blocks of pixels into channels: [B, H, W, C] -> [B, H/block, W/block, block·block·C]."""
    batch, height, width, channels = images.shape
    images = images.reshape(batch, height // block, block, width // block, block, channels)
    images = images.transpose(0, 1, 3, 2, 4, 5)
    return images.reshape(batch, height // block, width // block, block * block * channels)


def conv2d(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolution without padding: out[b, y, x, o] = Σ images[b, y·s + i, x·s + j, c] · kernel[i, j, c, o].

    Args:
        images: float [B, H, W, C].
        kernel: float [k, k, C, O].
        stride: s.

    Returns:
        float [B, (H − k)//s + 1, (W − k)//s + 1, O].
    """
    kernel = kernel.astype(images.dtype)
    if jax.default_backend() != "cpu" or kernel.shape[0] % stride:
        return _conv(images, kernel, stride)
    if stride > 1:
        images, kernel = _to_stride_one(images, kernel, stride)
    return _stride_one_conv(images, kernel)


def _conv(images, kernel, stride=1):
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _to_stride_one(images, kernel, stride):
    """The same convolution on blocks of stride×stride pixels, which overlap no more."""
    size, _, channels, features = kernel.shape
    height = (images.shape[1] - size) // stride * stride + size
    width = (images.shape[2] - size) // stride * stride + size
    blocks = size // stride
    kernel = kernel.reshape(blocks, stride, blocks, stride, channels, features).transpose(0, 2, 1, 3, 4, 5)
    kernel = kernel.reshape(blocks, blocks, stride * stride * channels, features)
    return space_to_depth(images[:, :height, :width], stride), kernel


@jax.custom_vjp
def _stride_one_conv(images, kernel):
    """Convolution with stride 1 whose gradients are written in what XLA runs fast on a CPU.

    XLA's own gradient with respect to the kernel is a convolution with a kernel as large as the image; on a CPU it
    takes five times the forward pass, and inside a loop a hundred times.
    """
    return _conv(images, kernel)


def _forward(images, kernel):
    return _conv(images, kernel), (images, kernel)


def _backward(residuals, gradient):
    images, kernel = residuals
    size, _, channels, features = kernel.shape
    height, width = gradient.shape[1:3]
    margin = (size - 1, size - 1)
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    images_gradient = _conv(jnp.pad(gradient, ((0, 0), margin, margin, (0, 0))), flipped)
    rows = gradient.reshape(-1, features)
    taps = [
        images[:, i : i + height, j : j + width].reshape(-1, channels).T @ rows
        for i in range(size)
        for j in range(size)
    ]
    return images_gradient, jnp.stack(taps).reshape(kernel.shape)


_stride_one_conv.defvjp(_forward, _backward)


def resize_frames(frames: jax.Array, size: int) -> jax.Array:
    """Scales square frames down or up to size×size, each pixel the mean over its area; no-op at the same size.

    Args:
        frames: uint8 [..., H, H, 3].
        size: new height and width.

    Returns:
        uint8 [..., size, size, 3], rounded, so that a resized frame can be stored like any other.
    """
    *batch, height, width, channels = frames.shape
    if height == size and width == size:
        return frames
    pixels = frames.astype(jnp.float32)
    if height % size == 0 and width % size == 0:
        pixels = pixels.reshape(*batch, size, height // size, size, width // size, channels).mean(axis=(-4, -2))
    else:
        pixels = jax.image.resize(pixels, (*batch, size, size, channels), "linear", antialias=True)
    return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)
