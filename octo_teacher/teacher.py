"""An Octo model as a teacher: labels camera frames with actions, as fast as the device allows."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from ml_collections import ConfigDict

from octo_teacher.action_statistics import (
    ActionStatistics,
    NormalizationType,
    choose_statistics,
    named_as_signed,
    named_as_unlike,
    read_statistics,
)
from octo_teacher.embedded import DEFAULT, find_checkpoint
from octo_teacher.model.action_heads import DiscreteActionHead, SamplingNoise
from octo_teacher.model.named_parts import DENOISING_HEADS
from octo_teacher.model.octo_module import OctoModule, Prefix
from octo_teacher.model.tokenizers import ImageTokenizer, matching_keys
from octo_teacher.octo_model import OctoModel
from rpd_jax.action_convention import check_action_dim, choose_gripper, gripper_to_environment
from rpd_jax.errors import UserError, out_of_memory
from rpd_jax.teachers import Teacher, check_frames, print_to_stderr

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
MAX_CHUNK = 256
# On a CPU larger batches only fall out of the cache.
CPU_CHUNK = 16


class OctoTeacher(Teacher):
    """Labels frames of one camera with the first action of the chunk that Octo predicts.

    What does not depend on the frame is computed once per instruction: T5, and the keys and values of the language
    prefix in every layer. What nobody reads is not computed: of the last layer only the readout row. Goal images are
    constant black: their share of the first convolution is computed once per batch. All samples of a frame share one
    transformer pass.

    Actions are un-normalised with the checkpoint's statistics, the gripper is turned into the environment's (+1 = open)
    and all is clipped to [-1, 1].

    Attributes:
        horizon: actions of a chunk, H.
        gripper_note: what the gripper's number was taken to mean, and why.
        worthwhile_batch: 1: on the accelerator the next step's actions of the student wait for these labels, so that
            they should be as few as a step has frames.

    Args:
        model: the model.
        dataset: whose statistics un-normalise; not needed if the model has statistics of one dataset.
        normalization_type: how the model's actions were normalised; as its config.json names it if None.
        gripper: what the gripper's number means, see `action_convention.choose_gripper`; "auto" asks the statistics
            only where the checkpoint's config does not say that of its demos.
        camera: observation key of the frames; "image_primary", or the model's first image, if None.
        chunk_size: frames per pass through the network, which bounds memory; chosen from the device's memory if None,
            and halved where that turns out to be too much.
        precision: "float32", or "bfloat16" for tokenizers and transformer.

    Raises:
        UserError: statistics or camera cannot be chosen, or the actions are not the environment's, by their number or
            by what the checkpoint's config says of the demos.
    """

    worthwhile_batch = 1

    def __init__(
        self,
        model: OctoModel,
        *,
        dataset: str | None = None,
        normalization_type: NormalizationType | None = None,
        gripper: str = "auto",
        camera: str | None = None,
        chunk_size: int | None = None,
        precision: str = "float32",
    ):
        if precision not in PRECISIONS:
            raise UserError(f"precision={precision!r} is not known: known are {', '.join(PRECISIONS)}.")
        unlike = named_as_unlike(model.config)
        if unlike:
            raise UserError(
                f"{model.source} cannot be a teacher of the tasks, since its config.json says that {unlike}: fine-tune "
                "it on demos of theirs."
            )
        self.model = model
        self.camera = _choose_camera(model, camera)
        self.image_size = model.example_batch["observation"][self.camera].shape[2:4]
        self.chunk_size = _default_chunk(model, self.image_size) if chunk_size is None else chunk_size
        if self.chunk_size < 1:
            raise UserError(f"chunk_size={chunk_size} must be at least 1.")
        self._read_statistics(model, dataset, normalization_type, gripper)
        self.horizon = model.module.heads["action"].action_horizon
        dtype = PRECISIONS[precision]
        self.module = with_dtype(model.module, dtype)
        self.params = cast_weights(model.params, dtype)
        self._prefixes: dict[str, tuple[bool, Prefix, dict[str, Any]]] = {}
        self._fitting: set[tuple[int, int]] = set()  # frames and samples for which there was memory

    @classmethod
    def load(
        cls, checkpoint: str | Path, *, say: Callable[[str], None] = print_to_stderr, **kwargs: Any
    ) -> "OctoTeacher":
        """Loads a teacher from a checkpoint folder or hf://owner/name; `kwargs` as for the class.

        `say` is told what the gripper's number is taken to mean.
        """
        teacher = cls(OctoModel.load_pretrained(checkpoint), **kwargs)
        teacher.tasks("push")  # a tokenizer that cannot be had is told now
        say(f"Octo: {teacher.gripper_note}.")
        return teacher

    def _read_statistics(
        self, model: OctoModel, dataset: str | None, kind: NormalizationType | None, gripper: str
    ) -> None:
        name, entry = choose_statistics(model.dataset_statistics, dataset, model.source)
        whose = "its action statistics" if name is None else f"the action statistics of {name!r}"
        self._statistics = read_statistics(
            entry,
            model.normalization_type(name) if kind is None else NormalizationType(kind),
            model.module.heads["action"].action_dim,
            f"{model.source}: {whose}",
        )
        check_action_dim(self._statistics.action_dim, f"{model.source}, by {whose},")
        if gripper == "auto" and named_as_signed(model.config):
            self._gripper = "signed"
            self.gripper_note = "gripper from -1 (closed) to 1 (open), as its config.json says of its demos"
        else:
            self._gripper, self.gripper_note = choose_gripper(gripper, entry, whose)

    def act(
        self,
        rgb: jax.Array,
        instruction: str,
        key: jax.Array,
        num_samples: int = 1,
        first_frame: int = 0,
        steps: int | None = None,
    ) -> jax.Array:
        """Returns actions for frames; see `rpd_jax.teachers.Teacher`.

        Frames of another size than the model's are resized on the device (antialiased). The actions of frame i depend
        on that frame, `instruction`, `num_samples`, `key` and `first_frame` + i only: not on the other frames, nor on
        the chunk size.

        Args:
            rgb: uint8 [B, H, W, 3].
            instruction: the sentence that all frames share.
            key: random key of the samples.
            num_samples: S.
            first_frame: number of the first frame.
            steps: how many actions of each chunk, up to `horizon`; None: the first one, without an axis for them.

        Returns:
            float32 [S, B, action_dim] in [-1, 1], or [S, B, steps, action_dim].

        Raises:
            UserError: there is not memory enough for a single frame.
        """
        check_frames(rgb)
        if self.params is None:
            raise UserError("This teacher was closed: load it again.")
        label = partial(_label if steps is None else _label_chunks, *self._arguments(instruction, num_samples))
        total, start = rgb.shape[0], 0
        labels = []
        while start < total:
            count = min(self.chunk_size, total - start)
            size = self.padded_size(count)
            try:
                actions = label(_rows(rgb, start, size), key, np.int32(first_frame + start))[:, :count]
                if (size, num_samples) not in self._fitting or jax.default_backend() == "cpu":
                    # JAX tells only then that there was no memory for it; a CPU's may run out at any time.
                    jax.block_until_ready(actions)
                    self._fitting.add((size, num_samples))
            except (jax.errors.JaxRuntimeError, MemoryError) as error:
                self._halve_chunk(size, error)
                continue
            labels.append(actions)
            start += count
        labels = jnp.concatenate(labels, axis=1) if len(labels) > 1 else labels[0]
        return labels if steps is None else labels[:, :, :steps]

    def _halve_chunk(self, frames: int, error: Exception) -> None:
        if not out_of_memory(error):
            raise error
        if frames == 1:
            raise UserError(
                "There is no memory for the teacher to look at a single frame: close what else uses the device, or set "
                f"teacher.precision='bfloat16' ({str(error).splitlines()[0]})."
            ) from error
        self.chunk_size = frames // 2
        print_to_stderr(f"Octo: out of memory with {frames} frames at a time; continues with {self.chunk_size}.")

    def trace(
        self, rgb: jax.Array, instruction: str, key: jax.Array, num_samples: int = 1
    ) -> tuple[jax.stages.Traced, tuple[Any, ...]]:
        """Returns the program that `act` would run on one chunk of exactly these frames, and its arguments."""
        static, traced = 6, (*self._arguments(instruction, num_samples), rgb, key, np.int32(0))
        return _label.trace(*traced), traced[static:]

    def padded_size(self, count: int) -> int:
        """The compiled batch size that `count` frames run under: a power of two, or the chunk size."""
        return min(self.chunk_size, 1 << (count - 1).bit_length())

    def close(self) -> None:
        """Releases weights and caches."""
        self.params = None
        self._prefixes.clear()

    def tasks(self, instruction: str) -> dict[str, Any]:
        """Returns the task dict of one row, without goal images: missing ones count as the black images they are.

        What else of a task conditions an image encoder is zeros, as everywhere where a task has only a sentence.
        """
        tasks = self.model.create_tasks(texts=[instruction])
        wanted = {"language_instruction"}
        for tokenizer in self.model.module.octo_transformer.observation_tokenizers.values():
            wanted |= set(tokenizer.task_film_keys) if isinstance(tokenizer, ImageTokenizer) else set()
        flags = {key: tasks["pad_mask_dict"][key] for key in wanted}
        return jax.device_put({**{key: tasks[key] for key in wanted}, "pad_mask_dict": flags})

    def _arguments(self, instruction: str, num_samples: int) -> tuple[Any, ...]:
        if instruction not in self._prefixes:
            tasks = self.tasks(instruction)
            prefix = _encode_prefix(self.module, self.params, tasks)
            all_visible = all(bool(group.mask.all()) for group in prefix.groups.values())
            self._prefixes[instruction] = all_visible, prefix, tasks
        all_visible, prefix, tasks = self._prefixes[instruction]
        return (
            self.module,
            self.camera,
            self.image_size,
            num_samples,
            self._gripper,
            all_visible,
            self.params,
            prefix,
            tasks,
            self._statistics,
        )


def with_dtype(module: OctoModule, dtype: Any) -> OctoModule:
    """Returns the same network computing tokenizers and transformer in `dtype`."""
    transformer = module.octo_transformer
    return module.clone(
        octo_transformer=transformer.clone(
            dtype=dtype,
            observation_tokenizers=FrozenDict(
                {name: tokenizer.clone(dtype=dtype) for name, tokenizer in transformer.observation_tokenizers.items()}
            ),
            task_tokenizers=FrozenDict(
                {name: tokenizer.clone(dtype=dtype) for name, tokenizer in transformer.task_tokenizers.items()}
            ),
        )
    )


def cast_weights(params: Mapping[str, Any], dtype: Any) -> Mapping[str, Any]:
    """Returns `params` with the matrices of the transformer in `dtype`; norms, biases, convolutions and heads stay."""

    def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        is_matrix = path[-1].key == "kernel" and leaf.ndim in (2, 3)
        return leaf.astype(dtype) if path[0].key == "octo_transformer" and is_matrix else leaf

    return params if dtype == jnp.float32 else jax.tree_util.tree_map_with_path(cast, params)


def frame_noise(key: jax.Array, frames: jax.Array, num_samples: int, head: Any) -> SamplingNoise | jax.Array | None:
    """The random numbers with which frame number `frames[i]` is sampled, as `head` takes them; frames int [B]."""
    if isinstance(head, DiscreteActionHead):
        shape = (num_samples, head.action_horizon, head.action_dim, head.vocab_size)
        return jax.vmap(lambda frame: jax.random.gumbel(jax.random.fold_in(key, frame), shape), out_axes=1)(frames)
    if not isinstance(head, DENOISING_HEADS):
        return None  # nothing is drawn
    steps, size = head.diffusion_steps, head.action_horizon * head.action_dim

    def draw(frame: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, frame), (steps + 1, num_samples, 1, size))

    noise = jax.vmap(draw, out_axes=2)(frames)
    return SamplingNoise(noise[0], noise[1:])


@partial(jax.jit, static_argnums=0)
def _encode_prefix(module: OctoModule, params: Any, tasks: Any) -> Prefix:
    return module.apply({"params": params}, tasks, method="encode_prefix")


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _label(module, camera, image_size, num_samples, gripper, all_visible, params, prefix, tasks, statistics, *seen):
    """The first action of each frame's chunk, [S, B, A]; arguments as of `_normalised_chunks`."""
    network = module, camera, image_size, num_samples, all_visible, params, prefix, tasks
    return _environment_s(_normalised_chunks(*network, statistics, *seen)[:, :, 0], statistics, gripper)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _label_chunks(
    module, camera, image_size, num_samples, gripper, all_visible, params, prefix, tasks, statistics, *seen
):
    """Each frame's whole chunk, [S, B, H, A]."""
    network = module, camera, image_size, num_samples, all_visible, params, prefix, tasks
    return _environment_s(_normalised_chunks(*network, statistics, *seen), statistics, gripper)


