"""Training of an Octo on demos with its own diffusion loss, resumable at any moment."""

import json
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import struct, traverse_util
from ml_collections import ConfigDict
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from octo_teacher.augment import augment
from octo_teacher.data import (
    ChunkSource,
    action_statistics,
    ordered_batches,
    read_maniskill,
    split_demos,
    training_batches,
)
from octo_teacher.octo_model import OctoModel
from octo_teacher.octo_nano import create_octo_nano
from rpd_jax.errors import UserError

DATASET = "maniskill"
_VALIDATION_BATCHES = 8


@struct.dataclass
class TrainState:
    """What changes from step to step.

    Attributes:
        step: int32 scalar, updates done.
        params: nested dict of float32 arrays.
        opt_state: optax's.
    """

    step: jax.Array
    params: Any
    opt_state: Any


def finetune(config: ConfigDict, workdir: str | Path) -> Path:
    """Trains until `config.steps` and returns the folder of the model in the published layout.

    `workdir` holds config.json, metrics.jsonl, TensorBoard events, checkpoints/ (parameters, optimiser, data position)
    and model/. A run found there continues from its last checkpoint, with the batches and random numbers that it would
    have had. SIGTERM and Ctrl-C save first.

    Raises:
        UserError: missing or malformed demos or checkpoint, a contradictory config, or a workdir of another config.
    """
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax reports every file it writes
    workdir = Path(workdir)
    _check_config(config)
    paths = [path.strip() for path in config.demos.split(",")]
    _check_workdir(workdir, config)
    model = _initial_model(config, workdir)
    observation = model.example_batch["observation"]["image_primary"]
    demos = [demo for path in paths for demo in read_maniskill(Path(path), image_size=observation.shape[2])]
    train_demos, held_out_demos = split_demos(demos, config.held_out, config.seed)
    statistics = action_statistics(train_demos)
    head = model.module.heads["action"]
    if head.action_dim != len(statistics["action"]["mean"]):
        raise UserError(f"{config.init} has {head.action_dim} action dimensions; the demos have 7.")
    make_source = partial(
        ChunkSource, statistics=statistics["action"], window=config.window, horizon=head.action_horizon
    )
    source, held_out = make_source(train_demos), make_source(held_out_demos)
    model = model.replace(
        dataset_statistics={DATASET: statistics},
        example_batch=_model_batch(model, source[0], add_batch_axis=True),
        config={**model.config, "window_size": config.window, "finetune": json.loads(config.to_json_best_effort())},
    )
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.optimizer.learning_rate, config.optimizer.warmup_steps, config.steps
    )
    optimizer = make_optimizer(schedule, config.optimizer)
    params = model.params
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    batches = training_batches(source, config.batch_size, config.seed, threads=config.data_threads)
    train_step = make_train_step(model, optimizer, config)
    validate = _make_validation(model, held_out, config)

    # Only now that nothing of the user's can be wrong: a mistake must not claim the workdir.
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(json.loads(config.to_json_best_effort()), indent=2))
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True, enable_async_checkpointing=False)
    with ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options) as manager, _stop_flag() as stop:
        state = _restore(manager, state, batches)
        first = int(state.step)
        _drop_metrics_after(workdir / "metrics.jsonl", first)
        print(
            f"{sum(p.size for p in jax.tree.leaves(params)):,} parameters, {len(train_demos)} episodes with "
            f"{len(source)} steps to train on, {len(held_out_demos)} held out, from step {first} of {config.steps}."
        )
        with SummaryWriter(str(workdir)) as board, _progress(config.steps, first) as advance:
            log = partial(_log, workdir / "metrics.jsonl", board)
            losses, waited, since, since_step = [], 0.0, time.perf_counter(), first
            for step in range(first + 1, config.steps + 1):
                started = time.perf_counter()
                batch = _model_batch(model, next(batches))
                waited += time.perf_counter() - started
                state, metrics = train_step(state, batch)
                losses.append(metrics["loss"])
                if step % config.log_every == 0 or step == config.steps:
                    loss = float(jnp.mean(jnp.stack(losses)))
                    elapsed = time.perf_counter() - since
                    log(
                        step,
                        loss=loss,
                        grad_norm=float(metrics["grad_norm"]),
                        learning_rate=float(schedule(step - 1)),
                        frames_per_second=(step - since_step) * config.batch_size / elapsed,
                        data_wait_share=waited / elapsed,
                    )
                    losses, waited, since, since_step = [], 0.0, time.perf_counter(), step
                else:
                    loss = None
                if step % config.validate_every == 0 or step == config.steps:
                    log(step, **validate(state.params))
                    since, since_step = time.perf_counter(), step
                advance(step, loss)
                if step % config.save_every == 0 or step == config.steps or stop.is_set:
                    _save(manager, state, batches, model, workdir)
                    since, since_step = time.perf_counter(), step
                if stop.is_set:
                    print(f"Saved at step {step}; the same command continues.")
                    raise SystemExit(130)
    print(f"The model is in {workdir / 'model'}; use it with --config.teacher.checkpoint={workdir / 'model'}.")
    return workdir / "model"


