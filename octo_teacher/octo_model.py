"""OctoModel: an Octo network with its weights, configuration, text processor and statistics."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from octo_teacher import checkpoints
from octo_teacher.action_statistics import NormalizationType, named_normalization, read_statistics
from octo_teacher.model.action_heads import Metrics, SamplingNoise
from octo_teacher.model.octo_module import OctoModule, create_module, init_params
from octo_teacher.model.text import TextProcessor, load_text_processor
from octo_teacher.model.token_groups import TokenGroup
from octo_teacher.model.tokenizers import Data
from rpd_jax.errors import UserError

Params = Mapping[str, Any]


@flax.struct.dataclass
class OctoModel:
    """The way to use an Octo model.

        model = OctoModel.load_pretrained("hf://rail-berkeley/octo-small-1.5")
        tasks = model.create_tasks(texts=["pick up the spoon"])
        actions = model.sample_actions(
            observations, tasks, unnormalization_statistics=model.dataset_statistics["bridge_dataset"]["action"],
            rng=jax.random.key(0),
        )

    Attributes:
        module: the network.
        config: the content of config.json.
        text_processor: encodes instructions; None if the checkpoint names none.
        params: nested dicts of arrays, names as in published checkpoints.
        example_batch: {"observation", "task", ...} with batch 1: what the model was trained with.
        dataset_statistics: {dataset: {"action": {"mean", "std", ...}}}, or {"action": ...}; None if unknown.
        assets: files of the checkpoint that `save_pretrained` copies: path inside the checkpoint -> source.
        source: where it was loaded from, for messages.
    """

    module: OctoModule = flax.struct.field(pytree_node=False)
    config: dict[str, Any] = flax.struct.field(pytree_node=False)
    text_processor: TextProcessor | None = flax.struct.field(pytree_node=False)
    params: Params
    example_batch: Data
    dataset_statistics: Data | None
    assets: dict[str, Path] = flax.struct.field(pytree_node=False, default_factory=dict)
    source: str = flax.struct.field(pytree_node=False, default="The checkpoint")

    @classmethod
    def load_pretrained(cls, checkpoint_path: str | Path, step: int | None = None) -> "OctoModel":
        """Loads a checkpoint in the published layout.

        Args:
            checkpoint_path: a folder, or "hf://owner/name" on the Hugging Face hub.
            step: which of its steps; the latest if None.

        Raises:
            UserError: missing, broken, unreachable, or something in it is not implemented.
        """
        checkpoint = checkpoints.read(checkpoint_path, step)
        module = create_module(checkpoint.config, checkpoint.folder, checkpoint.shapes)
        checkpoints.check_params(checkpoint.shapes, module, checkpoint.example_batch)
        params = checkpoint.load_params()
        checkpoints.check_finite(params, checkpoint.folder / str(checkpoint.step) / "default")
        return cls(
            module=module,
            config=checkpoint.config,
            text_processor=load_text_processor(checkpoint.config.get("text_processor"), checkpoint.folder),
            params=jax.device_put(params),
            example_batch=checkpoint.example_batch,
            dataset_statistics=checkpoint.dataset_statistics,
            assets=checkpoint.assets,
            source=str(checkpoint_path),
        )

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        example_batch: Data,
        text_processor: TextProcessor | None = None,
        rng: jax.Array | None = None,
        dataset_statistics: Data | None = None,
        folder: str | Path | None = None,
    ) -> "OctoModel":
        """Makes a model with random weights.

        Args:
            config: as config.json; only "model" is needed.
            example_batch: {"observation": arrays [B, W, ...], "task": arrays [B, ...], ...}; the first row is kept.
            text_processor: encodes instructions; if None, the one that config["text_processor"] names, if any.
            rng: key of the weights; key 0 if None.
            dataset_statistics: kept with the model.
            folder: where folders that `config` names (encoder, tokenizer) lie; `save_pretrained` copies them.
        """
        folder = None if folder is None else Path(folder)
        module = create_module(config, folder)
        example_batch = jax.tree.map(lambda x: np.asarray(x)[:1], dict(example_batch))
        if text_processor is None:
            text_processor = load_text_processor(config.get("text_processor"), folder)
        return cls(
            module=module,
            config=config,
            text_processor=text_processor,
            params=init_params(module, example_batch, jax.random.key(0) if rng is None else rng),
            example_batch=example_batch,
            dataset_statistics=dataset_statistics,
            assets={} if folder is None else checkpoints.find_assets(config, folder),
        )

    def save_pretrained(self, step: int, checkpoint_path: str | Path) -> None:
        """Writes the model in the published layout, which the original code reads too.

        Args:
            step: name of the step's folder.
            checkpoint_path: folder; further steps may be there already, the same step may not.
        """
        checkpoints.write(
            checkpoint_path,
            step,
            self.params,
            self.config,
            self.example_batch,
            self.dataset_statistics,
            self.assets,
        )

    def create_tasks(
        self,
        goals: Data | None = None,
        texts: Sequence[str] | None = None,
        language: Data | np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Builds the task dict of a batch.

        Args:
            goals: goal images by key, uint8 [B, H, W, 3]; without them, black images that are flagged as padding.
            texts: B instructions; without them, the empty instruction flagged as padding.
            language: in place of texts, {"input_ids", "attention_mask"} int [B, L], or embeddings.

        Raises:
            UserError: nothing given, texts without a text processor, ids or shapes other than the model's.
        """
        if goals is None and texts is None and language is None:
            raise UserError("create_tasks needs goals, texts or language.")
        if isinstance(texts, str):
            raise UserError("create_tasks takes a list of texts, one per batch row; a single string was given.")
        example = self.example_batch["task"]
        tasks: dict[str, Any] = {}
        flags: dict[str, np.ndarray] = {}
        if goals is not None:
            batch = len(next(iter(goals.values())))
            for key, value in goals.items():
                tasks[key], flags[key] = value, np.ones(batch, bool)
        else:
            batch = len(texts) if texts is not None else len(jax.tree.leaves(language)[0])
            for key, value in example.items():
                if key not in ("pad_mask_dict", "language_instruction"):
                    tasks[key] = np.zeros((batch, *value.shape[1:]), value.dtype)
                    flags[key] = np.zeros(batch, bool)
        flags["language_instruction"] = np.full(batch, texts is not None or language is not None)
        if language is not None:
            tasks["language_instruction"] = language
        elif self.text_processor is not None:
            tasks["language_instruction"] = self.text_processor.encode(
                list(texts) if texts is not None else [""] * batch
            )
            _check_ids(tasks["language_instruction"], self.module)
        elif texts is not None:
            raise UserError("This checkpoint names no tokenizer: give create_tasks token ids as language.")
        tasks["pad_mask_dict"] = flags
        check_shapes(tasks, example, "Task", skip=1)
        return tasks

    def run_transformer(
        self,
        observations: Data,
        tasks: Data,
        timestep_pad_mask: jax.Array,
        train: bool = False,
        rng: jax.Array | None = None,
    ) -> dict[str, TokenGroup]:
        """Encodes observations and tasks.

        Args:
            observations: arrays [B, W, ...] with the shapes of `example_batch`; keys may be missing.
            tasks: what `create_tasks` returns.
            timestep_pad_mask: bool [B, W], False for padding.
            train: whether dropout is active; then `rng` is needed.

        Returns:
            Token groups by name, see `OctoTransformer.__call__`.
        """
        observations, tasks = self._check_inputs(observations, tasks)
        return _run_transformer(
            self.module, train, self.params, observations, tasks, jnp.asarray(timestep_pad_mask), rng
        )

    def sample_actions(
        self,
        observations: Data,
        tasks: Data,
        unnormalization_statistics: Data | None = None,
        normalization_type: NormalizationType | None = None,
        timestep_pad_mask: jax.Array | None = None,
        train: bool = False,
        argmax: bool = False,
        sample_shape: tuple[int, ...] = (),
        rng: jax.Array | None = None,
        temperature: float = 1.0,
        noise: SamplingNoise | jax.Array | None = None,
    ) -> jax.Array:
        """Samples action chunks for the last timestep of each window.

        Args:
            observations, tasks: see `run_transformer`.
            unnormalization_statistics: {"mean", "std", "mask", ...} of the wanted embodiment; actions are cut to its
                number of dimensions. None returns normalised actions.
            normalization_type: how the model's actions were normalised; if None, as its config.json names it, NORMAL
                if it names nothing.
            timestep_pad_mask: bool [B, W]; observations["timestep_pad_mask"] if None.
            argmax, temperature: for discrete heads.
            sample_shape: leading shape of independent samples; the transformer runs once for all of them.
            rng: random key; key 0 if None.
            noise: the random numbers that the head samples with, in place of rng.

        Returns:
            float32 [*sample_shape, B, horizon, action_dim].
        """
        if timestep_pad_mask is None:
            if "timestep_pad_mask" not in observations:
                raise UserError("sample_actions needs timestep_pad_mask, as an argument or in the observations.")
            timestep_pad_mask = observations["timestep_pad_mask"]
        observations, tasks = self._check_inputs(observations, tasks)
        statistics = None
        if unnormalization_statistics is not None:
            if normalization_type is None:
                normalization_type = self.normalization_type(self._name_of(unnormalization_statistics))
            statistics = read_statistics(
                unnormalization_statistics,
                NormalizationType(normalization_type),
                self.module.heads["action"].action_dim,
            )
        actions = _sample_actions(
            self.module,
            train,
            argmax,
            tuple(sample_shape),
            None if statistics is None else statistics.action_dim,
            self.params,
            observations,
            tasks,
            jnp.asarray(timestep_pad_mask),
            jax.random.key(0) if rng is None else rng,
            temperature,
            noise,
        )
        return actions if statistics is None else statistics.unnormalize(actions)

    def normalization_type(self, dataset: str | None) -> NormalizationType:
        """How the actions of a data set were normalised, as config.json names it; NORMAL if it names nothing.

        Raises:
            UserError: it names a type that is not known, or several and none of them for this data set.
        """
        return named_normalization(self.config, dataset) or NormalizationType.NORMAL

    def _name_of(self, statistics: Data) -> str | None:
        for name, entry in (self.dataset_statistics or {}).items():
            if isinstance(entry, Mapping) and entry.get("action") is statistics:
                return name
        return None

    def loss(
        self, params: Params, batch: Data, rng: jax.Array | None, train: bool = True, **head_kwargs: Any
    ) -> tuple[jax.Array, Metrics]:
        """The training loss of `params`, a pure function.

        Args:
            batch: {"observation": {..., "timestep_pad_mask"}, "task", "action" float32 [B, W, horizon, action_dim],
                "action_pad_mask" bool of that shape}.
            rng: key of dropout, and of times and noise of a diffusion head.
            train: whether dropout is active.
            head_kwargs: `time` and `noise` of a diffusion head, to repeat a loss exactly.

        Returns:
            float32 scalar, and {"loss", "mse", ...}.
        """
        return loss_of(self.module, params, batch, rng, train, **head_kwargs)

    def _check_inputs(self, observations: Data, tasks: Data) -> tuple[Data, Data]:
        check_shapes(observations, self.example_batch["observation"], "Observation", skip=2)
        check_shapes(tasks, self.example_batch["task"], "Task", skip=1)
        return jax.tree.map(jnp.asarray, (dict(observations), dict(tasks)))


