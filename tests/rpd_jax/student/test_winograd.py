"""Winograd's convolutions of whole numbers, whose sums float32 holds exactly, are the plain ones to the last bit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpd_jax.student import winograd

# images, channels, features, rows, columns: few, since each is a program to compile
SHAPES = st.sampled_from([(1, 1, 1, 2, 2), (2, 3, 1, 4, 2), (3, 2, 3, 2, 5), (1, 2, 2, 5, 3), (2, 1, 3, 3, 3)])


def plain(images, kernel):
    """The convolution's first H - 2 rows and W - 2 columns."""
    kernel = kernel.transpose(1, 2, 3, 0)
    output = jax.lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return output[:, : images.shape[1] - 2, : images.shape[2] - 2]


def through_quarters(images, kernel):
    return winograd.whole_of(winograd.convolve(winograd.quarters_of(images), kernel))


@pytest.mark.parametrize("size", winograd.KERNEL_SIZES)
@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**32 - 1))
def test_outputs_and_gradients_are_those_of_the_plain_convolution(size, shape, seed):
    batch, channels, features, rows, columns = shape
    random = np.random.default_rng(seed)
    whole_numbers = lambda *shape: random.integers(-9, 10, shape).astype(np.float32)  # noqa: E731
    images = whole_numbers(batch, 2 * rows, 2 * columns, channels)
    kernel = 4 * whole_numbers(features, size, size, channels)  # the tiles of 3×3 kernels take a quarter of them
    grads = 4 * whole_numbers(batch, 2 * rows - 2, 2 * columns - 2, features)
    found, expected = (_output_and_gradients(each, images, kernel, grads) for each in (through_quarters, plain))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@partial(jax.jit, static_argnums=0)  # one program to compile, not one for each operation
def _output_and_gradients(convolution, images, kernel, grads):
    output, vjp = jax.vjp(convolution, images, kernel)
    return output, *vjp(grads)


@pytest.mark.parametrize("size", winograd.KERNEL_SIZES)
def test_bytes_count_as_their_values_also_where_differences_are_negative(size):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2, 8, 6, 3), dtype=np.uint8)
    kernel = random.integers(-3, 4, (5, size, size, 3)).astype(np.float32) * 4
    expected, expected_vjp = jax.vjp(lambda kernel: plain(images.astype(np.float32), kernel), kernel)
    found, found_vjp = jax.vjp(lambda kernel: through_quarters(jnp.asarray(images), kernel), kernel)
    np.testing.assert_array_equal(found, expected)
    grads = np.full(expected.shape, 4.0, np.float32)
    np.testing.assert_array_equal(*found_vjp(grads), *expected_vjp(grads))


def test_quarters_are_the_pixels_at_even_and_odd_places():
    images = np.random.default_rng(0).normal(size=(2, 6, 8, 3)).astype(np.float32)
    quarters = winograd.quarters_of(images)
    for a in range(2):
        for b in range(2):
            np.testing.assert_array_equal(quarters[a][b], images[:, a::2, b::2])
    np.testing.assert_array_equal(winograd.whole_of(quarters), images)
