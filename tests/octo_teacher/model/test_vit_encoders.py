"""The convolution of the stems: its gradients, written out for CPUs, are those that JAX derives."""

import jax
import numpy as np
import pytest

from octo_teacher.model.vit_encoders import conv2d


@pytest.mark.parametrize(("size", "stride", "padding"), [(4, 4, 0), (3, 2, 1), (3, 1, 1), (2, 2, 0), (5, 2, 2)])
def test_gradients_are_those_of_xlas_convolution(size, stride, padding):
    random = np.random.default_rng(0)
    x = random.normal(size=(3, 17, 14, 5)).astype(np.float32)
    kernel = random.normal(size=(size, size, 5, 6)).astype(np.float32)

    def xla(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        pads = [(padding, padding)] * 2
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=dimensions)

    expected, expected_vjp = jax.vjp(xla, x, kernel)
    found, found_vjp = jax.vjp(lambda x, kernel: conv2d(x, kernel, stride, padding), x, kernel)
    np.testing.assert_array_equal(found, expected)
    grads = random.normal(size=found.shape).astype(np.float32)
    for ours, theirs in zip(found_vjp(grads), expected_vjp(grads), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
