"""Pre-LN transformer blocks, attention pooling, and the cache of a constant prefix."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from octo_teacher.token_groups import TokenGroup

KeyValue = tuple[jax.Array, jax.Array]


class MlpBlock(nn.Module):
    """Dense, tanh-approximated GELU, Dense, with dropout after each."""

    mlp_dim: int
    dropout_rate: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        dense = partial(
            nn.Dense,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            bias_init=nn.initializers.normal(1e-6),
        )
        # As one matrix: XLA's CPU code for GELU after a batched product is several times slower.
        y = nn.gelu(dense(self.mlp_dim)(x.reshape(-1, x.shape[-1])))
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
        mask: jax.Array | None,
        *,
        deterministic: bool = True,
        prefix: KeyValue | None = None,
    ) -> tuple[jax.Array, KeyValue]:
        """Attends from `queries` [B, Q, d] to `x` [B, K, d], and to the cached `prefix` before it.

        Args:
            mask: bool, broadcastable to [B, 1, Q, P + K]; None if everything is visible.
            prefix: keys and values [B or 1, P, heads, head_dim].

        Returns:
            Outputs [B, Q, d], and the keys and values of `x` alone.
        """
        features = queries.shape[-1]
        shape = (self.num_heads, features // self.num_heads)

        def project(tokens: jax.Array, name: str) -> jax.Array:
            init = nn.initializers.xavier_uniform()
            dense = nn.DenseGeneral(shape, dtype=self.dtype, kernel_init=init, name=name)
            return dense(tokens.reshape(-1, features)).reshape(*tokens.shape[:2], *shape)

        query, key, value = project(queries, "query"), project(x, "key"), project(x, "value")
        own = key, value
        if prefix is not None:
            key, value = (
                jnp.concatenate([jnp.broadcast_to(cached, (new.shape[0], *cached.shape[1:])), new], axis=1)
                for cached, new in zip(prefix, own, strict=True)
            )
        query = query / jnp.sqrt(query.shape[-1]).astype(query.dtype)
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32)
        if mask is not None:
            logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
        # Normalised after the sum over keys: the division is then over head_dim numbers per query, not over all keys.
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
        total = weights.sum(axis=-1, keepdims=True)
        weights = nn.Dropout(self.dropout_rate)(weights.astype(self.dtype), deterministic=deterministic)
        y = jnp.einsum("bhqk,bkhd->bhqd", weights, value)
        y = (y / total).astype(self.dtype).transpose(0, 2, 1, 3)
        out = nn.DenseGeneral(
            features, axis=(-2, -1), dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name="out"
        )
        return out(y.reshape(-1, *shape)).reshape(queries.shape), own


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
        out, _ = MultiHeadDotProductAttention(self.num_heads, dtype=self.dtype)(probe, tokens, mask)
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

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None,
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
        y, key_value = MultiHeadDotProductAttention(self.num_heads, self.attention_dropout_rate, self.dtype)(
            queries, normed, mask, deterministic=deterministic, prefix=prefix
        )
        x = x + nn.Dropout(self.dropout_rate)(y, deterministic=deterministic)
        y = nn.LayerNorm(dtype=self.dtype)(x)
        y = MlpBlock(self.mlp_dim, self.dropout_rate, self.dtype)(y, deterministic=deterministic)
        return x + y, key_value


class Transformer(nn.Module):
    """A stack of blocks and a final LayerNorm."""

    num_layers: int
    mlp_dim: int
    num_attention_heads: int
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        *,
        train: bool,
        prefix: tuple[KeyValue, ...] | None = None,
        rows: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[KeyValue, ...]]:
        """Encodes `x` [B, n, d].

        Args:
            mask: bool, broadcastable to [B, 1, n, P + n]; None if everything is visible.
            prefix: per layer, keys and values of P tokens before `x` that do not depend on it.
            rows: the only rows of the output that are wanted; the last layer computes no others.

        Returns:
            The encoded rows, and per layer the keys and values of `x`.
        """
        cache = []
        for layer in range(self.num_layers):
            x, key_value = Encoder1DBlock(
                self.mlp_dim,
                self.num_attention_heads,
                self.dropout_rate,
                self.attention_dropout_rate,
                self.dtype,
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
