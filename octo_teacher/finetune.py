"""Training of an Octo on demos with its own loss, resumable at any moment."""

import contextlib
import json
import logging
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from octo_teacher.data.chunks import training_batches
from octo_teacher.finetuning.batches import model_batch
from octo_teacher.finetuning.demos import closing_line
from octo_teacher.finetuning.exports import Exports
from octo_teacher.finetuning.preparation import STATISTICS_FILE, TEXT_FOLDER, Prepared, prepare
from octo_teacher.finetuning.settings import check_config, check_together
from octo_teacher.finetuning.throughput import Throughput
from octo_teacher.finetuning.train_step import (
    Devices,
    TrainState,
    frozen_parameters,
    learning_rate,
    make_optimizer,
    make_train_step,
)
from octo_teacher.finetuning.validation import make_validation, measure_success
from octo_teacher.octo_model import OctoModel
from rpd_jax.run.checkpoints import Checkpoints
from rpd_jax.run.console import Console
from rpd_jax.run.directory import RunKind, check_run, open_run
from rpd_jax.run.ending import Diverged, saved_at_an_early_end, told_if_no_memory, told_if_no_room
from rpd_jax.run.lock import hold
from rpd_jax.run.metrics import MetricsLog
from rpd_jax.run.stop import StopRequest
from rpd_jax.run.whole_file import write_whole

FINE_TUNING = RunKind(
    # They change no number, or none but those that they add.
    free=("cache", "data_threads", "data_workers", "devices", "eval", "keep"),
    added={"only_successful": True, "gripper": ""},
    early=(TEXT_FOLDER,),
)


def finetune(config: ConfigDict, workdir: str | Path) -> Path:
    """Trains until `config.steps` and returns the folder of the model in the published layout.

    `workdir` holds config.json, metrics.jsonl, TensorBoard events, checkpoints/ (parameters, optimiser)
    and model/. A run found there continues from its last checkpoint, with the batches and random numbers that it would
    have had. SIGTERM and Ctrl-C save first.

    Raises:
        UserError: missing or malformed demos or checkpoint, a contradictory config, a workdir of another config or of
            another process, a full disk, or no memory; the checkpoints before are kept.
        Diverged: the loss or the parameters are no longer finite; the checkpoints before it are kept.
        Interrupted: SIGINT or SIGTERM came; the state was saved.
    """
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax reports every file it writes
    check_config(config)
    devices = Devices(config.devices)
    check_together(config, len(devices))
    workdir = check_run(workdir, config, FINE_TUNING)
    console = Console()
    with contextlib.ExitStack() as stack:
        stack.enter_context(hold(workdir, console.say))
        stack.enter_context(told_if_no_room(workdir))
        run = FineTuning(config, workdir, devices, console, stack)
        folder = run.run()
    console.say(closing_line(config, folder, run.no_teacher))
    return folder