def loss_of(
    module: OctoModule, params: Params, batch: Data, rng: jax.Array | None, train: bool = True, **head_kwargs: Any
) -> tuple[jax.Array, Metrics]:
    """See `OctoModel.loss`."""
    return module.apply(
        {"params": params},
        batch["observation"],
        batch["task"],
        batch["observation"]["timestep_pad_mask"],
        batch["action"],
        batch["action_pad_mask"],
        train=train,
        rngs=None if rng is None else {"dropout": rng},
        method="loss",
        **head_kwargs,
    )


@partial(jax.jit, static_argnums=(0, 1))
def _run_transformer(module, train, params, observations, tasks, timestep_pad_mask, rng):
    return module.apply(
        {"params": params},
        observations,
        tasks,
        timestep_pad_mask,
        train=train,
        rngs=None if rng is None else {"dropout": rng},
        method=lambda m, *args, **kwargs: m.octo_transformer(*args, **kwargs),
    )


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _sample_actions(
    module, train, argmax, sample_shape, dims, params, observations, tasks, timestep_pad_mask, rng, temperature, noise
):
    return module.apply(
        {"params": params},
        observations,
        tasks,
        timestep_pad_mask,
        train=train,
        rng=rng,
        argmax=argmax,
        sample_shape=sample_shape,
        temperature=temperature,
        embodiment_action_dim=dims,
        noise=noise,
        rngs={"dropout": jax.random.fold_in(rng, 1)} if train else None,
        method="sample_actions",
    )


