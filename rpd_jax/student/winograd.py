"""Convolutions of 2×2 and 3×3 kernels in fewer multiplications (Winograd 1980; Lavin and Gray 2016).

Two neighbouring outputs of k taps take k + 1 multiplications instead of 2k. In one dimension, for taps g and the inputs
d that two outputs see, y = Aᵀ[(G g)·(Bᵀ d)]. In two dimensions a tile of 2×2 outputs takes (k + 1)² products: 9 instead
of 16 for k = 2, and 16 instead of 36 for k = 3. Each is a matrix product over the channels of all tiles at once.

An image [B, H, W, C] is held as its quarters, the pixels at even and odd places: quarters[a][b] = image[:, a::2, b::2].
What a tile needs at one of its places is then one slice, and no output is ever put between others.
"""

import dataclasses
import functools
import itertools
import operator

import jax
import jax.numpy as jnp
import numpy as np

Quarters = list[list[jax.Array]]
_Matrix = tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class _Tile:
    """Bᵀ, G and Aᵀ of two outputs in one dimension."""

    inputs: _Matrix
    kernel: _Matrix
    outputs: _Matrix


_TILES = {
    2: _Tile(
        inputs=((1, -1, 0), (0, 1, 0), (0, -1, 1)),
        kernel=((1, 0), (1, 1), (0, 1)),
        outputs=((1, 1, 0), (0, 1, 1)),
    ),
    3: _Tile(
        inputs=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        kernel=((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
        outputs=((1, 1, 1, 0), (0, 1, -1, -1)),
    ),
}
KERNEL_SIZES = tuple(_TILES)


@jax.custom_vjp
def quarters_of(images: jax.Array) -> Quarters:
    """The quarters [B, H/2, W/2, C] of images [B, H, W, C] with even H and W."""
    batch, height, width, channels = images.shape
    pairs = images.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return [[pairs[:, :, a, :, b] for b in range(2)] for a in range(2)]


def whole_of(quarters: Quarters) -> jax.Array:
    """The images [B, H, W, C] of which these are the quarters."""
    pairs = jnp.stack([jnp.stack(row, axis=3) for row in quarters], axis=2)
    batch, rows, _, columns, _, channels = pairs.shape
    return pairs.reshape(batch, 2 * rows, 2 * columns, channels)


# What JAX would derive adds four images that are three quarters zeros.
quarters_of.defvjp(lambda images: (quarters_of(images), None), lambda _, grads: (whole_of(grads),))


@jax.custom_vjp
def convolve(images: Quarters, kernel: jax.Array) -> Quarters:
    """out[b, y, x, o] = Σ images[b, y + i, x + j, c] · kernel[o, i, j, c], for the first H - 2 rows and W - 2 columns.

    Args:
        images: quarters [B, H/2, W/2, C], float32, or uint8, which has no gradient.
        kernel: float32 [O, k, k, C] with k of `KERNEL_SIZES`.

    Returns:
        quarters [B, H/2 - 1, W/2 - 1, O].
    """
    tile = _TILES[kernel.shape[1]]
    products = [
        [seen @ taps.T for seen, taps in zip(*rows, strict=True)]
        for rows in zip(_seen(images, tile), _taps(kernel, tile), strict=True)
    ]
    batch, height, width, _ = images[0][0].shape
    return _each(lambda x: x.reshape(batch, height - 1, width - 1, -1), _transform(tile.outputs, products))


def _forward(images, kernel):
    return convolve(images, kernel), (images, kernel)


def _backward(residuals, grads):
    images, kernel = residuals
    features, size, _, _ = kernel.shape
    tile = _TILES[size]
    product_grads = _transform(_transposed(tile.outputs), _each(lambda grad: grad.reshape(-1, features), grads))
    # Gradients times inputs, in this order, is twice as fast as the other way round.
    over_tiles = (((0,), (0,)), ((), ()))
    taps_grads = [
        [jax.lax.dot_general(grad, seen, over_tiles) for grad, seen in zip(*rows, strict=True)]
        for rows in zip(product_grads, _seen(images, tile), strict=True)
    ]
    taps_grads = _transform(_transposed(tile.kernel), taps_grads)
    kernel_grads = jnp.stack([jnp.stack(row, axis=1) for row in taps_grads], axis=1)
    if images[0][0].dtype == jnp.uint8:
        return _each(lambda quarter: np.zeros(quarter.shape, jax.dtypes.float0), images), kernel_grads
    batch, height, width, channels = images[0][0].shape
    seen_grads = [
        [(grad @ taps).reshape(batch, height - 1, width - 1, channels) for grad, taps in zip(*rows, strict=True)]
        for rows in zip(product_grads, _taps(kernel, tile), strict=True)
    ]
    return _overlapped(_transform(_transposed(tile.inputs), seen_grads)), kernel_grads


convolve.defvjp(_forward, _backward)


def _seen(images, tile):
    """Bᵀ d B: what the products see, [places][places] of [tiles, C]."""
    if images[0][0].dtype == jnp.uint8:
        images = _each(lambda quarter: quarter.astype(jnp.float32), images)
    _, height, width, channels = images[0][0].shape
    places = range(len(tile.inputs))

    def at(i, j):
        return images[i % 2][j % 2][:, i // 2 : i // 2 + height - 1, j // 2 : j // 2 + width - 1]

    seen = _transform(tile.inputs, [[at(i, j) for j in places] for i in places])
    return _each(lambda x: x.reshape(-1, channels), seen)


def _taps(kernel, tile):
    """G g Gᵀ: [places][places] of [O, C]."""
    size = kernel.shape[1]
    return _transform(tile.kernel, [[kernel[:, i, j] for j in range(size)] for i in range(size)])


def _overlapped(grads):
    """Adds up, into quarters, the gradients [tiles' rows, columns] at each place of the tiles, which overlap."""

    def shifted(i, j):
        down, right = i // 2, j // 2
        return jnp.pad(grads[i][j], ((0, 0), (down, 1 - down), (right, 1 - right), (0, 0)))

    places = range(len(grads))
    return [
        [
            functools.reduce(operator.add, itertools.starmap(shifted, itertools.product(places[a::2], places[b::2])))
            for b in range(2)
        ]
        for a in range(2)
    ]


def _transform(matrix, grid):
    """M X Mᵀ for a matrix of numbers and a grid X of arrays."""
    return [[_weighted_sum(row, column, grid) for column in matrix] for row in matrix]


def _weighted_sum(row, column, grid):
    """Σ row[i] · column[j] · grid[i][j], without the terms that are zero."""
    terms = [
        row[i] * column[j] * array
        for i, arrays in enumerate(grid)
        for j, array in enumerate(arrays)
        if row[i] * column[j]
    ]
    return functools.reduce(operator.add, terms)


def _transposed(matrix):
    return tuple(zip(*matrix, strict=True))


def _each(function, grid):
    return [[function(array) for array in row] for row in grid]
