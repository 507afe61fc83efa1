"""Attention in one kernel gives what attention in float32 does, as far as bfloat16 can tell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octo_teacher.model.fused_attention import attention, attention_for_labels, fused_attention, scaled
from octo_teacher.model.transformer import MAPHead

BATCH, QUERIES, KEYS, HEADS, HEAD_DIM = 3, 21, 37, 4, 64


def arguments(masked):
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value = (
        jax.random.normal(k, (BATCH, n, HEADS, HEAD_DIM)).astype(jnp.bfloat16)
        for k, n in zip(keys, (QUERIES, KEYS, KEYS), strict=False)
    )
    mask = jax.random.bernoulli(keys[3], 0.5, (1, 1, QUERIES, KEYS)) if masked else None
    return query, key, value, mask


def expected(query, key, value, mask):
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(HEAD_DIM)
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
    assert_is_attention(lambda query, *others: attention(scaled(query), *others), masked)


def rules(kind):
    """bool [Q, P + K]: a frame's tokens do not see the readout behind them."""
    mask = np.ones((QUERIES, KEYS), bool)
    if kind == "readout":
        mask[:-1, -1] = False
    elif kind == "two readouts":
        mask[:-2, -2:] = False
        mask[-2, -1] = mask[-1, -2] = False
    elif kind == "prefix alone":
        mask[:-1, 3:] = False
    elif kind == "all over":
        mask = np.random.default_rng(0).random((QUERIES, KEYS)) < 0.5
    return mask[None, None]


KINDS = ("everything", "readout", "two readouts", "prefix alone", "all over")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix_rows, prefix_batch", [(0, 1), (16, 1), (16, BATCH)])
def test_attention_behind_a_prefix_whose_mask_is_known(kind, prefix_rows, prefix_batch):
    query, key, value, _ = arguments(masked=False)
    prefix = None
    if prefix_rows:
        prefix = tuple(each[:prefix_batch, :prefix_rows] for each in (key, value))
        key, value = (
            jnp.concatenate([jnp.broadcast_to(cached, (BATCH, *cached.shape[1:])), each[:, prefix_rows:]], axis=1)
            for cached, each in zip(prefix, (key, value), strict=True)
        )
    own = key[:, prefix_rows:], value[:, prefix_rows:]
    mask = rules(kind)
    # Twice, the second time as a mask that is known when it runs.
    for given in (mask, jnp.asarray(mask)):
        y = attention_for_labels(query, own, prefix, given)
        np.testing.assert_allclose(np.asarray(y, np.float64), expected(query, key, value, mask), atol=0.02)
        assert y.dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_gets_a_mask_only_where_it_needs_one(kind):
    """With a mask it takes three times as long on a GPU (docs/gpu.md)."""
    query, key, value, _ = arguments(masked=False)
    prefix, own = (key[:1, :16], value[:1, :16]), (key[:, 16:], value[:, 16:])
    jaxpr = jax.make_jaxpr(lambda *given: attention_for_labels(*given, rules(kind)))(query, own, prefix)
    (kernel,) = (equation for equation in jaxpr.eqns if equation.params.get("name") == "fused_attention")
    given = [variable.aval for variable in kernel.invars]
    needs_one = kind in ("prefix alone", "all over")
    assert any(aval.dtype == bool for aval in given) == needs_one
    unseen = {"readout": 1, "two readouts": 2}.get(kind, 0)
    assert given[1].shape == (BATCH, KEYS - unseen, HEADS, HEAD_DIM)


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
