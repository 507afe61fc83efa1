"""Convolutions in the formulation that is fast on the device at hand, and the resizing of frames."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

# On a CPU a few images at a time go through all layers, so that what is between layers stays in a core's second-level
# cache: about this many bytes of the first layer's input.
_CHUNK_BYTES = 500_000


def space_to_depth(images: jax.Array, block: int) -> jax.Array:
    """Moves blocks of pixels into channels: [B, H, W, C] -> [B, H/block, W/block, block·block·C]."""
    batch, height, width, channels = images.shape
    images = images.reshape(batch, height // block, block, width // block, block, channels)
    images = images.transpose(0, 1, 3, 2, 4, 5)
    return images.reshape(batch, height // block, width // block, block * block * channels)


def conv_stack(
    frames: jax.Array, layers: Sequence[tuple[jax.Array, jax.Array]], strides: Sequence[int], dtype: jnp.dtype
) -> jax.Array:
    """Convolutions without padding, each followed by a bias and a ReLU, over frames scaled to [0, 1].

    Args:
        frames: uint8 [B, H, W, C].
        layers: kernel float32 [k, k, C, O] and bias float32 [O] of each layer.
        strides: of each layer.
        dtype: in which the layers compute.

    Returns:
        [B, H', W', O'] of that dtype.
    """

    def all_layers(frames):
        images = frames.astype(dtype) / 255.0
        for (kernel, bias), stride in zip(layers, strides, strict=True):
            images = jax.nn.relu(conv2d(images, kernel.astype(dtype), stride) + bias.astype(dtype))
        return images

    if jax.default_backend() != "cpu":
        return all_layers(frames)
    batch, *shape = frames.shape
    limit = max(_CHUNK_BYTES // (4 * np.prod(shape)), 1)
    chunk = max(divisor for divisor in range(1, batch + 1) if batch % divisor == 0 and divisor <= limit)
    outputs = jax.lax.map(all_layers, frames.reshape(batch // chunk, chunk, *shape))
    return outputs.reshape(batch, *outputs.shape[2:])


def conv2d(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolution without padding: out[b, y, x, o] = Σ images[b, y·s + i, x·s + j, c] · kernel[i, j, c, o].

    Args:
        images: float [B, H, W, C].
        kernel: [k, k, C, O] of the same dtype.
        stride: s.

    Returns:
        [B, (H − k)//s + 1, (W − k)//s + 1, O].
    """
    size, _, channels, features = kernel.shape
    if jax.default_backend() != "cpu" or size % stride:
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(images, kernel, (stride, stride), "VALID", dimension_numbers=dimensions)
    if stride > 1:
        # The same convolution on blocks of stride×stride pixels, which overlap no more.
        blocks = size // stride
        height, width = ((pixels - size) // stride * stride + size for pixels in images.shape[1:3])
        images = space_to_depth(images[:, :height, :width], stride)
        kernel = kernel.reshape(blocks, stride, blocks, stride, channels, features).transpose(0, 2, 1, 3, 4, 5)
        kernel = kernel.reshape(blocks, blocks, stride * stride * channels, features)
    return _stride_one_conv(images, kernel)


# XLA's convolutions reach a third of the speed of its matrix products on a CPU, and their gradients much less. So a
# convolution is a product per element of the kernel, and so are its gradients.


@jax.custom_vjp
def _stride_one_conv(images, kernel):
    size, _, channels, features = kernel.shape
    pixels = images.reshape(-1, channels)
    products = [(pixels @ kernel[tap]).reshape(*images.shape[:3], features) for tap in np.ndindex(size, size)]
    return sum(_windows(product, size)[tap] for tap, product in enumerate(products))


def _forward(images, kernel):
    return _stride_one_conv(images, kernel), (images, kernel)


def _backward(residuals, grads):
    images, kernel = residuals
    size = kernel.shape[0]
    margin = (size - 1, size - 1)
    padded = jnp.pad(grads, ((0, 0), margin, margin, (0, 0)))
    image_grads = _stride_one_conv(padded, kernel[::-1, ::-1].transpose(0, 1, 3, 2))
    return image_grads, _kernel_grads(images, size, grads)


_stride_one_conv.defvjp(_forward, _backward)


def _kernel_grads(images, size, grads):
    features, channels = grads.shape[-1], images.shape[-1]
    windows = _windows(images, size)
    if size > 2:
        # Many small products are worth the copy into one matrix.
        windows = [jnp.concatenate(windows, axis=-1)]
    # Gradients times windows, in this order, is twice as fast as the other way round.
    product = partial(jax.lax.dot_general, dimension_numbers=(((0,), (0,)), ((), ())))
    grads = grads.reshape(-1, features)
    products = [product(grads, window.reshape(-1, window.shape[-1])) for window in windows]
    return jnp.concatenate(products, axis=1).T.reshape(size, size, channels, features)


def _windows(images, size):
    """What each of the kernel's k·k elements sees of the images, [B, H', W', C] each."""
    rows, columns = images.shape[1] - size + 1, images.shape[2] - size + 1
    return [images[:, i : i + rows, j : j + columns] for i, j in np.ndindex(size, size)]


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
