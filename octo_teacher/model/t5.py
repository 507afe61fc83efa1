"""T5's encoder (Raffel et al. 2020) in Flax, with the parameter names of the weights inside Octo checkpoints."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rpd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Hyper-parameters of a T5 encoder, named as in Hugging Face's config.json."""

    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    vocab_size: int = 32128
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    feed_forward_proj: str = "relu"
    layer_norm_epsilon: float = 1e-6


def _gated(*sizes: int) -> T5Config:
    return T5Config(*sizes, feed_forward_proj="gated-gelu")


KNOWN_SIZES: dict[str, T5Config] = {
    "t5-small": T5Config(512, 64, 2048, 6, 8),
    "t5-base": T5Config(768, 64, 3072, 12, 12),
    "t5-large": T5Config(1024, 64, 4096, 24, 16),
    "t5-3b": T5Config(1024, 128, 16384, 24, 32),
    "t5-11b": T5Config(1024, 128, 65536, 24, 128),
    "t5-v1_1-small": _gated(512, 64, 1024, 8, 6),
    "t5-v1_1-base": _gated(768, 64, 2048, 12, 12),
    "t5-v1_1-large": _gated(1024, 64, 2816, 24, 16),
}
KNOWN_SIZES |= {name.replace("t5-v1_1", "flan-t5"): size for name, size in KNOWN_SIZES.items() if "v1_1" in name}


def resolve_config(encoder: str, checkpoint: Path | None = None, weights: Mapping[str, Any] | None = None) -> T5Config:
    """Finds the hyper-parameters of the encoder that a checkpoint names, without a network.

    In this order: a folder of that name with a config.json inside the checkpoint, beside it, or as a path of its own;
    the sizes that everybody knows ("t5-base", "google-t5/t5-base", "google/flan-t5-small" ...); the shapes of
    `weights`, which leave nothing open but constants that all T5 models share.

    Args:
        encoder: the name in config.json.
        checkpoint: folder of the checkpoint.
        weights: parameters of the encoder (`hf_model`), nested.

    Raises:
        UserError: not a T5, or its size is found nowhere, or its config.json is broken.
    """
    if "t5" not in encoder.lower():
        raise UserError(f"The language encoder {encoder!r} is not implemented: only T5 encoders are.")
    folders = (
        [Path(encoder)] if checkpoint is None else [checkpoint / encoder, checkpoint.parent / encoder, Path(encoder)]
    )
    for folder in folders:
        if (folder / "config.json").is_file():
            return _read_config(folder / "config.json")
    known = KNOWN_SIZES.get(encoder.rsplit("/", 1)[-1])
    if known is not None:
        return known
    if weights:
        return _infer_config(encoder, weights)
    raise UserError(
        f"The size of the language encoder {encoder!r} is unknown: put its config.json into a folder of that name "
        "in the checkpoint."
    )


def _read_config(path: Path) -> T5Config:
    try:
        values = json.loads(path.read_bytes())
        config = T5Config(**{f.name: values[f.name] for f in dataclasses.fields(T5Config) if f.name in values})
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a T5 configuration: {error}.") from None
    if any(not isinstance(getattr(config, f.name), f.type) for f in dataclasses.fields(T5Config)):
        raise UserError(f"{path} is not a T5 configuration: a field has the wrong type.")
    if not (1 <= config.num_layers <= 1000):
        raise UserError(f"{path} asks for num_layers={config.num_layers}; it must be between 1 and 1000.")
    if config.feed_forward_proj not in ("relu", "gated-gelu"):
        raise UserError(
            f"{path} asks for feed_forward_proj={config.feed_forward_proj!r}, which is not implemented: "
            "known are relu, gated-gelu."
        )
    return config


def _infer_config(encoder: str, weights: Mapping[str, Any]) -> T5Config:
    try:
        blocks = weights["encoder"]["block"]
        attention, feed_forward = (
            blocks["0"]["layer"]["0"]["SelfAttention"],
            blocks["0"]["layer"]["1"]["DenseReluDense"],
        )
        vocab_size, d_model = weights["shared"]["embedding"].shape
        num_buckets, num_heads = attention["relative_attention_bias"]["embedding"].shape
        gated = "wi_0" in feed_forward
        return T5Config(
            d_model=d_model,
            d_kv=attention["q"]["kernel"].shape[1] // num_heads,
            d_ff=feed_forward["wi_0" if gated else "wi"]["kernel"].shape[1],
            num_layers=len(blocks),
            num_heads=num_heads,
            vocab_size=vocab_size,
            relative_attention_num_buckets=num_buckets,
            feed_forward_proj="gated-gelu" if gated else "relu",
        )
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        raise UserError(f"The weights of the language encoder {encoder!r} are not those of a T5 encoder.") from None


