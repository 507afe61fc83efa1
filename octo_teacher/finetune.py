"""Training of an Octo on demos with its own loss, resumable at any moment."""

import json
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import traverse_util
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tensorboardX import SummaryWriter

from octo_teacher.data.chunks import MODALITIES, ChunkSource, ordered_batches, training_batches
from octo_teacher.data.episodes import Demo, action_statistics, split_demos
from octo_teacher.finetuning.adaptation import adapt_model, camera_sizes
from octo_teacher.finetuning.demos import closing_line, read_training_demos, why_no_teacher
from octo_teacher.finetuning.octo_nano import create_octo_nano
from octo_teacher.finetuning.train_step import Devices, TrainState, frozen_parameters, make_optimizer, make_train_step
from octo_teacher.octo_model import OctoModel
from octo_teacher.teacher import PRECISIONS, OctoTeacher
from rpd_jax.errors import UserError
from rpd_jax.run.lock import hold
from rpd_jax.tasks import find_task

_VALIDATION_BATCHES = 8
# What may change between two starts of one run: it changes no number, or none but those that it adds.
_FREE_FIELDS = ("cache", "data_threads", "data_workers", "devices", "eval")


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
    devices = Devices(config.devices)
    _check_config(config, devices)
    _check_workdir(workdir, config)
    with hold(workdir):
        return _finetune(config, workdir, devices)


def _finetune(config: ConfigDict, workdir: Path, devices: Devices) -> Path:
    console = Console(highlight=False, soft_wrap=True)
    model = _initial_model(config, workdir)
    datasets = read_training_demos(config, _frame_sizes(model, config), console)
    demos = [demo for _, part in datasets for demo in part]
    train_demos, held_out_demos = split_demos(demos, config.held_out, config.seed)
    statistics = _statistics(workdir, train_demos)
    model, notes = _adapt(model, config, len(statistics["action"]["mean"]))
    for note in notes:
        console.print(f"Not as in {config.init}: {note}.", markup=False)
    make_source = partial(
        ChunkSource,
        statistics=statistics["action"],
        window=config.window,
        horizon=model.module.heads["action"].action_horizon,
        modality=config.modality,
    )
    source, held_out = make_source(train_demos), make_source(held_out_demos)
    model = model.replace(
        dataset_statistics={config.dataset_name: statistics},
        config={**model.config, "window_size": config.window, "finetune": json.loads(config.to_json_best_effort())},
    )
    no_teacher = why_no_teacher(config, datasets, model)
    if config.eval.every and no_teacher:
        raise UserError(
            f"config.eval.every={config.eval.every}, but the model cannot be tried in the tasks: {no_teacher}."
        )
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.optimizer.learning_rate, config.optimizer.warmup_steps, config.steps
    )
    frozen = frozen_parameters(model.params, config.mode, config.optimizer.freeze_t5, config.frozen)
    optimizer = make_optimizer(schedule, config.optimizer, frozen)
    params = model.params
    ema = jax.tree.map(jnp.copy, params) if config.ema else None
    state = devices.put_state(TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema))
    batches = training_batches(
        source, config.batch_size, config.seed, threads=config.data_threads, workers=config.data_workers
    )
    train_step = make_train_step(model, optimizer, config, frozen, devices)
    validate = _make_validation(model, held_out, config, devices)

    # Only now that nothing of the user's can be wrong: a mistake must not claim the workdir.
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(json.loads(config.to_json_best_effort()), indent=2))
    (workdir / "statistics.json").write_text(json.dumps(statistics))
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True, enable_async_checkpointing=False)
    with ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options) as manager, _stop_flag() as stop:
        state = _restore(manager, state, batches)
        first = int(state.step)
        _drop_metrics_after(workdir / "metrics.jsonl", first)
        console.print(_summary(config, params, frozen, train_demos, source, held_out_demos, devices, first))
        with SummaryWriter(str(workdir)) as board, _progress(config.steps, first, console) as advance:
            log = partial(_log, workdir / "metrics.jsonl", board)
            clock = Clock(config.batch_size)
            losses, metrics = [], None
            for step in range(first + 1, config.steps + 1):
                with clock.waiting_for_data(metrics):
                    batch = devices.put_batch(_model_batch(model, next(batches)))
                with clock.stage("train"):
                    state, metrics = train_step(state, batch)
                if step == first + 1:
                    jax.block_until_ready(metrics)
                    clock.restart(step)  # what came before was compilation
                losses.append(metrics["loss"])
                loss = None
                if step % config.log_every == 0 or step == config.steps:
                    with clock.stage("train"):
                        loss = float(jnp.mean(jnp.stack(losses)))
                    log(
                        step,
                        loss=loss,
                        grad_norm=float(metrics["grad_norm"]),
                        learning_rate=float(schedule(step - 1)),
                        **clock.interval(step),
                    )
                    losses = []
                if step % config.validate_every == 0 or step == config.steps:
                    with clock.stage("validate"):
                        log(step, **validate(state.result))
                if config.eval.every and (step % config.eval.every == 0 or step == config.steps):
                    with clock.stage("evaluate"):
                        log(step, **_measure_success(model.replace(params=state.result), config, console))
                advance(step, loss)
                if step % config.save_every == 0 or step == config.steps or stop.is_set:
                    with clock.stage("save"):
                        _save(manager, state, batches, model, workdir)
                if stop.is_set:
                    console.print(f"Saved at step {step}; the same command continues.")
                    raise SystemExit(130)
        if first < config.steps:
            console.print(clock.table())
            console.print(clock.speed())
    console.print(closing_line(config, workdir / "model", no_teacher), markup=False)
    return workdir / "model"


