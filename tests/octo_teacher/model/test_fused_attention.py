"""Attention in one kernel gives what attention in float32 does, as far as bfloat16 can tell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octo_teacher.model.fused_attention import attention, fused_attention
from octo_teacher.model.transformer import MAPHead

BATCH, QUERIES, KEYS, HEADS, HEAD_DIM = 3, 21, 37, 4, 64


def arguments(masked):
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value = (
        jax.random.normal(k, (BATCH, n, HEADS, HEAD_DIM)).astype(jnp.bfloat16)
        for k, n in zip(keys, (QUERIES, KEYS, KEYS), strict=False)
    )
    mask = jax.random.bernoulli(keys[3], 0.5, (1, 1, QUERIES, KEYS)) if masked else None
    return query / 8, key, value, mask  # √64


def expected(query, key, value, mask):
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value)


def assert_is_attention(function, masked):
    given = arguments(masked)
    # A sum of values of some units, in numbers of eight bits.
    np.testing.assert_allclose(np.asarray(function(*given), np.float64), expected(*given), atol=0.02)
    assert function(*given).dtype == jnp.bfloat16


@pytest.mark.parametrize("masked", [False, True])
def test_fused_attention_is_attention(masked):
    assert_is_attention(fused_attention, masked)
    assert_is_attention(attention, masked)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX sees no CUDA device")
@pytest.mark.parametrize("masked", [False, True])
def test_on_a_gpu_it_is_one_kernel(masked):
    assert_is_attention(fused_attention, masked)
    assert "fmha" in jax.jit(fused_attention).lower(*arguments(masked)).as_text()


def test_pooling_that_is_trained_has_a_gradient():
    """Labels' kernel has none for lengths that are odd: a head in training does not take it."""
    head = MAPHead(num_heads=2, dtype=jnp.bfloat16)
    tokens = jax.random.normal(jax.random.key(0), (2, 5, 8)).astype(jnp.bfloat16)
    params = head.init(jax.random.key(1), tokens, train=False)

    def program(train):
        dropout = {"dropout": jax.random.key(2)}
        return str(jax.make_jaxpr(lambda params: head.apply(params, tokens, train=train, rngs=dropout))(params))

    assert "fused_attention" in program(False) and "fused_attention" not in program(True)
