"""Convolutions in the formulation that is fast on the device that computes them, and the resizing of frames."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from rpd_jax.cores import xla_threads
from rpd_jax.student import winograd

# On a CPU a few images at a time go through all layers, so that what is between layers stays in the second-level caches
# of the cores: about this many bytes of the first layer's input in float32 for each of XLA's threads, which share them.
_CHUNK_BYTES = 1_600_000

# Added before a resized pixel is cut to a whole level: many lie halfway between two, 5% of those of 128 px at 96, where
# another order of summation, on another processor or in an exported policy, must not decide.
HALF_AND_A_LITTLE = 0.5 + 2**-9


def space_to_depth(images: jax.Array, block: int) -> jax.Array:
    """Moves blocks of pixels into channels: [B, H, W, C] -> [B, H/block, W/block, block·block·C]."""
    batch, height, width, channels = images.shape
    images = images.reshape(batch, height // block, block, width // block, block, channels)
    images = images.transpose(0, 1, 3, 2, 4, 5)
    return images.reshape(batch, height // block, width // block, block * block * channels)


@partial(jax.jit, static_argnames=("strides", "dtype"))
def conv_stack(
    frames: jax.Array, layers: Sequence[tuple[jax.Array, jax.Array]], strides: tuple[int, ...], dtype: jnp.dtype
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
    sizes = [len(kernel) / stride for (kernel, _), stride in zip(layers, strides, strict=True)]
    fits = set(sizes) <= set(winograd.KERNEL_SIZES) and set(strides[1:]) <= {1, 2}
    plain = partial(_stack_of_convolutions, strides=strides, dtype=dtype)
    if not fits:
        return plain(frames, layers)
    # By the platform that the program is for, which need not be the one that it is made on.
    products = partial(_stack_of_products, strides=strides, dtype=dtype)
    return jax.lax.platform_dependent(frames, layers, cpu=products, default=plain)


def _stack_of_convolutions(frames, layers, strides, dtype):
    images = frames.astype(dtype) / 255.0
    for (kernel, bias), stride in zip(layers, strides, strict=True):
        images = jax.lax.conv_general_dilated(
            images, kernel.astype(dtype), (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        images = jax.nn.relu(images + bias.astype(dtype))
    return images


# On a CPU, XLA's convolutions reach a third of the speed of its matrix products, and their gradients much less. So they
# are computed as matrix products: with blocks of stride×stride pixels as channels, every convolution has stride 1.
# Narrower types are float32 rounded to them, since few CPUs have anything faster.


def _stack_of_products(frames, layers, strides, dtype):
    layers = jax.tree.map(lambda parameter: _rounded(parameter, dtype), layers)
    kernels = [_blocked_kernel(kernel, stride) for (kernel, _), stride in zip(layers, strides, strict=True)]
    kernels[0] = kernels[0] / 255.0
    biases = [bias for _, bias in layers]
    block = strides[0]
    blocked_sides = tuple(pixels // block for pixels in frames.shape[1:3])
    blocks = space_to_depth(_fitted(frames, [side * block for side in blocked_sides]), block)
    # Once for all frames: inside the loop they would be cut out anew for each product.
    quarters = jax.lax.optimization_barrier(_quarters_for(kernels[0], blocks, blocked_sides))

    def all_layers(quarters):
        sides = blocked_sides
        for number, (kernel, bias, stride) in enumerate(zip(kernels, biases, strides, strict=True)):
            if number and stride == 2:  # the quarters' channels side by side are blocks of 2×2 pixels
                sides = tuple(side // 2 for side in sides)
                side_by_side = jnp.concatenate([*quarters[0], *quarters[1]], axis=-1)
                quarters = _quarters_for(kernel, side_by_side, sides)
            elif number:
                seen = [count + 1 for count in _tiles(kernel, sides)]
                quarters = [[_fitted(quarter, seen) for quarter in row] for row in quarters]
            quarters = winograd.convolve(quarters, kernel)
            quarters = [[_rounded(jax.nn.relu(quarter + bias), dtype) for quarter in row] for row in quarters]
            sides = tuple(side - kernel.shape[1] + 1 for side in sides)
        return _fitted(winograd.whole_of(quarters), sides)

    batch = len(frames)
    number, chunk = _chunks(batch, limit=max(xla_threads() * _CHUNK_BYTES // (4 * math.prod(blocks.shape[1:])), 1))

    def in_chunks(quarter):
        padded = jnp.pad(quarter, ((0, number * chunk - batch), (0, 0), (0, 0), (0, 0)))
        return padded.reshape(number, chunk, *quarter.shape[1:])

    outputs = jax.lax.map(all_layers, jax.tree.map(in_chunks, quarters))
    return outputs.reshape(number * chunk, *outputs.shape[2:])[:batch].astype(dtype)


def _chunks(batch, limit):
    """How many chunks of how many images, `limit` at most: equal ones, or else a few images more than there are."""
    chunk = max(divisor for divisor in range(1, min(batch, limit) + 1) if batch % divisor == 0)
    if 2 * chunk >= min(batch, limit):
        return batch // chunk, chunk
    number = -(-batch // limit)
    return number, -(-batch // number)


def _rounded(x, dtype):
    """float32 with the precision of a narrower type; so is its gradient."""
    if dtype == jnp.float32:
        return x
    # XLA may leave out a pair of casts, but not this.
    return jax.lax.reduce_precision(x, jnp.finfo(dtype).nexp, jnp.finfo(dtype).nmant)


def _blocked_kernel(kernel, stride):
    """The kernel [k, k, C, O] as it acts on such blocks with stride 1: [O, k/s, k/s, s·s·C]."""
    size, _, channels, features = kernel.shape
    kernel = kernel.reshape(size // stride, stride, size // stride, stride, channels, features)
    # Features first: the kernel's gradient is then a product that XLA leaves in its fast order.
    return kernel.transpose(5, 0, 2, 1, 3, 4).reshape(features, size // stride, size // stride, -1)


def _tiles(kernel, sides):
    """How many pairs of outputs a blocked kernel has along each side."""
    return [(side - kernel.shape[1] + 2) // 2 for side in sides]


def _quarters_for(kernel, images, sides):
    """The quarters that a blocked kernel needs of images; it does not look at what is beyond `sides`."""
    return winograd.quarters_of(_fitted(images, [2 * count + 2 for count in _tiles(kernel, sides)]))


def _fitted(images, sides):
    """Images [B, H, W, C] cut to new sides, or with zeros below and to the right."""
    missing = [max(side - pixels, 0) for side, pixels in zip(sides, images.shape[1:3], strict=True)]
    padded = jnp.pad(images, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
    return padded[:, : sides[0], : sides[1]]


def resize_frames(frames: jax.Array, size: int) -> jax.Array:
    """Scales square frames down or up to size×size, each pixel the mean over its area; no-op at the same size.

    Args:
        frames: uint8 [..., H, H, 3].
        size: new height and width.

    Returns:
        uint8 [..., size, size, 3], rounded, halves up, so that a resized frame can be stored like any other.
    """
    *batch, height, width, channels = frames.shape
    if height == size and width == size:
        return frames
    pixels = frames.astype(jnp.float32)
    if height % size == 0 and width % size == 0:
        pixels = pixels.reshape(*batch, size, height // size, size, width // size, channels).mean(axis=(-4, -2))
    else:
        pixels = jax.image.resize(pixels, (*batch, size, size, channels), "linear", antialias=True)
    return jnp.clip(jnp.floor(pixels + HALF_AND_A_LITTLE), 0, 255).astype(jnp.uint8)