def make_optimizer(schedule: optax.Schedule, config: ConfigDict) -> optax.GradientTransformation:
    """Returns AdamW with clipping by global norm; weight decay on kernels only; T5 untouched if `config.freeze_t5`.

    Args:
        schedule: learning rate by step.
        config: reads `weight_decay`, `clip_norm` and `freeze_t5`.
    """

    def label(params):
        flat = traverse_util.flatten_dict(params)
        return traverse_util.unflatten_dict(
            {path: "frozen" if config.freeze_t5 and "hf_model" in path else "trained" for path in flat}
        )

    def is_kernel(params):
        return traverse_util.path_aware_map(lambda path, _: path[-1] == "kernel", params)

    adamw = optax.adamw(schedule, weight_decay=config.weight_decay, mask=is_kernel)
    trained = optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
    return optax.multi_transform({"trained": trained, "frozen": optax.set_to_zero()}, label)


def make_train_step(
    model: OctoModel, optimizer: optax.GradientTransformation, config: ConfigDict
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the jitted update: augmentation, loss, gradient and optimiser in one.

    The random key is that of `config.seed` folded with the step: nothing from before it counts but `state`.
    """

    def step(state: TrainState, batch):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        augment_key, loss_key = jax.random.split(key)
        if config.augment.enabled:
            images = augment(batch["observation"]["image_primary"], augment_key, config.augment)
            batch = {**batch, "observation": {**batch["observation"], "image_primary": images}}
        grads, metrics = jax.grad(model.loss, has_aux=True)(state.params, batch, loss_key, train=True)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), {**metrics, "grad_norm": optax.global_norm(grads)}

    return jax.jit(step, donate_argnums=0)


def _make_validation(model: OctoModel, source: ChunkSource, config: ConfigDict):
    """Returns params -> {"val_loss", "val_action_mse"}: diffusion loss, and error of sampled first actions."""
    statistics = model.dataset_statistics[DATASET]["action"]
    std = jnp.asarray(statistics["std"], jnp.float32)
    mask = jnp.asarray(statistics["mask"])

    @jax.jit
    def evaluate(params, batch, key):
        loss_key, sample_key = jax.random.split(key)
        loss, _ = model.loss(params, batch, loss_key, train=False)
        sampled = model.module.apply(
            {"params": params},
            batch["observation"],
            batch["task"],
            batch["observation"]["timestep_pad_mask"],
            rng=sample_key,
            method="sample_actions",
        )
        error = (sampled[:, 0] - batch["action"][:, -1, 0]) * jnp.where(mask, std, 1.0)
        return loss, jnp.mean(jnp.square(error))

    def validate(params):
        if not len(source):
            return {}
        key = jax.random.key(config.seed)
        results = []
        for index, batch in enumerate(ordered_batches(source, config.batch_size)):
            if index == _VALIDATION_BATCHES:
                break
            results.append(evaluate(params, _model_batch(model, batch), jax.random.fold_in(key, index)))
        losses, errors = zip(*results, strict=True)
        return {"val_loss": float(np.mean(losses)), "val_action_mse": float(np.mean(errors))}

    return validate


def _model_batch(model: OctoModel, batch: dict[str, Any], add_batch_axis: bool = False) -> dict[str, Any]:
    """Returns a batch of `ChunkSource` as `OctoModel.loss` takes it."""
    if add_batch_axis:
        batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], batch)
    observation = dict(batch["observation"])
    observation["pad_mask_dict"] = {"image_primary": observation["timestep_pad_mask"]}
    task = model.create_tasks(texts=[str(text) for text in batch["instruction"]])
    return {
        "observation": observation,
        "task": task,
        "action": batch["action"],
        "action_pad_mask": batch["action_pad_mask"],
    }


def _check_config(config: ConfigDict) -> None:
    for name in ("steps", "batch_size", "window", "log_every", "validate_every", "save_every"):
        if config[name] < 1:
            raise UserError(f"config.{name}={config[name]} must be at least 1.")
    if not 0.0 <= config.held_out < 1.0:
        raise UserError(f"config.held_out={config.held_out} must be in [0, 1).")
    if config.init == "scratch" and config.model != "octo-nano":
        raise UserError(
            f"config.model={config.model!r} cannot be trained from scratch: the allowed value is 'octo-nano'."
        )
    if config.optimizer.warmup_steps >= config.steps:
        raise UserError(
            f"config.optimizer.warmup_steps={config.optimizer.warmup_steps} must be less than "
            f"config.steps={config.steps}."
        )
    if config.init == "scratch" and config.window > 2:
        raise UserError(f"config.window={config.window} is more than octo-nano's 2.")


def _initial_model(config: ConfigDict, workdir: Path) -> OctoModel:
    if config.init == "scratch":
        return create_octo_nano(jax.random.key(config.seed), workdir / "text", window=config.window)
    return OctoModel.load_pretrained(config.init)


def _check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError if the workdir holds a run of another config."""
    path = workdir / "config.json"
    wanted = json.loads(config.to_json_best_effort())
    if path.exists():
        found = json.loads(path.read_text())
        flat_wanted, flat_found = (traverse_util.flatten_dict(tree, sep=".") for tree in (wanted, found))
        different = [
            f"{name}: {flat_found.get(name)} there, {flat_wanted.get(name)} here"
            for name in sorted({*flat_wanted, *flat_found})
            if flat_found.get(name) != flat_wanted.get(name)
        ]
        if different:
            raise UserError(
                f"{workdir} holds a run of another config ({'; '.join(different)}): choose another --workdir."
            )


def _restore(manager: ocp.CheckpointManager, state: TrainState, batches) -> TrainState:
    step = manager.latest_step()
    if step is None:
        return state
    args = ocp.args.Composite(state=ocp.args.StandardRestore(state), data=ocp.args.JsonRestore())
    restored = manager.restore(step, args=args)
    batches.set_state(restored["data"])
    return restored["state"]


def _save(manager: ocp.CheckpointManager, state: TrainState, batches, model: OctoModel, workdir: Path) -> None:
    step = int(state.step)
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(batches.get_state()))
    manager.save(step, args=args, force=True)
    manager.wait_until_finished()
    if not (workdir / "model" / str(step)).exists():
        model.replace(params=state.params).save_pretrained(step, workdir / "model")


