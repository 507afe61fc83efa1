"""Attention of scaled queries, and its form for labels in bfloat16, which on CUDA never writes its scores to memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

KeyValue = tuple[jax.Array, jax.Array]
# So many queries that see other keys than the rest are worth a product of their own.
_FEW = 8


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | np.ndarray | None,
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


def scaled(query: jax.Array) -> jax.Array:
    """q / sqrt(head_dim)."""
    return query / jnp.sqrt(query.shape[-1]).astype(query.dtype)


def attention_for_labels(
    query: jax.Array, own: KeyValue, prefix: KeyValue | None, mask: jax.Array | np.ndarray | None
) -> jax.Array:
    """Attention without its gradient, in 16-bit numbers, to a cached prefix and the tokens behind it.

    A mask costs the one kernel on CUDA three times as long as no mask. Where it is known while tracing, and all queries
    but a few see the same first keys, as a frame's tokens see everything but the readout, the kernel gets those keys
    and no mask, and the few queries are computed apart.

    Args:
        query: not scaled, [B, Q, heads, head_dim].
        own: keys and values of the tokens themselves, [B, K, heads, head_dim].
        prefix: keys and values before them, [B or 1, P, heads, head_dim].
        mask: bool, broadcastable to [B, 1, Q, P + K]; a NumPy array where it is known; None if everything is visible.

    Returns:
        [B, Q, heads, head_dim].
    """
    before = 0 if prefix is None else prefix[0].shape[1]
    alike = _seen_by_most(mask, at_least=before)
    if alike is None:
        return fused_attention(query, *_joined(prefix, own), mask)
    rows, keys = alike
    y = fused_attention(query, *_joined(prefix, tuple(each[:, : keys - before] for each in own)), None)
    if rows == query.shape[1]:
        return y
    others = _attention_in_parts(query[:, rows:], [own] if prefix is None else [prefix, own], mask[:, :, rows:])
    return jax.lax.dynamic_update_slice_in_dim(y, others, rows, axis=1)


# `arithmetic` knows it by this name: its scores are not among the bytes that it moves.
@jax.jit
def fused_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | np.ndarray | None
) -> jax.Array:
    """`attention` of queries that are not scaled, without its gradient: cuDNN's one kernel (Dao et al. 2022) on CUDA.

    Arguments and result are 16-bit numbers.
    """
    if _is_cuda():
        # cuDNN's kernels have a gradient for even lengths only: this one is for labels.
        return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn")
    return attention(scaled(query), key, value, mask)


def unnormalized_softmax(logits: jax.Array, mask: jax.Array | np.ndarray | None) -> tuple[jax.Array, jax.Array]:
    """Softmax over the last axis as weights and their sum, float32.

    Divided after the sum over keys, the division is over head_dim numbers per query, not over all keys.
    """
    logits = logits.astype(jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    return weights, weights.sum(axis=-1, keepdims=True)


def _seen_by_most(mask: jax.Array | np.ndarray | None, at_least: int) -> tuple[int, int] | None:
    """(rows, keys) where the first `rows` queries see the first `keys` keys and no others, and few queries are left.

    None where that is not so, or is not known while tracing, or the keys are fewer than `at_least`.
    """
    if not isinstance(mask, np.ndarray) or mask.shape[:2] != (1, 1):
        return None
    rules = mask[0, 0]
    keys = int(rules[0].sum())
    same = (rules == (np.arange(rules.shape[1]) < keys)).all(axis=1)
    rows = len(rules) if same.all() else int(same.argmin())
    return (rows, keys) if rows > 0 and len(rules) - rows <= _FEW and keys >= at_least else None


def _joined(prefix: KeyValue | None, own: KeyValue) -> KeyValue:
    """Keys and values of both, one after the other.

    Chosen element by element: on a GPU XLA's concatenation of two arrays takes twice as long.
    """
    if prefix is None:
        return own
    before, behind = prefix[0].shape[1], own[0].shape[1]
    is_prefix = (jnp.arange(before + behind) < before)[:, None, None]

    def join(cached: jax.Array, new: jax.Array) -> jax.Array:
        cached = jnp.pad(cached, ((0, 0), (0, behind), (0, 0), (0, 0)))
        return jnp.where(is_prefix, cached, jnp.pad(new, ((0, 0), (before, 0), (0, 0), (0, 0))))

    return join(prefix[0], own[0]), join(prefix[1], own[1])


def _attention_in_parts(query: jax.Array, parts: list[KeyValue], mask: np.ndarray) -> jax.Array:
    """`attention` of queries that are not scaled to the keys of all parts, which are not put together."""
    query, batch = scaled(query), len(query)
    parts = [tuple(jnp.broadcast_to(each, (batch, *each.shape[1:])) for each in part) for part in parts]
    logits = [jnp.einsum("bqhd,bkhd->bhqk", query, key) for key, _ in parts]
    weights, total = unnormalized_softmax(jnp.concatenate(logits, axis=-1), mask)
    ends = np.cumsum([key.shape[1] for key, _ in parts])[:-1]
    y = sum(
        jnp.einsum("bhqk,bkhd->bhqd", part, value)
        for part, (_, value) in zip(jnp.split(weights.astype(query.dtype), ends, axis=-1), parts, strict=True)
    )
    return (y / total).astype(query.dtype).transpose(0, 2, 1, 3)


def _is_cuda() -> bool:
    client = jax.devices()[0].client
    return client.platform == "gpu" and client.platform_version.startswith("cuda")
