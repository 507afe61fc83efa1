"""Operations and bytes counted from a trace equal those counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from octo_teacher.model.fused_attention import fused_attention
from rpd_jax.arithmetic import count

A, B = jnp.zeros((8, 16)), jnp.zeros((16, 4))


def test_a_product():
    work = count(jnp.matmul, A, B)
    assert work.products == {"float32": 2 * 8 * 16 * 4}
    # Its operands and its result, read and written by the product and by the call.
    assert work.bytes == 2 * 4 * (8 * 16 + 16 * 4 + 8 * 4)
    assert work.largest == 4 * 8 * 4


def test_a_loop_counts_as_often_as_it_runs():
    square = jnp.zeros((16, 16))

    def loop(a):
        return jax.lax.scan(lambda carry, _: (carry @ square, None), a, None, length=5)[0]

    assert count(jax.jit(loop), A).flops == 5 * 2 * 8 * 16 * 16


def test_a_convolution():
    frames, kernel = jnp.zeros((2, 10, 10, 3)), jnp.zeros((4, 4, 3, 5))

    def convolve(frames):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(frames, kernel, (2, 2), "VALID", dimension_numbers=layout)

    assert count(convolve, frames).flops == 2 * (2 * 4 * 4 * 5) * (4 * 4 * 3)


@pytest.mark.parametrize("platform, flops", [("cuda", 2 * 8 * 16 * 4), ("cpu", 0)])
def test_the_branch_of_the_platform(platform, flops):
    def branches(a, b):
        return jax.lax.platform_dependent(a, b, cpu=lambda a, b: a[:, :4] + b[:8], default=jnp.matmul)

    assert count(branches, A, B, platform=platform).flops == flops


def test_types_are_counted_apart():
    def both(a, b):
        return a @ b, a.astype(jnp.bfloat16) @ b.astype(jnp.bfloat16)

    assert count(both, A, B).products == {"float32": 1024.0, "bfloat16": 1024.0}


def test_rows_that_are_put_into_an_array_are_moved_and_the_others_stay():
    whole, rows = jnp.zeros((100, 8)), jnp.zeros((3, 8))
    work = count(lambda whole, rows: jax.lax.dynamic_update_slice_in_dim(whole, rows, 5, axis=0), whole, rows)
    by_the_call = 2 * whole.nbytes + rows.nbytes
    assert work.bytes == by_the_call + 2 * rows.nbytes


def test_fused_attention_moves_its_arguments_and_its_result_only():
    query, key = jnp.zeros((2, 5, 3, 8), jnp.bfloat16), jnp.zeros((2, 7, 3, 8), jnp.bfloat16)
    work = count(fused_attention, query, key, key, jnp.ones((1, 1, 5, 7), bool))
    assert work.products == {"bfloat16": 2 * 2 * (2 * 3 * 5 * 7) * 8}
    moved = 2 * (2 * query.size + 2 * key.size) + 5 * 7
    assert work.bytes == 2 * moved  # by the kernel and by the call
    assert work.largest == query.nbytes
    # Elsewhere its scores are written and read like all else.
    assert count(fused_attention, query, key, key, None, platform="cpu").bytes > 4 * 4 * (2 * 3 * 5 * 7)