def _environment_s(actions: jax.Array, statistics: ActionStatistics, gripper: str) -> jax.Array:
    return jnp.clip(gripper_to_environment(statistics.unnormalize(actions), gripper), -1.0, 1.0)


def _normalised_chunks(
    module: OctoModule,
    camera: str,
    image_size: tuple[int, int],
    num_samples: int,
    all_visible: bool,
    params: Any,
    prefix: Prefix,
    tasks: Any,
    statistics: ActionStatistics,
    rgb: jax.Array,
    key: jax.Array,
    start: jax.Array,
) -> jax.Array:
    batch = rgb.shape[0]
    if rgb.shape[1:3] != tuple(image_size):
        resized = jax.image.resize(rgb.astype(jnp.float32), (batch, *image_size, 3), "bilinear", antialias=True)
        rgb = jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)
    return module.apply(
        {"params": params},
        {camera: rgb[:, None]},
        jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *x.shape[1:])), tasks),
        jnp.ones((batch, 1), bool),
        prefix=prefix,
        readout_only=True,
        all_visible=all_visible,
        sample_shape=(num_samples,),
        embodiment_action_dim=statistics.action_dim,
        noise=frame_noise(key, start + jnp.arange(batch), num_samples, module.heads["action"]),
        method="sample_actions",
    )


