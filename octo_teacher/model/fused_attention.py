"""Attention of scaled queries, and its form for labels in bfloat16, which on CUDA never writes its scores to memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    drop: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> jax.Array:
    """softmax(q k^T) v per head.

    Args:
        query: scaled by 1 / sqrt(head_dim), [B, Q, heads, head_dim].
        key, value: [B, K, heads, head_dim].
        mask: bool, broadcastable to [B, 1, Q, K]; None if everything is visible.
        drop: applied to the unnormalised weights.

    Returns:
        [B, Q, heads, head_dim] in the queries' dtype.
    """
    weights, total = unnormalized_softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key), mask)
    y = jnp.einsum("bhqk,bkhd->bhqd", drop(weights.astype(query.dtype)), value) / total
    return y.astype(query.dtype).transpose(0, 2, 1, 3)


# `arithmetic` knows it by this name: its scores are not among the bytes that it moves.
@jax.jit
def fused_attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`attention` without its gradient: cuDNN's one kernel (Dao et al. 2022) where there is CUDA; 16-bit numbers."""
    if _is_cuda():
        # cuDNN's kernels have a gradient for even lengths only: this one is for labels.
        return jax.nn.dot_product_attention(query, key, value, mask=mask, scale=1.0, implementation="cudnn")
    return attention(query, key, value, mask)


def unnormalized_softmax(logits: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Softmax over the last axis as weights and their sum, float32.

    Divided after the sum over keys, the division is over head_dim numbers per query, not over all keys.
    """
    logits = logits.astype(jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    return weights, weights.sum(axis=-1, keepdims=True)


def _is_cuda() -> bool:
    client = jax.devices()[0].client
    return client.platform == "gpu" and client.platform_version.startswith("cuda")
