"""Tokenizers: images, language and numbers to groups of tokens."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from octo_teacher.model.module_spec import ModuleSpec
from octo_teacher.model.t5 import T5Config, T5Encoder
from octo_teacher.model.token_groups import TokenGroup
from octo_teacher.model.transformer import MAPHead
from rpd_jax.errors import UserError

Data = Mapping[str, Any]


def matching_keys(patterns: Sequence[str], keys: Iterable[str]) -> list[str]:
    """Returns the keys, sorted, that one of the regular expressions matches from the start of the name."""
    return [key for key in sorted(keys) if any(re.match(pattern, key) for pattern in patterns)]


def visibility(shape: tuple[int, ...], pad_masks: Data | None, keys: Sequence[str]) -> jax.Array:
    """Visible tokens, bool of `shape`: where any of `keys` is True in `pad_masks`; all if it lacks one of them."""
    if pad_masks is None or any(key not in pad_masks for key in keys):
        return jnp.ones(shape, bool)
    mask = jnp.stack([jnp.asarray(pad_masks[key]).astype(bool) for key in keys]).any(axis=0)
    return jnp.broadcast_to(mask[..., None], shape)


class TokenLearner(nn.Module):
    """Pools tokens [..., n, d] into [..., num_tokens, d]."""

    num_tokens: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        embedding = self.param("pos_embed", nn.initializers.normal(0.02), tokens.shape[-2:])
        x = nn.LayerNorm(dtype=self.dtype)(tokens + embedding)
        return MAPHead(num_readouts=self.num_tokens, dtype=self.dtype)(x, train=train)


class ImageTokenizer(nn.Module):
    """Encodes images, stacked with goal images on the channel axis, into tokens.

    Attributes:
        encoder: the image encoder.
        obs_stack_keys: regular expressions for the observations that are stacked, each uint8 [B, W, H, W', C].
        task_stack_keys: regular expressions for the goals, each uint8 [B, H, W', C], stacked behind the observations. A
            goal that is not given counts as a black image.
        task_film_keys: names of task arrays [B, ...] that condition the encoder, joined and flattened in this order.

    Called with observations and tasks; returns None if no observation matches.
    """

    encoder: ModuleSpec
    use_token_learner: bool = False
    num_tokens: int = 8
    conditioning_type: str = "none"
    obs_stack_keys: tuple[str, ...] = ("image_.*", "depth_.*")
    task_stack_keys: tuple[str, ...] = ()
    task_film_keys: tuple[str, ...] = ()
    proper_pad_mask: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, observations: Data, tasks: Data, *, train: bool) -> TokenGroup | None:
        keys = matching_keys(self.obs_stack_keys, observations)
        if not keys:
            return None
        images = jnp.concatenate([observations[key] for key in keys], axis=-1)
        batch, window = images.shape[:2]
        constant_channels = 0
        if self.task_stack_keys:
            missing = {
                key: jnp.zeros_like(observations[key][:, 0])
                for key in matching_keys(self.task_stack_keys, observations)
                if key not in tasks
            }
            given = matching_keys(self.task_stack_keys, tasks)
            if given:
                goals = {**missing, **{key: tasks[key] for key in given}}
                goals = jnp.concatenate([goals[key] for key in sorted(goals)], axis=-1)
                goals = jnp.broadcast_to(goals[:, None], (batch, window, *goals.shape[1:]))
                images = jnp.concatenate([images, goals], axis=-1)
            elif not missing:
                raise UserError(f"No goal image matches {', '.join(self.task_stack_keys)}, not even a missing one.")
            else:
                constant_channels = sum(goal.shape[-1] for goal in missing.values())
        condition = jnp.repeat(self._condition(tasks), window, axis=0) if self.task_film_keys else None
        encoder = self.encoder.build(dtype=self.dtype)
        features = encoder(images.reshape(-1, *images.shape[2:]), constant_channels, condition)
        tokens = features.reshape(batch, window, -1, features.shape[-1])
        if self.use_token_learner:
            tokens = TokenLearner(self.num_tokens, dtype=self.dtype)(tokens, train=train)
        pad_masks = observations.get("pad_mask_dict") if self.proper_pad_mask else None
        return TokenGroup(tokens, visibility(tokens.shape[:-1], pad_masks, keys))

    def _condition(self, tasks: Data) -> jax.Array:
        for key in self.task_film_keys:
            if isinstance(tasks.get(key), Mapping):
                raise UserError(
                    f"An image tokenizer is conditioned on the task's {key!r} (task_film_keys), which must be an "
                    "array, such as an embedding: it is a dict, such as token ids."
                )
            if key not in tasks:
                raise UserError(
                    f"An image tokenizer is conditioned on the task's {key!r} (task_film_keys), which the inputs lack: "
                    f"there are {', '.join(sorted(set(tasks) - {'pad_mask_dict'})) or 'none'}."
                )
        condition = jnp.concatenate([tasks[key] for key in self.task_film_keys], axis=-1)
        return condition.reshape(len(condition), -1)


class LanguageTokenizer(nn.Module):
    """Encodes token ids with T5, or takes embeddings as they are.

    Called with tasks["language_instruction"]: {"input_ids", "attention_mask"} int [B, L], or embeddings [B, D] or
    [B, n, D]. Returns None without that entry. Padding of the text hides nothing here; only the flag
    tasks["pad_mask_dict"]["language_instruction"] bool [B] hides the instruction as a whole.

    Attributes:
        encoder: name of the T5 encoder, None for embeddings only.
        finetune_encoder: whether gradients reach the encoder.
        t5: size of the encoder.
    """

    encoder: str | None = None
    finetune_encoder: bool = False
    proper_pad_mask: bool = True
    t5: T5Config | None = None
    dtype: Any = jnp.float32

    def setup(self):
        if self.t5 is not None:
            self.hf_model = T5Encoder(self.t5, self.dtype)

    def __call__(self, observations: Data, tasks: Data, *, train: bool) -> TokenGroup | None:
        language = tasks.get("language_instruction")
        if language is None:
            return None
        if isinstance(language, Mapping):
            if self.t5 is None:
                raise UserError("Token ids were given to a checkpoint without a language encoder: give embeddings.")
            tokens = self.hf_model(jnp.asarray(language["input_ids"]), jnp.asarray(language["attention_mask"]))
        else:
            tokens = language[:, None] if language.ndim == 2 else language
            tokens = tokens.astype(self.dtype)
        if not self.finetune_encoder:
            tokens = jax.lax.stop_gradient(tokens)
        pad_masks = tasks.get("pad_mask_dict") if self.proper_pad_mask else None
        return TokenGroup(tokens, visibility(tokens.shape[:-1], pad_masks, ("language_instruction",)))


def bin_thresholds(num_bins: int, bin_type: str, low: float | None, high: float | None) -> jax.Array:
    """Edges of bins, float32 [num_bins + 1]: equal widths in [low, high], or equal probabilities under N(0, 1)."""
    if bin_type == "normal":
        return jax.scipy.stats.norm.ppf(jnp.linspace(1e-6, 1 - 1e-6, num_bins + 1))
    if bin_type == "uniform" and low is not None and high is not None:
        return jnp.linspace(low, high, num_bins + 1)
    raise UserError(
        f"bin_type={bin_type!r} with low={low}, high={high} is not implemented: give uniform bins low and high."
    )


def to_bins(values: jax.Array, thresholds: jax.Array) -> jax.Array:
    """Index of the bin [lower, upper) of each value, int32; 0 for values outside all bins."""
    inside = (values[..., None] >= thresholds[:-1]) & (values[..., None] < thresholds[1:])
    return jnp.argmax(inside, axis=-1)


class LowdimObsTokenizer(nn.Module):
    """Makes each number of the matching observations [B, W, n] a token: its value, or the one-hot of its bin.

    Called with observations; returns None if none matches. Observation pad masks hide nothing here.
    """

    n_bins: int = 256
    bin_type: str = "uniform"
    low: float | None = 0.0
    high: float | None = 1.0
    obs_keys: tuple[str, ...] = ()
    discretize: bool = False
    proper_pad_mask: bool = True
    dtype: Any = jnp.float32

    def __call__(self, observations: Data, tasks: Data, *, train: bool) -> TokenGroup | None:
        keys = [key for pattern in self.obs_keys for key in matching_keys((pattern,), observations)]
        if not keys:
            return None
        for key in keys:
            if observations[key].ndim != 3:
                raise UserError(
                    f"Observation {key!r} has shape {observations[key].shape}; a low-dimensional tokenizer needs "
                    "[batch, window, numbers]."
                )
        values = jnp.concatenate([observations[key] for key in keys], axis=-1)
        if self.discretize:
            if self.bin_type == "uniform" and self.low is not None and self.high is not None:
                values = jnp.clip(values, self.low + 1e-6, self.high - 1e-6)
            bins = to_bins(values, bin_thresholds(self.n_bins, self.bin_type, self.low, self.high))
            tokens = jax.nn.one_hot(bins, self.n_bins, dtype=self.dtype)
        else:
            tokens = values[..., None].astype(self.dtype)
        return TokenGroup(tokens, jnp.ones(tokens.shape[:-1], bool))