class Clock:
    """Where the time goes, and how many frames per second are trained on.

    The time for fetching a batch counts as waiting only if the devices had already finished the step before it, since
    otherwise it is hidden behind that step; it is then an upper bound of the time in which they were idle.

    Args:
        batch_size: frames per step.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.restart(0)

    def restart(self, step: int) -> None:
        """Forgets everything up to this step."""
        self._seconds = {"wait for data": 0.0, "train": 0.0, "validate": 0.0, "evaluate": 0.0, "save": 0.0}
        self._start = time.perf_counter()
        self._interval = dict(self._seconds)
        self._last_step = step
        self._steps = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time inside the `with` block."""
        start = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - start

    @contextmanager
    def waiting_for_data(self, running: Mapping[str, jax.Array] | None) -> Iterator[None]:
        """Counts the time inside the block as waiting if the step that returned `running` is over at its end."""
        start = time.perf_counter()
        yield
        hidden = running is not None and not all(value.is_ready() for value in running.values())
        self._seconds["train" if hidden else "wait for data"] += time.perf_counter() - start
        self._steps += 1

    def interval(self, step: int) -> dict[str, float]:
        """Frames per second and share of waiting since the last call, over the time of training alone."""
        passed = {name: value - self._interval[name] for name, value in self._seconds.items()}
        busy = passed["train"] + passed["wait for data"]
        self._interval = dict(self._seconds)
        steps, self._last_step = step - self._last_step, step
        if not steps or not busy:
            return {}
        return {
            "frames_per_second": steps * self._batch_size / busy,
            "data_wait_share": passed["wait for data"] / busy,
        }

    def table(self) -> Table:
        """The whole run since the last restart."""
        total = time.perf_counter() - self._start
        table = Table("stage", "seconds", "share", title="Where the time went", title_justify="left")
        for name, seconds in self._seconds.items():
            table.add_row(name, f"{seconds:.1f}", f"{seconds / total:.1%}")
        table.add_row("all", f"{total:.1f}", "100.0%")
        return table

    def speed(self) -> str:
        """One sentence on the whole run since the last restart."""
        busy = self._seconds["train"] + self._seconds["wait for data"]
        if not busy:
            return "Too short to tell the speed."
        frames, share = self._steps * self._batch_size / busy, self._seconds["wait for data"] / busy
        return f"Training: {frames:.1f} frames/s, {share:.1%} of the time waiting for data."


def _statistics(workdir: Path, demos: list[Demo]) -> dict[str, Any]:
    path = workdir / "statistics.json"
    return json.loads(path.read_text()) if path.exists() else action_statistics(demos)


def _frame_sizes(model: OctoModel, config: ConfigDict) -> dict[str, int]:
    known = camera_sizes(model)
    cameras = [name for name, key in config.cameras.items() if key is not None]
    return {name: known.get(name, config.new_camera_size) for name in cameras}


def _adapt(model: OctoModel, config: ConfigDict, action_dim: int) -> tuple[OctoModel, list[str]]:
    return adapt_model(
        model,
        jax.random.fold_in(jax.random.key(config.seed), 1),
        camera_sizes=_frame_sizes(model, config),
        window=config.window,
        action_horizon=config.action_horizon or model.module.heads["action"].action_horizon,
        action_dim=action_dim,
        goals=config.modality != "language",
        finetune_language=not config.optimizer.freeze_t5,
    )


def _summary(config, params, frozen, train_demos, source, held_out_demos, devices, first) -> str:
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    trained = sum(size for size, stays in zip(sizes, jax.tree.leaves(frozen), strict=True) if not stays)
    return (
        f"{trained:,} of {sum(sizes):,} parameters are trained ({config.mode}), {len(train_demos)} episodes with "
        f"{len(source)} steps to train on, {len(held_out_demos)} held out, {len(devices)} device(s), from step {first} "
        f"of {config.steps}."
    )


def _measure_success(model: OctoModel, config: ConfigDict, console: Console) -> dict[str, float]:
    """Success and mean reward of the model in the simulator, by task."""
    # Imported late: without evaluation no simulator is needed.
    from rpd_jax.acting.episodes import teacher_act
    from rpd_jax.acting.measure import measure_policy

    # To one device: the teacher does not split its batches.
    model = model.replace(params=jax.device_put(model.params, jax.local_devices()[0]))
    teacher, numbers = OctoTeacher(model), {}
    for name in _eval_tasks(config):
        task = find_task(name)
        row = measure_policy(
            teacher_act(teacher, task.instruction),
            task,
            config.eval.episodes,
            config.eval.seed,
            ConfigDict(
                {
                    "num_envs": config.eval.num_envs,
                    "image_size": model.example_batch["observation"]["image_primary"].shape[2],
                    "mesh_detail": config.eval.mesh_detail,
                }
            ),
        )
        numbers |= {f"success/{name}": row["success"], f"reward/{name}": row["reward"]}
        console.print(f"{name}: {row['success']:.1%} of {row['episodes']:.0f} episodes")
    return numbers


