"""Pre-LN transformer blocks, attention pooling, and the cache of a constant prefix."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from octo_teacher.model.fused_attention import KeyValue, attention, attention_for_labels, scaled, unnormalized_softmax
from octo_teacher.model.token_groups import TokenGroup


class MlpBlock(nn.Module):
    """Dense, tanh-approximated GELU, Dense, with dropout after each."""

    mlp_dim: int
    dropout_rate: float = 0.1
    dtype: Any = jnp.float32
    straightforward: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        dense = partial(
            nn.Dense,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            bias_init=nn.initializers.normal(1e-6),
        )
        # As one matrix: XLA's CPU code for GELU after a batched product is several times slower.
        y = nn.gelu(dense(self.mlp_dim)(x if self.straightforward else x.reshape(-1, x.shape[-1])))
        y = nn.Dropout(self.dropout_rate)(y, deterministic=deterministic)
        y = dense(x.shape[-1])(y).reshape(x.shape)
        return nn.Dropout(self.dropout_rate)(y, deterministic=deterministic)


class MultiHeadDotProductAttention(nn.Module):
    """softmax(q k^T / sqrt(head_dim)) v per head, then an output projection.

    A query without a permitted key averages all keys: masked logits are the most negative float, not minus infinity.
    """

    num_heads: int
    dropout_rate: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        queries: jax.Array,
        x: jax.Array,
        mask: jax.Array | np.ndarray | None,
        *,
        deterministic: bool = True,
        prefix: KeyValue | None = None,
        few_queries: bool = False,
    ) -> tuple[jax.Array, KeyValue | None]:
        """Attends from `queries` [B, Q, d] to `x` [B, K, d], and to the cached `prefix` before it.

        Args:
            mask: bool, broadcastable to [B, 1, Q, P + K]; a NumPy array where it is known while tracing, which is
                faster, see `attention_for_labels`; None if everything is visible.
            prefix: keys and values [B or 1, P, heads, head_dim].
            few_queries: do not compute the keys and values of `x`; see `_attend_without_keys`. Not for initialising.

        Returns:
            Outputs [B, Q, d], and the keys and values of `x` alone (None with `few_queries`).
        """
        features = queries.shape[-1]
        shape = (self.num_heads, features // self.num_heads)

        def project(tokens: jax.Array, name: str) -> jax.Array:
            init = nn.initializers.xavier_uniform()
            dense = nn.DenseGeneral(shape, dtype=self.dtype, kernel_init=init, name=name)
            return dense(tokens.reshape(-1, features)).reshape(*tokens.shape[:2], *shape)

        query = project(queries, "query")
        if few_queries:
            own, y = None, self._attend_without_keys(scaled(query), x, mask, prefix)
        else:
            own = key, value = project(x, "key"), project(x, "value")
            if deterministic and self.dtype == jnp.bfloat16:
                y = attention_for_labels(query, own, prefix, mask)
            else:
                if prefix is not None:
                    key, value = (
                        jnp.concatenate([jnp.broadcast_to(cached, (new.shape[0], *cached.shape[1:])), new], axis=1)
                        for cached, new in zip(prefix, own, strict=True)
                    )
                drop = nn.Dropout(self.dropout_rate, deterministic=deterministic)
                y = attention(scaled(query), key, value, mask, drop)
        out = nn.DenseGeneral(
            features, axis=(-2, -1), dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name="out"
        )
        return out(y.reshape(-1, *shape)).reshape(queries.shape), own

    def _attend_without_keys(
        self, query: jax.Array, x: jax.Array, mask: jax.Array | np.ndarray | None, prefix: KeyValue | None
    ) -> jax.Array:
        """Attention of scaled queries [B, Q, heads, head_dim] to `x`, [B, Q, heads, head_dim], without dropout.

        q · (W x + b) = (W^T q) · x + q · b, and the weighted sum of W x + b is W (weighted sum of x) + b · (sum of
        weights). For a few queries this takes far fewer operations than the keys and values of every row of `x`.
        """
        params = jax.tree.map(lambda leaf: leaf.astype(self.dtype), self.variables["params"])
        key, value = params["key"], params["value"]
        logits = jnp.einsum("bqhe,bke->bhqk", jnp.einsum("bqhd,ehd->bqhe", query, key["kernel"]), x)
        logits += jnp.einsum("bqhd,hd->bhq", query, key["bias"])[..., None]
        if prefix is not None:
            keys, values = (jnp.broadcast_to(cached, (len(x), *cached.shape[1:])) for cached in prefix)
            logits = jnp.concatenate([jnp.einsum("bqhd,bkhd->bhqk", query, keys), logits], axis=-1)
        weights, total = unnormalized_softmax(logits, mask)
        weights = weights.astype(self.dtype)
        own = weights[..., -x.shape[1] :]
        y = jnp.einsum("bhqe,ehd->bhqd", jnp.einsum("bhqk,bke->bhqe", own, x), value["kernel"])
        y += own.sum(axis=-1, keepdims=True) * value["bias"][:, None]
        if prefix is not None:
            y += jnp.einsum("bhqk,bkhd->bhqd", weights[..., : -x.shape[1]], values)
        return (y / total).astype(self.dtype).transpose(0, 2, 1, 3)


class MAPHead(nn.Module):
    """Multi-head attention pooling (Lee et al. 2019): learned probes attend to the visible tokens of one timestep.

    Called with a TokenGroup or an array [..., n, d]; returns [..., num_readouts, d] = out + MLP(LayerNorm(out)),
    without a residual from the probes.
    """

    num_heads: int = 8
    num_readouts: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, group: TokenGroup | jax.Array, *, train: bool) -> jax.Array:
        tokens, mask = (group.tokens, group.mask) if isinstance(group, TokenGroup) else (group, None)
        *batch, length, features = tokens.shape
        tokens = tokens.reshape(-1, length, features)
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, self.num_readouts, features))
        probe = jnp.broadcast_to(probe, (tokens.shape[0], self.num_readouts, features)).astype(self.dtype)
        if mask is not None:
            mask = mask.astype(bool).reshape(-1, 1, 1, length)
        out, _ = MultiHeadDotProductAttention(self.num_heads, dtype=self.dtype)(
            probe, tokens, mask, deterministic=not train
        )
        y = nn.LayerNorm(dtype=self.dtype)(out)
        out = out + MlpBlock(4 * features, dtype=self.dtype)(y, deterministic=not train)
        return out.reshape(*batch, self.num_readouts, features)


class Encoder1DBlock(nn.Module):
    """x + Attention(LN(x)), then x + MLP(LN(x)); only for the rows `rows` if they are given."""

    mlp_dim: int
    num_heads: int
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    dtype: Any = jnp.float32
    straightforward: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | np.ndarray | None,
        *,
        deterministic: bool,
        prefix: KeyValue | None = None,
        rows: jax.Array | None = None,
    ) -> tuple[jax.Array, KeyValue]:
        normed = nn.LayerNorm(dtype=self.dtype)(x)
        queries = normed
        if rows is not None:
            x, queries = x[:, rows], normed[:, rows]
            mask = None if mask is None else mask[:, :, rows]
        if self.straightforward:
            attention = nn.MultiHeadDotProductAttention(
                self.num_heads, dtype=self.dtype, dropout_rate=self.attention_dropout_rate
            )
            y, key_value = attention(queries, normed, mask=mask, deterministic=deterministic), None
        else:
            few = rows is not None and len(rows) * self.num_heads <= x.shape[-1] // 2
            y, key_value = MultiHeadDotProductAttention(self.num_heads, self.attention_dropout_rate, self.dtype)(
                queries, normed, mask, deterministic=deterministic, prefix=prefix, few_queries=few
            )
        x = x + nn.Dropout(self.dropout_rate)(y, deterministic=deterministic)
        y = nn.LayerNorm(dtype=self.dtype)(x)
        y = MlpBlock(self.mlp_dim, self.dropout_rate, self.dtype, self.straightforward)(y, deterministic=deterministic)
        return x + y, key_value


class Transformer(nn.Module):
    """A stack of blocks and a final LayerNorm.

    With `straightforward`, written as one would without thought of speed (flax's own attention, products of
    three-dimensional arrays): what the fast path is measured against. It knows neither `prefix` nor `rows`.
    """

    num_layers: int
    mlp_dim: int
    num_attention_heads: int
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    dtype: Any = jnp.float32
    straightforward: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | np.ndarray | None,
        *,
        train: bool,
        prefix: tuple[KeyValue, ...] | None = None,
        rows: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[KeyValue, ...]]:
        """Encodes `x` [B, n, d].

        Args:
            mask: bool, broadcastable to [B, 1, n, P + n]; None if everything is visible. A NumPy array is faster.
            prefix: per layer, keys and values of P tokens before `x` that do not depend on it.
            rows: the only rows of the output that are wanted; the last layer computes no others.

        Returns:
            The encoded rows, and per layer the keys and values of `x` (None where they were not computed).
        """
        cache = []
        for layer in range(self.num_layers):
            x, key_value = Encoder1DBlock(
                self.mlp_dim,
                self.num_attention_heads,
                self.dropout_rate,
                self.attention_dropout_rate,
                self.dtype,
                self.straightforward,
                name=f"encoderblock_{layer}",
            )(
                x,
                mask,
                deterministic=not train,
                prefix=None if prefix is None else prefix[layer],
                rows=rows if layer == self.num_layers - 1 else None,
            )
            cache.append(key_value)
        return nn.LayerNorm(dtype=self.dtype, name="encoder_norm")(x), tuple(cache)