def trace_sample_actions(
    model: OctoModel, observations: Data, tasks: Data
) -> tuple[jax.stages.Traced, tuple[Any, ...]]:
    """Returns the program of `sample_actions` for these inputs, without un-normalisation, and its arguments."""
    observations, tasks = jax.tree.map(jnp.asarray, (dict(observations), dict(tasks)))
    static = (model.module, False, False, (), None)
    traced = (model.params, observations, tasks, observations["timestep_pad_mask"], jax.random.key(0), 1.0, None)
    return _sample_actions.trace(*static, *traced), traced


def _check_ids(language: Any, module: OctoModule) -> None:
    """Raises UserError if the language encoder has no embedding of a token id: JAX has no error for it."""
    sizes = [tokenizer.t5.vocab_size for tokenizer in module.octo_transformer.task_tokenizers.values() if tokenizer.t5]
    if isinstance(language, Mapping) and sizes and np.max(language["input_ids"]) >= min(sizes):
        raise UserError(
            f"The tokenizer gives the id {np.max(language['input_ids'])}; the language encoder has a vocabulary of "
            f"{min(sizes)}: they are not of one checkpoint."
        )


def check_shapes(data: Data, example: Data, kind: str, skip: int) -> None:
    """Raises UserError if an array differs from its namesake in `example` beyond the first `skip` axes."""
    data, example = (flax.traverse_util.flatten_dict(dict(tree), sep="/") for tree in (data, example))
    for name in sorted(set(data) & set(example)):
        given, wanted = np.shape(data[name])[skip:], np.shape(example[name])[skip:]
        if given != wanted:
            raise UserError(
                f"{kind} {name!r} has shape {given} after the batch axes; the checkpoint was made with {wanted}."
            )
