"""One update of the fine-tuning: what is trained, the optimiser, and the compiled step on all local devices."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util
from flax.core import FrozenDict, freeze
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict, FrozenConfigDict

from octo_teacher.finetuning.augmentation import augment
from octo_teacher.model.octo_module import OctoModule
from octo_teacher.octo_model import OctoModel, loss_of
from octo_teacher.teacher import PRECISIONS, with_dtype
from rpd_jax.errors import UserError

# Patterns of parameter names, joined with dots, that each mode leaves as they are (Octo's scripts/finetune.py).
MODES: dict[str, tuple[str, ...]] = {
    "full": (),
    "head_only": ("octo_transformer.*",),
    "head_mlp_only": (
        "octo_transformer.*",
        "heads_*.map_head.probe",
        "heads_*.map_head.MultiHeadDotProductAttention_0.*",
    ),
}
LANGUAGE_ENCODER = "*.hf_model.*"


@struct.dataclass
class TrainState:
    """What changes from step to step.

    Attributes:
        step: int32 scalar, updates done.
        params: nested dict of float32 arrays.
        opt_state: optax's.
        ema: running mean of `params`, None without one.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any = None

    @property
    def result(self) -> Any:
        """The parameters to use: the running mean if there is one."""
        return self.params if self.ema is None else self.ema


def frozen_parameters(params: Mapping[str, Any], mode: str, freeze_t5: bool, more: str = "") -> Any:
    """Returns a tree of bool like `params`: True where training leaves the parameter as it is.

    Args:
        mode: one of MODES.
        freeze_t5: leave the language encoder as it is.
        more: further patterns as in MODES, separated by commas.

    Raises:
        UserError: unknown mode, a pattern that matches nothing, or nothing is left to train.
    """
    if mode not in MODES:
        raise UserError(f"config.mode={mode!r} is not one of {', '.join(MODES)}.")
    names = {path: ".".join(path) for path in traverse_util.flatten_dict(dict(params))}
    own = tuple(pattern.strip() for pattern in more.split(",") if pattern.strip())
    for pattern in own:
        if not any(fnmatchcase(name, pattern) for name in names.values()):
            raise UserError(
                f"config.frozen={pattern!r} matches no parameter; their names look like {min(names.values())}."
            )
    patterns = MODES[mode] + own + ((LANGUAGE_ENCODER,) if freeze_t5 else ())
    frozen = {path: any(fnmatchcase(name, pattern) for pattern in patterns) for path, name in names.items()}
    if all(frozen.values()):
        raise UserError(f"config.mode={mode!r} with config.frozen={more!r} leaves no parameter to train.")
    return traverse_util.unflatten_dict(frozen)


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """The learning rate by step: reads `steps` and `optimizer`."""
    optimizer = config.optimizer
    return optax.warmup_cosine_decay_schedule(0.0, optimizer.learning_rate, optimizer.warmup_steps, config.steps)


def make_optimizer(config: ConfigDict, frozen: Any) -> optax.GradientTransformation:
    """Returns AdamW with clipping by global norm; weight decay on kernels only; `frozen` parameters stay untouched.

    Args:
        config: reads `steps` and `optimizer`.
        frozen: tree of bool, see `frozen_parameters`.
    """
    return _optimizer(FrozenConfigDict({"steps": config.steps, "optimizer": config.optimizer}), freeze(frozen))


# Equal optimizers are one, so that equal steps are (see `make_train_step`).
@lru_cache
def _optimizer(config: FrozenConfigDict, frozen: FrozenDict) -> optax.GradientTransformation:
    def is_kernel(params):
        return traverse_util.path_aware_map(lambda path, _: path[-1] == "kernel", params)

    decay = config.optimizer.weight_decay
    adamw = optax.adamw(learning_rate(config), weight_decay=decay, mask=is_kernel)
    trained = optax.chain(optax.clip_by_global_norm(config.optimizer.clip_norm), adamw)
    labels = jax.tree.map(lambda stays: "frozen" if stays else "trained", frozen.unfreeze())
    return optax.multi_transform({"trained": trained, "frozen": optax.set_to_zero()}, labels)


