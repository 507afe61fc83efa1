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
    return jax.lax.conv_general_dilated(
        images, kernel.astype(images.dtype), (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


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