class RMSNorm(nn.Module):
    """x / rms(x) * weight, statistics in float32, no mean subtracted and no bias."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.param("weight", nn.initializers.ones, (x.shape[-1],))
        mean_square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
        return (weight * (x * jax.lax.rsqrt(mean_square + self.epsilon))).astype(x.dtype)


def relative_position_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Buckets of key position minus query position, int32 [length, length].

    Half of the buckets for each sign; within a half, the first half for exact distances, the rest spaced
    logarithmically up to `max_distance`.
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = num_buckets // 2
    buckets = (distance > 0) * half
    distance = np.abs(distance)
    exact = half // 2
    logarithmic = exact + np.log(np.maximum(distance, 1) / exact) / np.log(max_distance / exact) * (half - exact)
    logarithmic = np.minimum(logarithmic.astype(np.int32), half - 1)
    return (buckets + np.where(distance < exact, distance, logarithmic)).astype(np.int32)


class SelfAttention(nn.Module):
    """Unscaled dot-product attention; the first block owns the relative position bias that all blocks share."""

    config: T5Config
    owns_bias: bool

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, position_bias: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        cfg = self.config
        batch, length, _ = x.shape
        inner = cfg.num_heads * cfg.d_kv

        def project(name: str, std: float) -> jax.Array:
            y = nn.Dense(inner, use_bias=False, name=name, dtype=x.dtype, kernel_init=nn.initializers.normal(std))(x)
            return y.reshape(batch, length, cfg.num_heads, cfg.d_kv)

        query = project("q", (cfg.d_model * cfg.d_kv) ** -0.5)
        key = project("k", cfg.d_model**-0.5)
        value = project("v", cfg.d_model**-0.5)
        if self.owns_bias:
            buckets = relative_position_buckets(
                length, cfg.relative_attention_num_buckets, cfg.relative_attention_max_distance
            )
            embedding = nn.Embed(
                cfg.relative_attention_num_buckets,
                cfg.num_heads,
                embedding_init=nn.initializers.normal(cfg.d_model**-0.5),
                name="relative_attention_bias",
            )
            position_bias = embedding(buckets).transpose(2, 0, 1)[None]
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32) + position_bias
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits).astype(x.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch, length, inner)
        y = nn.Dense(
            cfg.d_model, use_bias=False, name="o", dtype=x.dtype, kernel_init=nn.initializers.normal(inner**-0.5)
        )(y)
        return y, position_bias


class FeedForward(nn.Module):
    """wo(relu(wi(x))), or wo(gelu(wi_0(x)) * wi_1(x)) where gated."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.config

        def dense(features: int, fan_in: int, name: str) -> nn.Dense:
            init = nn.initializers.normal(fan_in**-0.5)
            return nn.Dense(features, use_bias=False, name=name, dtype=x.dtype, kernel_init=init)

        if cfg.feed_forward_proj == "gated-gelu":
            y = nn.gelu(dense(cfg.d_ff, cfg.d_model, "wi_0")(x)) * dense(cfg.d_ff, cfg.d_model, "wi_1")(x)
        else:
            y = nn.relu(dense(cfg.d_ff, cfg.d_model, "wi")(x))
        return dense(cfg.d_model, cfg.d_ff, "wo")(y)


class AttentionLayer(nn.Module):
    """x + SelfAttention(norm(x))."""

    config: T5Config
    owns_bias: bool

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, position_bias: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        y = RMSNorm(self.config.layer_norm_epsilon, name="layer_norm")(x)
        y, position_bias = SelfAttention(self.config, self.owns_bias, name="SelfAttention")(y, mask, position_bias)
        return x + y, position_bias


class FeedForwardLayer(nn.Module):
    """x + FeedForward(norm(x))."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = RMSNorm(self.config.layer_norm_epsilon, name="layer_norm")(x)
        return x + FeedForward(self.config, name="DenseReluDense")(y)


class Layers(nn.Module):
    """The two layers of a block, named "0" and "1"."""

    config: T5Config
    owns_bias: bool

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, position_bias: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        x, position_bias = AttentionLayer(self.config, self.owns_bias, name="0")(x, mask, position_bias)
        return FeedForwardLayer(self.config, name="1")(x), position_bias


class Block(nn.Module):
    """One encoder block: its layers live under "layer"."""

    config: T5Config
    owns_bias: bool

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, position_bias: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        return Layers(self.config, self.owns_bias, name="layer")(x, mask, position_bias)


class Blocks(nn.Module):
    """All blocks, named by their number."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        position_bias = None
        for index in range(self.config.num_layers):
            x, position_bias = Block(self.config, index == 0, name=str(index))(x, mask, position_bias)
        return x


class Stack(nn.Module):
    """Blocks and the final norm."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = Blocks(self.config, name="block")(x, mask)
        return RMSNorm(self.config.layer_norm_epsilon, name="final_layer_norm")(x)


class T5Encoder(nn.Module):
    """T5's encoder, without dropout.

    Called with input_ids int [B, L] and attention_mask [B, L] (1 = token, 0 = padding); returns the last hidden state
    [B, L, d_model] in `dtype`. Padding is hidden as a key, and its rows are computed like others.
    """

    config: T5Config
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        cfg = self.config
        embed = nn.Embed(cfg.vocab_size, cfg.d_model, embedding_init=nn.initializers.normal(1.0), name="shared")
        x = embed(input_ids.astype(jnp.int32)).astype(self.dtype)
        return Stack(cfg, name="encoder")(x, attention_mask.astype(bool))