class Devices:
    """The local devices in one mesh: batches are split among them, everything else is on each.

    Args:
        count: how many; 0 for all.

    Raises:
        UserError: there are fewer.
    """

    def __init__(self, count: int = 0):
        devices = jax.local_devices()
        if not 0 <= count <= len(devices):
            raise UserError(f"config.devices={count}: this machine has {len(devices)} ({devices[0].platform}).")
        self.mesh = Mesh(np.array(devices[: count or None]), ("data",))
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.split = NamedSharding(self.mesh, PartitionSpec("data"))

    def __len__(self) -> int:
        return self.mesh.size

    def put_batch(self, batch: Any) -> Any:
        """Puts a batch's rows onto the devices, an equal share each."""
        return jax.device_put(batch, self.split)

    def put_state(self, state: Any) -> Any:
        """Puts everything onto each device."""
        return jax.device_put(state, self.replicated)


def make_train_step(
    model: OctoModel, optimizer: optax.GradientTransformation, config: ConfigDict, frozen: Any, devices: Devices
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the jitted update: augmentation, loss, gradient and optimiser in one.

    The random key is that of `config.seed` folded with the step: nothing from before it counts but `state`. A process
    compiles what is equal once.

    Args:
        config: reads `seed, augment, accumulate, ema, precision`. With `accumulate` = k the gradient is the mean over k
            parts of the batch, whose activations are in memory one after the other.
    """
    read = {name: config[name] for name in ("seed", "augment", "accumulate", "ema")}
    module = with_dtype(model.module, PRECISIONS[config.precision])
    return _train_step(module, optimizer, FrozenConfigDict(read), freeze(frozen), devices.replicated)


@lru_cache
def _train_step(
    module: OctoModule,
    optimizer: optax.GradientTransformation,
    config: FrozenConfigDict,
    frozen: FrozenDict,
    replicated: NamedSharding,
):
    frozen = frozen.unfreeze()

    def gradient(params, batch, key):
        augment_key, loss_key = jax.random.split(key)
        if config.augment.enabled:
            batch = augment_batch(batch, augment_key, config.augment)
        return jax.grad(partial(loss_of, module), has_aux=True)(params, batch, loss_key)

    def mean_gradient(params, batch, key):
        parts = config.accumulate
        if parts == 1:
            return gradient(params, batch, key)
        # Part i holds the rows i, i + parts, ...: each device's share of a part is from its own rows.
        batch = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(total, part_and_index):
            part, index = part_and_index
            new = gradient(params, part, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, new), None

        shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], batch), key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, (batch, jnp.arange(parts)))
        return jax.tree.map(lambda x: x / parts, total)

    def step(state: TrainState, batch):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        grads, metrics = mean_gradient(state.params, batch, key)
        grads = jax.tree.map(lambda stays, grad: jnp.zeros_like(grad) if stays else grad, frozen, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = jax.tree.map(
                lambda stays, mean, new: mean if stays else config.ema * mean + (1.0 - config.ema) * new,
                frozen,
                ema,
                params,
            )
        metrics = {**metrics, "grad_norm": optax.global_norm(grads)}
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=replicated)


def augment_batch(batch: Mapping[str, Any], key: jax.Array, config: ConfigDict) -> dict[str, Any]:
    """Augments a batch's frames and goal images; those of one example and camera share their draws.

    Only the camera "primary" is cropped and shifted: what another one sees depends on where its edges are. Goal images
    of examples whose task an image does not tell stay black.
    """
    observation, task = dict(batch["observation"]), dict(batch["task"])
    for index, name in enumerate(sorted(name for name in observation if name.startswith("image_"))):
        frames = observation[name]
        has_goal = name in task
        if has_goal:
            frames = jnp.concatenate([frames, task[name][:, None]], axis=1)
        camera_key = jax.random.fold_in(key, index) if index else key
        frames = augment(frames, camera_key, config, geometry=name == "image_primary")
        if has_goal:
            shown = task["pad_mask_dict"][name][:, None, None, None]
            task[name] = frames[:, -1] * shown.astype(frames.dtype)
            frames = frames[:, :-1]
        observation[name] = frames
    return {**batch, "observation": observation, "task": task}
