"""The Octo network: tokenizers, a blockwise-causal transformer, and action heads."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from flax.core import FrozenDict

from octo_teacher.model.action_heads import Metrics
from octo_teacher.model.module_spec import FrozenSpec, ModuleSpec, parse_spec
from octo_teacher.model.named_parts import ENCODERS, HEADS, OBSERVATION_TOKENIZERS, TASK_TOKENIZERS
from octo_teacher.model.t5 import resolve_config
from octo_teacher.model.token_groups import Layout, TokenGroup
from octo_teacher.model.tokenizers import Data, ImageTokenizer
from octo_teacher.model.transformer import KeyValue, Transformer
from rpd_jax.errors import UserError


@flax.struct.dataclass
class Prefix:
    """Everything about the task tokens that does not depend on observations.

    Attributes:
        groups: task tokens after projection and position embedding, by group name; tokens [B or 1, n, d].
        layers: keys and values of all task tokens in each layer, [B or 1, n, heads, head_dim].
    """

    groups: dict[str, TokenGroup]
    layers: tuple[KeyValue, ...]


class BlockTransformer(nn.Module):
    """Arranges groups of tokens into one sequence, masks who attends to whom, and encodes it."""

    transformer_kwargs: Any
    use_correct_attention: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        prefix_groups: Mapping[str, TokenGroup],
        timestep_groups: Mapping[str, TokenGroup],
        *,
        train: bool,
        cache: tuple[KeyValue, ...] | None = None,
        only: Sequence[str] | None = None,
        all_visible: bool = False,
    ) -> tuple[dict[str, TokenGroup], tuple[KeyValue, ...]]:
        """Encodes the sequence [prefix groups, then all timestep groups for each timestep].

        Args:
            prefix_groups: name -> tokens [B or 1, n, d]; batch 1 only with `cache`.
            timestep_groups: name -> tokens [B, W, n, d].
            cache: keys and values of the prefix, which is then not computed.
            only: timestep groups that are wanted, at the last timestep; the rest of the last layer is not computed.
            all_visible: no token is padding or hidden: the groups' masks are not looked at, so that who attends to whom
                is known while tracing.

        Returns:
            name -> encoded group, and per layer the keys and values that were computed.
        """
        some_group = next(iter({**prefix_groups, **timestep_groups}.values()))
        batch = next(iter(timestep_groups.values()), some_group).tokens.shape[0]
        horizon = next(iter(timestep_groups.values())).tokens.shape[1] if timestep_groups else 0
        layout = Layout(
            tuple((name, group.tokens.shape[1]) for name, group in prefix_groups.items()),
            tuple((name, group.tokens.shape[2]) for name, group in timestep_groups.items()),
            horizon,
            self.use_correct_attention,
        )
        visible = [jnp.broadcast_to(group.mask, (batch, group.mask.shape[1])) for group in prefix_groups.values()]
        tokens = [] if cache is not None else [group.tokens for group in prefix_groups.values()]
        if timestep_groups:
            joined = TokenGroup.concatenate(list(timestep_groups.values()))
            tokens.append(joined.tokens.reshape(batch, -1, joined.tokens.shape[-1]))
            visible.append(joined.mask.reshape(batch, -1))
        tokens, visible = jnp.concatenate(tokens, axis=1), jnp.concatenate(visible, axis=1)
        mask = layout.rules()[None, None]
        if not all_visible:
            mask = jnp.logical_and(mask, visible[:, None, None, :])
        self.sow("intermediates", "attention_mask", mask)
        if cache is not None:
            mask = mask[:, :, layout.prefix_length :]
        rows = None
        if only is not None:
            rows = _rows_of_last_timestep(layout, only, skip_prefix=cache is not None)
        encoded, computed = Transformer(**dict(self.transformer_kwargs), dtype=self.dtype)(
            tokens, mask, train=train, prefix=cache, rows=rows
        )
        if only is not None:
            horizon = 1
            timestep_groups = {
                name: TokenGroup(group.tokens[:, -1:], group.mask[:, -1:])
                for name, group in timestep_groups.items()
                if name in only
            }
        outputs, start = {}, 0
        if cache is None and only is None:
            for name, group in prefix_groups.items():
                outputs[name] = TokenGroup(encoded[:, start : start + group.tokens.shape[1]], group.mask)
                start += group.tokens.shape[1]
        if timestep_groups:
            steps = encoded[:, start:].reshape(batch, horizon, -1, encoded.shape[-1])
            start = 0
            for name, group in timestep_groups.items():
                outputs[name] = TokenGroup(steps[:, :, start : start + group.tokens.shape[2]], group.mask)
                start += group.tokens.shape[2]
        return outputs, computed


def _rows_of_last_timestep(layout: Layout, names: Sequence[str], skip_prefix: bool) -> np.ndarray:
    start = (0 if skip_prefix else layout.prefix_length) + (layout.horizon - 1) * layout.timestep_length
    rows = []
    for name, size in layout.timestep:
        if name in names:
            rows.extend(range(start, start + size))
        start += size
    return np.array(rows)


class OctoTransformer(nn.Module):
    """Tokenizes observations and tasks, and encodes them together with readout tokens.

    Attributes:
        observation_tokenizers: tokenizers by name, in token order.
        task_tokenizers: tokenizers of the prefix by name, in token order.
        readouts: number of readout tokens by name.
        transformer_kwargs: arguments of `Transformer`, as (name, value) pairs.
        token_embedding_size: d.
        max_horizon: most timesteps that the position embeddings allow.
        repeat_task_tokens: whether the task tokens are repeated at every timestep as observation tokens.
        use_correct_attention: see `token_groups.Layout`.
    """

    observation_tokenizers: Mapping[str, nn.Module]
    task_tokenizers: Mapping[str, nn.Module]
    readouts: Mapping[str, int]
    transformer_kwargs: Any
    token_embedding_size: int
    max_horizon: int
    repeat_task_tokens: bool = False
    use_correct_attention: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        observations: Data | None,
        tasks: Data | None,
        timestep_pad_mask: jax.Array | None,
        *,
        train: bool = False,
        prefix: Prefix | None = None,
        prefix_only: bool = False,
        only: Sequence[str] | None = None,
        all_visible: bool = False,
    ) -> dict[str, TokenGroup] | Prefix:
        """Runs the transformer.

        Args:
            observations: arrays [B, W, ...], W <= max_horizon; "pad_mask_dict" holds bool [B, W] per key.
            tasks: arrays [B, ...]; "pad_mask_dict" holds bool [B] per key.
            timestep_pad_mask: bool [B, W], False for padding.
            train: whether dropout is active.
            prefix: what `encode_prefix` returned for these tasks; the task tokens are then not computed again, and the
                outputs lack them.
            prefix_only: return the `Prefix` of `tasks` and look at nothing else.
            only: groups whose outputs at the last timestep are wanted; nothing else is returned.
            all_visible: the caller knows that no timestep is padding and no group is hidden.

        Returns:
            Encoded groups by name: "task_*" [B, n, d], "obs_*" and "readout_*" [B, W, n, d], and their concatenations
            "task" and "obs".
        """
        prefix_groups = self._tokenize_tasks(observations, tasks, train) if prefix is None else dict(prefix.groups)
        transformer = BlockTransformer(self.transformer_kwargs, self.use_correct_attention, self.dtype)
        if prefix_only:
            _, layers = transformer(prefix_groups, {}, train=train) if prefix_groups else ({}, None)
            return Prefix(prefix_groups, layers)
        batch, horizon = timestep_pad_mask.shape
        if horizon > self.max_horizon:
            raise UserError(
                f"A window of {horizon} timesteps was given; this checkpoint takes at most {self.max_horizon}."
            )
        timestep_groups = {}
        for name, tokenizer in self.observation_tokenizers.items():
            group = tokenizer(observations, tasks or {}, train=train)
            if group is not None:
                tokens = self._embed(f"obs_{name}", group.tokens)
                mask = jnp.logical_and(timestep_pad_mask[:, :, None], group.mask)
                timestep_groups[f"obs_{name}"] = TokenGroup(tokens, mask)
        if self.repeat_task_tokens:
            for name, group in prefix_groups.items():
                shape = (batch, horizon, *group.tokens.shape[1:])
                timestep_groups[f"obs_{name}"] = TokenGroup(
                    jnp.broadcast_to(group.tokens[:, None], shape), jnp.broadcast_to(group.mask[:, None], shape[:-1])
                )
        for name, size in self.readouts.items():
            tokens = jnp.zeros((batch, horizon, size, self.token_embedding_size), self.dtype)
            tokens = tokens + self._position_embedding(f"readout_{name}", tokens)
            timestep_groups[f"readout_{name}"] = TokenGroup(tokens, jnp.ones(tokens.shape[:-1], bool))
        outputs, _ = transformer(
            prefix_groups,
            timestep_groups,
            train=train,
            cache=None if prefix is None else prefix.layers,
            only=only,
            all_visible=all_visible,
        )
        for kind in ("task", "obs"):
            groups = [group for name, group in outputs.items() if name.startswith(f"{kind}_")]
            if groups:
                outputs[kind] = TokenGroup.concatenate(groups)
        return outputs

    def encode_prefix(self, tasks: Data) -> Prefix:
        """Computes once what depends on the tasks alone: their tokens, and their keys and values in every layer."""
        return self(None, tasks, None, prefix_only=True)

    def _tokenize_tasks(self, observations: Data | None, tasks: Data, train: bool) -> dict[str, TokenGroup]:
        groups = {}
        for name, tokenizer in self.task_tokenizers.items():
            group = tokenizer(observations, tasks, train=train)
            if group is not None:
                groups[f"task_{name}"] = TokenGroup(self._embed(f"task_{name}", group.tokens), group.mask)
        return groups

    def _embed(self, name: str, tokens: jax.Array) -> jax.Array:
        dense = nn.Dense(self.token_embedding_size, dtype=self.dtype, name=f"{name}_projection")
        tokens = dense(tokens)
        return tokens + self._position_embedding(name, tokens)

    def _position_embedding(self, name: str, tokens: jax.Array) -> jax.Array:
        per_timestep = tokens.ndim == 4
        shape = (1, *((self.max_horizon,) if per_timestep else ()), *tokens.shape[-2:])
        embedding = self.param(f"{name}_pos_embedding", nn.initializers.normal(0.02), shape)
        return (embedding[:, : tokens.shape[1]] if per_timestep else embedding).astype(self.dtype)


class OctoModule(nn.Module):
    """The transformer and its heads, one parameter tree."""

    octo_transformer: OctoTransformer
    heads: Mapping[str, nn.Module]

    def __call__(self, observations: Data, tasks: Data, timestep_pad_mask: jax.Array, *, train: bool = False):
        """Runs everything once; what initialisation calls. Returns transformer outputs and head outputs."""
        outputs = self.octo_transformer(observations, tasks, timestep_pad_mask, train=train)
        return outputs, {name: head(outputs, train=train) for name, head in self.heads.items()}

    def encode_prefix(self, tasks: Data) -> Prefix:
        """See `OctoTransformer.encode_prefix`."""
        return self.octo_transformer.encode_prefix(tasks)

    def sample_actions(
        self,
        observations: Data,
        tasks: Data | None,
        timestep_pad_mask: jax.Array,
        *,
        prefix: Prefix | None = None,
        readout_only: bool = False,
        all_visible: bool = False,
        train: bool = False,
        **head_kwargs: Any,
    ) -> jax.Array:
        """Returns normalised actions float32 [*sample_shape, B, horizon, action_dim] of the head "action".

        Args:
            prefix: see `OctoTransformer.__call__`.
            readout_only: compute no more of the last layer than the head reads, where that is at the last timestep.
            all_visible: see `OctoTransformer.__call__`.
            head_kwargs: arguments of the head's `predict_action`.
        """
        head = self.heads["action"]
        transformer = self.octo_transformer
        read = group_names(
            transformer.observation_tokenizers,
            transformer.task_tokenizers,
            transformer.readouts,
            transformer.repeat_task_tokens,
        )[head.readout_key]
        if any(name.startswith("task_") for name in read):
            prefix, readout_only = None, False  # encoded task tokens are no part of a prefix
        outputs = transformer(
            observations,
            tasks,
            timestep_pad_mask,
            train=train,
            prefix=prefix,
            only=read if readout_only else None,
            all_visible=all_visible,
        )
        return head.predict_action(outputs, train=train, **head_kwargs)

    def loss(
        self,
        observations: Data,
        tasks: Data,
        timestep_pad_mask: jax.Array,
        actions: jax.Array,
        action_pad_mask: jax.Array,
        *,
        train: bool = True,
        **head_kwargs: Any,
    ) -> tuple[jax.Array, Metrics]:
        """Returns the loss of the head "action", a float32 scalar, and its metrics; see the heads."""
        outputs = self.octo_transformer(observations, tasks, timestep_pad_mask, train=train)
        head = self.heads["action"]
        return head.loss(outputs, actions, timestep_pad_mask, action_pad_mask, train=train, **head_kwargs)


# Larger numbers in a config.json are mistakes or attacks: they would build networks without end.
MAX_COUNT = 1000


def create_module(
    config: Mapping[str, Any],
    checkpoint: Path | None = None,
    weights: Mapping[str, Any] | None = None,
    dtype: Any = jnp.float32,
) -> OctoModule:
    """Builds the network that `config["model"]` describes.

    Args:
        config: the content of a checkpoint's config.json.
        checkpoint: its folder, where the encoder's configuration may lie.
        weights: its parameters or their shapes, from which the encoder's size may be read.
        dtype: of the computation in tokenizers and transformer; parameters and heads stay float32.

    Raises:
        UserError: the configuration asks for something that is not implemented, or lacks something.
    """
    try:
        return _create_module(config, checkpoint, weights or {}, dtype)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise UserError(f"config.json is malformed: {type(error).__name__}: {error}.") from None


def _create_module(
    config: Mapping[str, Any], checkpoint: Path | None, weights: Mapping[str, Any], dtype: Any
) -> OctoModule:
    model = config.get("model")
    if not isinstance(model, Mapping):
        raise UserError("config.json has no entry 'model'.")
    _check_counts(model)
    known = {field.name for field in dataclasses.fields(OctoTransformer)} - {"parent", "name", "dtype"} | {"heads"}
    unknown, missing = set(model) - known, known - set(model) - {"repeat_task_tokens", "use_correct_attention"}
    if unknown:
        raise UserError(f"model.{min(unknown)} in config.json is not implemented.")
    if missing:
        raise UserError(f"config.json lacks model.{min(missing)}.")
    transformer_kwargs = dict(model["transformer_kwargs"])
    if transformer_kwargs.pop("add_position_embedding", False):
        raise UserError("model.transformer_kwargs.add_position_embedding=true in config.json is not implemented.")
    allowed = {field.name for field in dataclasses.fields(Transformer)} - {"parent", "name", "dtype", "straightforward"}
    if set(transformer_kwargs) - allowed:
        raise UserError(f"model.transformer_kwargs.{min(set(transformer_kwargs) - allowed)} is not implemented.")
    if model["token_embedding_size"] % transformer_kwargs["num_attention_heads"]:
        raise UserError("model.token_embedding_size in config.json is not a multiple of num_attention_heads.")
    if "action" not in model["heads"]:
        raise UserError("config.json has no head 'action' in model.heads.")
    observation_tokenizers = {}
    for name, spec in model["observation_tokenizers"].items():
        where = f"model.observation_tokenizers.{name}"
        parsed = parse_spec(spec, OBSERVATION_TOKENIZERS, where)
        overrides = {"dtype": dtype}
        if parsed.cls is ImageTokenizer:
            encoder = dict(parsed.kwargs).get("encoder")
            encoder = encoder.to_dict() if isinstance(encoder, FrozenSpec) else encoder
            overrides["encoder"] = parse_spec(encoder, ENCODERS, f"{where}.encoder")
        observation_tokenizers[name] = _build(parsed, where, **overrides)
    task_tokenizers = {}
    for name, spec in model["task_tokenizers"].items():
        where = f"model.task_tokenizers.{name}"
        parsed = parse_spec(spec, TASK_TOKENIZERS, where)
        encoder = dict(parsed.kwargs).get("encoder")
        t5 = None
        if encoder is not None:
            own = weights.get("octo_transformer", {}).get(f"task_tokenizers_{name}", {}).get("hf_model", {})
            t5 = resolve_config(encoder, checkpoint, own)
        task_tokenizers[name] = _build(parsed, where, t5=t5, dtype=dtype)
    heads = {}
    for name, spec in model["heads"].items():
        where = f"model.heads.{name}"
        heads[name] = _build(parse_spec(spec, HEADS, where), where)
        _check_group(heads[name].readout_key, model, where)
    transformer = OctoTransformer(
        observation_tokenizers=FrozenDict(observation_tokenizers),
        task_tokenizers=FrozenDict(task_tokenizers),
        readouts=FrozenDict(model["readouts"]),
        transformer_kwargs=tuple(transformer_kwargs.items()),
        token_embedding_size=model["token_embedding_size"],
        max_horizon=model["max_horizon"],
        repeat_task_tokens=model.get("repeat_task_tokens", False),
        use_correct_attention=model.get("use_correct_attention", False),
        dtype=dtype,
    )
    return OctoModule(transformer, FrozenDict(heads))


def _check_counts(entry: Any, where: str = "model") -> None:
    for key, value in entry.items() if isinstance(entry, Mapping) else ():
        counts = ("num_layers", "num_blocks", "diffusion_steps", "timesteps", "max_horizon", "num_preds")
        if key == "num_layers" and isinstance(value, list) and all(isinstance(n, int) and n >= 0 for n in value):
            value = max(1, sum(value))  # those of all stages of a residual network
        if key in counts and not (isinstance(value, int) and 1 <= value <= MAX_COUNT):
            raise UserError(f"{where}.{key} in config.json is {value!r}; it must be between 1 and {MAX_COUNT}.")
        _check_counts(value, f"{where}.{key}")


def group_names(
    observation_tokenizers: Iterable[str], task_tokenizers: Iterable[str], readouts: Iterable[str], repeated: bool
) -> dict[str, tuple[str, ...]]:
    """The token groups that a transformer gives, by name -> the groups of the sequence that they are made of."""
    tasks = [f"task_{name}" for name in task_tokenizers]
    observations = [f"obs_{name}" for name in observation_tokenizers]
    observations += [f"obs_{name}" for name in tasks] if repeated else []
    groups = {name: (name,) for name in (*tasks, *observations, *(f"readout_{name}" for name in readouts))}
    return groups | {kind: tuple(names) for kind, names in (("task", tasks), ("obs", observations)) if names}


def _check_group(name: str, model: Mapping[str, Any], where: str) -> None:
    groups = group_names(
        model["observation_tokenizers"],
        model["task_tokenizers"],
        model["readouts"],
        model.get("repeat_task_tokens", False),
    )
    if name not in groups:
        raise UserError(
            f"{where} in config.json reads {name!r}, which is not a readout or another group of tokens of this "
            f"network: it has {', '.join(groups)}."
        )


def _build(spec: ModuleSpec, where: str, **overrides: Any) -> nn.Module:
    try:
        return spec.build(**overrides)
    except TypeError as error:
        raise UserError(f"{where} in config.json is incomplete: {error}.") from None


def init_params(
    module: OctoModule, example_batch: Data, rng: jax.Array, only: Iterable[tuple[str, ...]] | None = None
) -> dict[str, Any]:
    """Returns freshly drawn parameters, nested dicts of float32 arrays.

    Args:
        module: the network.
        example_batch: what it sees.
        rng: key of all parameters, whichever are drawn.
        only: paths of the parameters to draw, which takes less time to compile and no memory for others; None: all.
    """
    observations, tasks = example_batch["observation"], example_batch["task"]
    only = None if only is None else frozenset(only)
    return _init(module, only, rng, observations, tasks, observations["timestep_pad_mask"])


@partial(jax.jit, static_argnums=(0, 1))  # modules that are equal share it
def _init(module: OctoModule, only: frozenset[tuple[str, ...]] | None, *arguments: Any) -> dict[str, Any]:
    params = module.init(*arguments, train=False)["params"]
    if only is None:
        return params
    leaves = traverse_util.flatten_dict(dict(params))
    return traverse_util.unflatten_dict({path: leaf for path, leaf in leaves.items() if path in only})


def param_shapes(module: OctoModule, example_batch: Data) -> dict[str, Any]:
    """Returns the tree of `init_params` as ShapeDtypeStructs, without computing anything."""
    return jax.eval_shape(partial(init_params, module, example_batch), jax.random.key(0))
