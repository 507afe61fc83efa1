"""Convolutions in the formulation that is fast on the device at hand, and the resizing of frames."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# On a CPU a few images at a time go through all layers, so that what is between layers stays in a core's second-level
# cache: about this many bytes of the first layer's input.
_CHUNK_BYTES = 800_000


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

    A convolution is out[b, y, x, o] = Σ images[b, y·s + i, x·s + j, c] · kernel[i, j, c, o].

    Args:
        frames: uint8 [B, H, W, C].
        layers: kernel float32 [k, k, C, O] and bias float32 [O] of each layer.
        strides: s of each layer.
        dtype: in which the layers compute.

    Returns:
        [B, H', W', O'] of that dtype.
    """
    layers = [(kernel.astype(dtype), bias.astype(dtype)) for kernel, bias in layers]
    divisible = all(len(kernel) % stride == 0 for (kernel, _), stride in zip(layers, strides, strict=True))
    if jax.default_backend() == "cpu" and divisible:
        return _stack_of_products(frames, layers, strides)
    images = frames.astype(dtype) / 255.0
    for (kernel, bias), stride in zip(layers, strides, strict=True):
        dimensions = ("NHWC", "HWIO", "NHWC")
        images = jax.lax.conv_general_dilated(images, kernel, (stride, stride), "VALID", dimension_numbers=dimensions)
        images = jax.nn.relu(images + bias)
    return images


# On a CPU, XLA's convolutions reach a third of the speed of its matrix products, and their gradients much less. So a
# convolution is a product with the matrix of what the kernel sees, and so are its gradients.


def _stack_of_products(frames, layers, strides):
    sizes = [len(kernel) for kernel, _ in layers]
    products = [(_blocked_kernel(kernel, stride), bias) for (kernel, bias), stride in zip(layers, strides, strict=True)]
    # Once for all frames: inside the loop it would be computed for every element of the kernel.
    frames = jax.lax.optimization_barrier(_blocks(frames, sizes[0], strides[0]))

    def all_layers(images):
        for number, (kernel, bias) in enumerate(products):
            if number:
                images = _blocks(images, sizes[number], strides[number])
            images = jax.nn.relu(_product_conv(images, kernel) + bias)
        return images

    batch, *shape = frames.shape
    limit = max(_CHUNK_BYTES // (4 * np.prod(shape)), 1)
    chunk = max(divisor for divisor in range(1, batch + 1) if batch % divisor == 0 and divisor <= limit)
    outputs = jax.lax.map(all_layers, frames.reshape(batch // chunk, chunk, *shape))
    return outputs.reshape(batch, *outputs.shape[2:])


def _blocks(images, size, stride):
    """Blocks of stride×stride pixels as channels: a kernel of that stride overlaps them by whole blocks."""
    height, width = ((pixels - size) // stride * stride + size for pixels in images.shape[1:3])
    return images if stride == 1 else space_to_depth(images[:, :height, :width], stride)


def _blocked_kernel(kernel, stride):
    """The kernel [k, k, C, O] as it acts on such blocks with stride 1: [O, k/s, k/s, s·s·C]."""
    size, _, channels, features = kernel.shape
    kernel = kernel.reshape(size // stride, stride, size // stride, stride, channels, features)
    # Features first: the kernel's gradient is then a product that XLA leaves in its fast order.
    return kernel.transpose(5, 0, 2, 1, 3, 4).reshape(features, size // stride, size // stride, -1)


@jax.custom_vjp
def _product_conv(images, kernel):
    features, size = kernel.shape[:2]
    rows, columns = (pixels - size + 1 for pixels in images.shape[1:3])
    product = _seen(images, size, kernel.dtype) @ kernel.reshape(features, -1).T
    return product.reshape(len(images), rows, columns, features)


def _forward(images, kernel):
    return _product_conv(images, kernel), (images, kernel)


def _backward(residuals, grads):
    images, kernel = residuals
    features, size = kernel.shape[:2]
    flat = grads.reshape(-1, features)
    # Gradients times images, in this order, is twice as fast as the other way round.
    over_positions = (((0,), (0,)), ((), ()))
    kernel_grads = jax.lax.dot_general(flat, _seen(images, size, kernel.dtype), over_positions).reshape(kernel.shape)
    if images.dtype == jnp.uint8:
        return np.zeros(images.shape, jax.dtypes.float0), kernel_grads
    taps = (flat @ kernel.reshape(features, -1)).reshape(*grads.shape[:3], size * size, -1)
    image_grads = jnp.zeros_like(images)
    rows, columns = grads.shape[1:3]
    for tap, (i, j) in enumerate(np.ndindex(size, size)):
        image_grads = image_grads.at[:, i : i + rows, j : j + columns].add(taps[..., tap, :])
    return image_grads, kernel_grads


_product_conv.defvjp(_forward, _backward)


def _seen(images, size, dtype):
    """What the kernel sees at each place, scaled to [0, 1] if of bytes: [B·H'·W', k·k·C]."""
    rows, columns = (pixels - size + 1 for pixels in images.shape[1:3])
    matrix = jnp.zeros((len(images), rows, columns, size * size, images.shape[-1]), dtype)
    for tap, (i, j) in enumerate(np.ndindex(size, size)):
        window = images[:, i : i + rows, j : j + columns]
        window = window.astype(dtype) / 255.0 if images.dtype == jnp.uint8 else window
        matrix = matrix.at[..., tap, :].set(window)  # faster than one concatenation, which selects per element
    return matrix.reshape(len(images) * rows * columns, -1)


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