def _rows(rgb: jax.Array | np.ndarray, start: int, size: int) -> jax.Array:
    """Rows start .. start + size of rgb, its last row repeated beyond its end."""
    if isinstance(rgb, np.ndarray):
        return jax.device_put(rgb[np.minimum(np.arange(start, start + size), len(rgb) - 1)])
    return rgb if start == 0 and size == len(rgb) else _device_rows(rgb, start, size)


@partial(jax.jit, static_argnums=2)
def _device_rows(rgb: jax.Array, start: jax.Array, size: int) -> jax.Array:
    return rgb[jnp.minimum(start + jnp.arange(size), rgb.shape[0] - 1)]


def _choose_camera(model: OctoModel, camera: str | None) -> str:
    images = [name for name in model.example_batch["observation"] if name.startswith("image_")]
    if camera is None:
        camera = "image_primary" if "image_primary" in images else next(iter(images), None)
    if camera not in images:
        raise UserError(f"The checkpoint has no camera {camera!r}: it has {', '.join(images) or 'none'}.")
    read = set()
    for name, tokenizer in model.module.octo_transformer.observation_tokenizers.items():
        if isinstance(tokenizer, ImageTokenizer):
            stacked = matching_keys(tokenizer.obs_stack_keys, model.example_batch["observation"])
            if camera in stacked and len(stacked) > 1:
                raise UserError(f"The tokenizer {name!r} stacks {', '.join(stacked)}; a teacher has one camera only.")
            read |= {f"obs_{name}"} if camera in stacked else set()
    if not read:
        raise UserError(f"No tokenizer of the checkpoint reads the camera {camera!r}.")
    wanted = model.module.heads["action"].readout_key
    if wanted.startswith("obs_") and not wanted.startswith("obs_task_") and wanted not in read:
        raise UserError(
            f"The checkpoint's action head reads the tokens {wanted!r} alone, which a teacher, that is given frames of "
            f"{camera!r} and an instruction, has no input for."
        )
    return camera