def _log(path: Path, board: SummaryWriter, step: int, **metrics: float) -> None:
    with path.open("a") as file:
        file.write(json.dumps({"step": step, **metrics}) + "\n")
    for name, value in metrics.items():
        board.add_scalar(name, value, step)


def _drop_metrics_after(path: Path, step: int) -> None:
    if path.exists():
        lines = [
            line for line in path.read_text().splitlines() if line.endswith("}") and json.loads(line)["step"] <= step
        ]
        path.write_text("".join(f"{line}\n" for line in lines))


class _Stop:
    is_set = False


@contextmanager
def _stop_flag() -> Iterator[_Stop]:
    """Turns SIGTERM and Ctrl-C into a flag for as long as it is open."""
    stop = _Stop()

    def request(*_):
        stop.is_set = True

    try:
        previous = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: nobody sends signals there
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _progress(total: int, first: int) -> Iterator[Callable[[int, float | None], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task("fine-tune", total=total, completed=first, rate="compiling")

        def advance(step: int, loss: float | None) -> None:
            speed = progress.tasks[bar].speed
            progress.update(bar, completed=step, rate=f"{speed:.1f} steps/s" if speed else "compiling")
            if loss is not None:
                progress.update(bar, description=f"loss {loss:.3f}")

        yield advance