def _eval_tasks(config: ConfigDict) -> list[str]:
    return [name.strip() for name in config.eval.tasks.split(",") if name.strip()]


def _make_validation(model: OctoModel, source: ChunkSource, config: ConfigDict, devices: Devices):
    """Returns params -> {"val_loss", "val_action_mse"}: diffusion loss, and error of sampled first actions.

    The error is that of the executed, un-normalised action, mean square over its dimensions.
    """
    statistics = model.dataset_statistics[config.dataset_name]["action"]
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
            batch = devices.put_batch(_model_batch(model, batch))
            results.append(evaluate(params, batch, jax.random.fold_in(key, index)))
        losses, errors = zip(*results, strict=True)
        return {"val_loss": float(np.mean(losses)), "val_action_mse": float(np.mean(errors))}

    return validate


def _model_batch(model: OctoModel, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a batch of `ChunkSource` as `OctoModel.loss` takes it."""
    observation = dict(batch["observation"])
    cameras = [name for name in observation if name.startswith("image_")]
    observation["pad_mask_dict"] = {name: observation["timestep_pad_mask"] for name in cameras}
    texts = [str(text) for text in batch["instruction"]]
    task: dict[str, Any] = {"pad_mask_dict": {}}
    if "language_instruction" in model.example_batch["task"]:
        if model.text_processor is None:
            raise UserError("The checkpoint names no tokenizer: it cannot be trained on instructions.")
        task["language_instruction"] = model.text_processor.encode(texts)
        task["pad_mask_dict"]["language_instruction"] = np.array([bool(text) for text in texts])
    for name in batch.get("goal", {}):
        task[name] = batch["goal"][name]
        task["pad_mask_dict"][name] = batch["by_image"]
    return {
        "observation": observation,
        "task": task,
        "action": batch["action"],
        "action_pad_mask": batch["action_pad_mask"],
    }


def _check_config(config: ConfigDict, devices: Devices) -> None:
    for name in ("steps", "batch_size", "window", "accumulate", "log_every", "validate_every", "save_every"):
        if config[name] < 1:
            raise UserError(f"config.{name}={config[name]} must be at least 1.")
    for name in ("action_horizon", "data_workers", "data_threads"):
        if config[name] < 0:
            raise UserError(f"config.{name}={config[name]} must not be negative.")
    if not 0.0 <= config.held_out < 1.0:
        raise UserError(f"config.held_out={config.held_out} must be in [0, 1).")
    if not 0.0 <= config.ema < 1.0:
        raise UserError(f"config.ema={config.ema} must be in [0, 1).")
    if config.init == "scratch" and config.model != "octo-nano":
        raise UserError(
            f"config.model={config.model!r} cannot be trained from scratch: the allowed value is 'octo-nano'."
        )
    if config.optimizer.warmup_steps >= config.steps:
        raise UserError(
            f"config.optimizer.warmup_steps={config.optimizer.warmup_steps} must be less than "
            f"config.steps={config.steps}."
        )
    if config.batch_size % (config.accumulate * len(devices)):
        raise UserError(
            f"config.batch_size={config.batch_size} is no multiple of config.accumulate={config.accumulate} times "
            f"{len(devices)} devices."
        )
    for name, allowed in (("modality", MODALITIES), ("precision", tuple(PRECISIONS))):
        if config[name] not in allowed:
            raise UserError(f"config.{name}={config[name]!r} is not one of {', '.join(allowed)}.")
    if config.cameras.get("primary") is None:
        raise UserError("config.cameras.primary must name a camera of the demos, or '' for their only one.")
    if config.eval.every and not _eval_tasks(config):
        raise UserError("config.eval.every is set but config.eval.tasks is empty: name tasks, separated by commas.")
    for name in _eval_tasks(config):
        find_task(name)


def _initial_model(config: ConfigDict, workdir: Path) -> OctoModel:
    if config.init == "scratch":
        horizon = config.action_horizon or 4
        return create_octo_nano(
            jax.random.key(config.seed), workdir / "text", window=config.window, action_horizon=horizon
        )
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
            if name.split(".")[0] not in _FREE_FIELDS and flat_found.get(name) != flat_wanted.get(name)
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
        model.replace(params=state.result).save_pretrained(step, workdir / "model")


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
def _progress(total: int, first: int, console: Console) -> Iterator[Callable[[int, float | None], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("fine-tune", total=total, completed=first, rate="compiling")

        def advance(step: int, loss: float | None) -> None:
            speed = progress.tasks[bar].speed
            progress.update(bar, completed=step, rate=f"{speed:.1f} steps/s" if speed else "compiling")
            if loss is not None:
                progress.update(bar, description=f"loss {loss:.3f}")

        yield advance