def _default_chunk(model: OctoModel, image_size: tuple[int, int]) -> int:
    """The largest power of two up to MAX_CHUNK whose activations take at most a quarter of the device's memory."""
    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    if jax.devices()[0].platform == "cpu" or not memory:
        return CPU_CHUNK
    d = model.config["model"]["token_embedding_size"]
    kwargs = model.config["model"]["transformer_kwargs"]
    pixels = image_size[0] * image_size[1]
    tokens = pixels // 256 + 64
    # Stem: the first maps at half resolution, a few copies. Transformer: MLP, projections and logits of one layer.
    per_frame = 4 * (pixels // 4 * 32 * 6 + tokens * (kwargs["mlp_dim"] * 2 + d * 10))
    per_frame += 4 * 3 * kwargs["num_attention_heads"] * tokens**2
    fitting = max(1, int(memory / 4 / per_frame))
    return min(MAX_CHUNK, 1 << (fitting.bit_length() - 1))


def load(config: ConfigDict) -> OctoTeacher:
    """The teacher `octo` of `rpd_jax.teachers`: reads `config.teacher`."""
    settings = config.teacher
    return OctoTeacher.load(
        find_checkpoint(settings.checkpoint or DEFAULT),
        dataset=settings.get("dataset") or None,
        gripper=settings.get("gripper") or "auto",
        precision=settings.get("precision") or "float32",
    )