class FineTuning:
    """Everything a fine-tuning owns, and its loop."""

    def __init__(
        self, config: ConfigDict, workdir: Path, devices: Devices, console: Console, stack: contextlib.ExitStack
    ):
        """Loads the model and the demos and restores the newest checkpoint.

        Args:
            config: checked.
            workdir: where everything is written.
            devices: that share each batch.
            console: what the user sees.
            stack: closes what was opened.
        """
        self.config, self.workdir, self.devices, self.console = config, workdir, devices, console
        self.stop = stack.enter_context(StopRequest())
        prepared = prepare(config, workdir, console)
        self.model, self.no_teacher = prepared.model, prepared.no_teacher
        self.schedule = learning_rate(config)
        frozen = frozen_parameters(self.model.params, config.mode, config.optimizer.freeze_t5, config.frozen)
        optimizer = make_optimizer(config, frozen)
        self.state = _initial_state(self.model.params, optimizer, config, devices)
        self.train_step = make_train_step(self.model, optimizer, config, frozen, devices)
        self.validate = make_validation(self.model, prepared.held_out, config, devices)
        self.step = 0  # steps done
        self.metrics: dict[str, jax.Array] | None = None  # of the last of them, if it was in this process
        self.losses: list[jax.Array] = []  # of the steps since the last row that has a loss
        self.unseen: list[tuple[int, dict[str, jax.Array]]] = []  # steps, and their metrics that nobody has looked at
        self.row: dict[str, float] | None = None  # what was measured after the last step, while it is not logged
        self.exports = Exports(workdir / "model", config.keep)

        # Only now that nothing of the user's can be wrong: a mistake must not claim the workdir.
        open_run(workdir, config, FINE_TUNING)
        if not (workdir / STATISTICS_FILE).exists():
            write_whole(workdir / STATISTICS_FILE, json.dumps(prepared.statistics))
        self.checkpoints = Checkpoints(workdir / "checkpoints", config.keep, progress_item="data")
        stack.callback(self.checkpoints.close)
        self._restore()
        self.batches = training_batches(
            prepared.source,
            config.batch_size,
            config.seed,
            start=self.step,  # each step takes one
            threads=config.data_threads,
            workers=config.data_workers,
        )
        self.log = MetricsLog(workdir, self.step + (self.row is None), counter="step", events=".")
        stack.callback(self.log.close)
        console.say(_summary(self, prepared, frozen))

    # Outside of the saving at an early end: what a step was given may be gone with it.
    @told_if_no_memory("while fine-tuning", "config.batch_size, or raise config.accumulate,")
    def run(self) -> Path:
        """Trains to the end; returns the folder of the model."""
        with saved_at_an_early_end(
            self.checkpoints, lambda: self.step, self._save, unit="step", workdir=self.workdir, say=self.console.say
        ):
            if self.step:
                self._export()  # a run that was cut short after its checkpoint has none yet
            first, self.throughput = self.step, Throughput(self.config.batch_size)
            self._iterate()
        if first < self.config.steps:
            self.throughput.tell(self.console)
        return self.exports.folder

    def _iterate(self) -> None:
        """Steps, measurements, rows and checkpoints to the end."""
        config, done = self.config, self.step - (self.row is not None)
        with self.console.progress("fine-tuning", config.steps, done, config.batch_size, "frames") as progress:
            while True:
                start = time.perf_counter()
                if self.row is None and self.step < config.steps:
                    self.row = self._train()
                if self.row is not None:
                    self._measure(self.row)
                    if self.row:
                        self.log.write(self.step, self.step, self.row)
                    shown = {name: self.row[name] for name in ("loss", "val_loss") if name in self.row}
                    progress.advance(time.perf_counter() - start, shown or None)
                    self.row = None
                # After the log: a checkpoint says that everything before it is on disk.
                if self._is_due(config.save_every) and self.checkpoints.latest != self.step:
                    with self.throughput.stage("save"):
                        self._save()
                if self.step == config.steps:
                    return
                self.stop.check()

    def _train(self) -> dict[str, float]:
        """One step; returns what to log of it."""
        clock, is_first = self.throughput, self.metrics is None
        with clock.fetching(self.metrics):
            batch = self.devices.put_batch(model_batch(self.model, next(self.batches)))
        with clock.stage("train"):
            self.state, self.metrics = self.train_step(self.state, batch)
        self.step += 1
        self.stop.unsaved = True
        if is_first:
            jax.block_until_ready(self.metrics)
            clock.restart()  # what came before was compilation
        self.losses.append(self.metrics["loss"])
        self.unseen.append((self.step, self.metrics))
        self._refuse_what_diverged(wait=False)
        if not self._is_due(self.config.log_every):
            return {}
        with clock.stage("train"):
            loss = float(jnp.mean(jnp.stack(self.losses)))
        self.losses = []
        self._refuse_what_diverged()
        row = {"loss": loss, "grad_norm": float(self.metrics["grad_norm"])}
        return row | {"learning_rate": float(self.schedule(self.step - 1)), **clock.interval()}

    def _measure(self, row: dict[str, float]) -> None:
        """Adds to a row what is due to be measured after its step."""
        config = self.config
        if self._is_due(config.validate_every):
            with self.throughput.stage("validate"):
                row |= self.validate(self.state.result)
        if config.eval.every and self._is_due(config.eval.every):
            with self.throughput.stage("evaluate"):
                row |= measure_success(self._result(), config, self.stop.check, self.console.say)
        self._refuse([name for name, value in row.items() if not np.isfinite(value)], self.step)

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _result(self) -> OctoModel:
        return self.model.replace(params=self.state.result)

    def _save(self) -> None:
        """Writes a checkpoint and, as a step of its own, the model."""
        self._refuse_what_diverged()
        state = self.state
        terms = {
            "parameters": state.params,
            "optimiser's moments": state.opt_state,
            "running mean": state.ema,
        }
        self._refuse([name for name, tree in terms.items() if not _all_finite(tree)], self.step)
        losses = [float(loss) for loss in self.losses]
        self.checkpoints.save(self.step, self.state, {"row": self.row, "losses": losses})
        self._export()
        self.stop.unsaved = False

    def _export(self) -> None:
        self.exports.ensure(self.step, self._result)

    def _restore(self) -> None:
        restored = self.checkpoints.restore(self.state)
        if restored is None:
            return
        self.step, self.state, progress = restored
        # Older versions wrote Grain's place in the data, at first that alone.
        self.row, self.losses = progress.get("row"), list(map(jnp.float32, progress.get("losses", ())))

    def _refuse_what_diverged(self, wait: bool = True) -> None:
        """Ends the run if the loss or the gradient of a step was not finite.

        Without `wait`, looks only at the steps that the devices are done with: to wait for one would keep them idle.
        """
        while self.unseen and (wait or all(value.is_ready() for value in self.unseen[0][1].values())):
            step, metrics = self.unseen.pop(0)
            self._refuse([name for name in ("loss", "grad_norm") if not np.isfinite(metrics[name])], step)

    def _refuse(self, terms: list[str], step: int) -> None:
        """Ends the run if there are terms that were not finite after a step."""
        if terms:
            kept = self.checkpoints.latest
            last = "nothing was saved before" if kept is None else f"the last good checkpoint, of step {kept}, is kept"
            raise Diverged(
                f"The {' and the '.join(terms)} of step {step} were not finite; {last} in {self.workdir}: lower "
                "config.optimizer.learning_rate with another --workdir, or look at the demos (python -m "
                "octo_teacher.demos inspect)."
            )


def _initial_state(params, optimizer: optax.GradientTransformation, config: ConfigDict, devices: Devices) -> TrainState:
    ema = jax.tree.map(jnp.copy, params) if config.ema else None
    return devices.put_state(TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema))


@jax.jit
def _all_finite(tree) -> jax.Array:
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)], bool))


def _summary(run: FineTuning, prepared: Prepared, frozen) -> str:
    sizes = [leaf.size for leaf in jax.tree.leaves(run.model.params)]
    trained = sum(size for size, stays in zip(sizes, jax.tree.leaves(frozen), strict=True) if not stays)
    train_episodes, held_out_episodes = prepared.num_episodes
    return (
        f"{trained:,} of {sum(sizes):,} parameters are trained ({run.config.mode}), {train_episodes} episodes with "
        f"{len(prepared.source)} steps to train on, {held_out_episodes} held out, {len(run.devices)} device(s), from "
        f"step {run.step} of {run.config.steps}."
    )
