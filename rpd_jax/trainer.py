"""The loop: rollout, labels, update, log, evaluate, checkpoint. A frame's way through the program can be read here."""

import contextlib
import dataclasses
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from rpd_jax import settings
from rpd_jax.acting import collect
from rpd_jax.acting.estimate import estimate_seconds
from rpd_jax.acting.evaluation import evaluate_student, measure_teacher
from rpd_jax.acting.seeds import episode_seeds
from rpd_jax.acting.stage import Stage, iteration_keys
from rpd_jax.acting.training_state import TrainingState
from rpd_jax.errors import UserError
from rpd_jax.first_stages import check_first_stages, take_over
from rpd_jax.learning.finite import mend_of
from rpd_jax.run import processes
from rpd_jax.run.checkpoints import Checkpoints
from rpd_jax.run.directory import check_run, open_run
from rpd_jax.run.ending import saved_at_an_early_end, told_if_no_room
from rpd_jax.run.lock import hold
from rpd_jax.run.metrics import MetricsLog
from rpd_jax.run.records import read_results, read_rows, read_teacher
from rpd_jax.run.stages import StageClock
from rpd_jax.run.stop import StopRequest
from rpd_jax.run.whole_file import write_json
from rpd_jax.stages import StagePlan, check_stages, plan, without_effect
from rpd_jax.student.still import resting
from rpd_jax.training_run.console import TrainingConsole, TrainingProgress
from rpd_jax.training_run.fields import TRAINING, default_workdir


def train(
    config: ConfigDict, workdir: str | Path | None, config_file: str = "", first_stages: str | Path | None = None
) -> dict[str, float | None]:
    """Runs, or continues, the training run that `config` describes, to its end.

    Args:
        config: as `configs.default.get_config` makes it.
        workdir: the run's directory; made, or resumed if it is of the same config. None: `default_workdir` names it.
        config_file: that the name is made of.
        first_stages: a run whose first stages are taken as far as they are the same; see `take_over`.

    Returns:
        What results.json holds: success of "student" and "teacher" (None where not measured), with 95% bounds.

    Raises:
        UserError: settings, files or the machine do not allow the run.
        WorkerError: an environment worker failed (and `env.restart_workers` is off); the state was saved.
        Interrupted: SIGINT or SIGTERM came; the state was saved.
    """
    with processes.connected():
        profiles = config.profiles
        config = settings.resolve(config)
        settings.check_machine(config)
        check_stages(config)
        if first_stages:
            check_first_stages(config, Path(first_stages))
        console = TrainingConsole(quiet=not processes.is_first())
        with _held_run(workdir or default_workdir(config_file, config), config, console) as workdir:
            console.settings(config, settings.departures(config, profiles.paper), workdir)
            if ignored := without_effect(config, profiles[config.profile]):
                console.say(f"Without effect, since {config.algorithm} has no such stage: {', '.join(ignored)}.")
            results_path = workdir / "results.json"
            if not results_path.exists():
                if first_stages:
                    with processes.together():
                        if processes.is_first():
                            take_over(plan(config, workdir), Path(first_stages), console.say)
                with processes.ending_together():
                    results = _run_stages(plan(config, workdir), config, console)
                if processes.is_first():
                    write_json(results_path, results)
                processes.wait_for_all()
            results = read_results(results_path)
            if processes.is_first():
                _plot(plan(config, workdir), workdir / "curve.png")
            console.finish(results, workdir)
            return results


def _run_stages(stages: list[StagePlan], config: ConfigDict, console: TrainingConsole) -> dict:
    """One stage after the other, without those that an earlier start of the run ended; what results.json will hold."""
    reached: dict[str, dict] = {}
    for number, stage in enumerate(stages, start=1):
        last, path = number == len(stages), stage.directory / "results.json"
        if len(stages) > 1:
            console.stage(stage.name, number, len(stages), settings.departures(stage.config, config))
        if not last:
            open_run(stage.directory, stage.config, TRAINING)
        if last or not path.exists():
            with contextlib.ExitStack() as stack:
                steps_before = sum(before["steps"] for before in reached.values())
                results = Trainer(stage, console, stack, steps_before).run()
            if last:
                break
            write_json(path, results)
        reached[stage.name] = read_results(path)
        if (stage.directory / "teacher.json").exists():
            # The run's own: what its student is compared with.
            write_json(stages[-1].directory / "teacher.json", read_teacher(stage.directory / "teacher.json"))
    results["algorithm"] = config.algorithm
    if reached:
        results["stages"] = reached | {
            stages[-1].name: {name: results[name] for name in ("student", "steps", "minutes")}
        }
    return results


def _plot(stages: list[StagePlan], path: Path) -> None:
    """Draws success over training."""
    from rpd_jax.report.figures import plot_run  # here: with Matplotlib come seconds of imports
    from rpd_jax.report.stage_curves import plot_stages

    config = stages[-1].config
    if len(stages) == 1:
        plot_run(stages[-1].directory, path)
    else:
        title = f"{config.env.task}, {stages[-2].config.algorithm}, seed {config.seed}"
        plot_stages([{stage.name: stage.directory for stage in stages}], title, path)


@contextlib.contextmanager
def _held_run(workdir: str | Path, config: ConfigDict, console: TrainingConsole) -> Iterator[Path]:
    """The run's directory, which no other run can open inside the `with` block."""
    with contextlib.ExitStack() as stack:
        with processes.together(), processes.first_before_others():
            check_run(workdir, config, TRAINING)
            if processes.is_first():
                stack.enter_context(hold(workdir, console.say))
            workdir = open_run(workdir, config, TRAINING)
        with told_if_no_room(workdir):
            yield workdir


class Trainer:
    """Everything a run owns, and its loop.

    Of one stage, that is; `rpd_jax.stages` says which there are. It is a sequence of stretches that end with an
    evaluation or a checkpoint. Each begins with newly seeded episodes, and all randomness of an iteration comes from
    the seed and the iteration's number. So a run that was killed and started again from a checkpoint goes through the
    same states as one that was not.
    """

    def __init__(self, plan: StagePlan, console: TrainingConsole, stack: contextlib.ExitStack, steps_before: int = 0):
        """Starts the teacher and the environments and restores the newest checkpoint.

        Args:
            plan: the stage, the only one in most runs.
            console: what the user sees.
            stack: closes what the trainer opened.
            steps_before: environment steps of earlier stages.
        """
        self.config, self.workdir, self.console = plan.config, plan.directory, console
        config, workdir, self.steps_before = plan.config, plan.directory, steps_before
        self.batch = config.env.num_envs * config.ppo.rollout_steps
        self.num_iterations = config.total_steps // self.batch
        # Stages of one run see episodes of their own, and draw numbers of their own.
        self.episodes = f"train {plan.name}".strip()
        self.root_key = jax.random.key(config.seed)
        if plan.name:
            self.root_key = jax.random.fold_in(self.root_key, zlib.crc32(plan.name.encode()))
        self.stop = stack.enter_context(StopRequest())
        self.stop.unsaved = jax.process_count() > 1  # several processes only end together
        self.stage = Stage.open(config, stack, plan.asks_teacher)
        self.checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep, config.checkpoint.keep_best)
        stack.callback(self.checkpoints.close)
        self.state = self.saved = self._restore(plan)
        if processes.is_first():
            self.log = MetricsLog(workdir, self.state.logged, config.log.wandb)
            stack.callback(self.log.close)

    def run(self) -> dict[str, float | None]:
        """Iterates to the end; returns what results.json will hold (in the first process)."""
        with saved_at_an_early_end(
            self.checkpoints,
            lambda: self.state.iteration,
            self._save,
            unit="iteration",
            workdir=self.workdir,
            say=self.console.say,
        ):
            with processes.together():
                teacher = None
                if processes.is_first():
                    teacher = measure_teacher(self.stage, self.workdir, self.console.say, self.stop.check)
            seconds = estimate_seconds(self.stage, self.stop.check)
            self.console.estimate(seconds * (self.num_iterations - self.state.iteration), self._may_end_early())
            student = self._iterate()
        results = {"algorithm": self.config.algorithm, "student": student, "teacher": teacher}
        if processes.is_first():
            self.console.iteration_split(self.workdir / "metrics.jsonl")
            rows = read_rows(self.workdir / "metrics.jsonl")
            results |= {"steps": self.state.iteration * self.batch}
            results |= {"minutes": sum(row["time/total"] for row in rows) / 60.0}
        return results

    def _iterate(self) -> dict[str, float] | None:
        """Iterations, evaluations and checkpoints to the end; returns the final evaluation (in the first process)."""
        config, clock = self.config, StageClock()
        position = None  # of the environments; None: they are to be reset
        at_most = self._may_end_early()
        with self.console.training(self.num_iterations, self.state.logged, self.batch, at_most) as progress:
            while True:
                if self.state.row is None and not self._ended():
                    position = self._learn(position, clock)
                iteration = self.state.iteration
                result = success = None
                if not self._ended() and iteration % config.eval.every == 0:
                    result, success = self._evaluate_if_due(clock)
                    position = None
                last = self._ended()
                if last:
                    if config.eval.leave_best and not self.state.reached(config.eval.until):
                        self.state = self.state.with_best(self.checkpoints, config.eval.every)
                    result, success = self._evaluate(True, clock)
                if self.state.row is not None:
                    self._log(result, clock, progress)
                # After the log: a checkpoint says that everything before it is on disk. One that a stop left before the
                # evaluation gives way to that which knows its success.
                due = last or iteration % config.checkpoint.every == 0
                if due and self.state is not self.saved:
                    with clock.stage("checkpoint"):
                        self._save(success)
                    position = None
                if last:
                    return result

    def _ended(self) -> bool:
        """True after the last iteration: by their number, or because there is nothing more to train for."""
        until, patience = self.config.eval.until, self.config.eval.patience
        return self.state.iteration == self.num_iterations or self.state.ended(until, patience)

    def _may_end_early(self) -> bool:
        return bool(self.config.eval.until or self.config.eval.patience)

    def _learn(self, position: collect.Position | None, clock: StageClock) -> collect.Position:
        """One iteration: rollout, labels, update. Returns where the environments stand."""
        config, stage, iteration = self.config, self.stage, self.state.iteration
        keys, success = iteration_keys(self.root_key, iteration), 0.0
        if config.distill.schedule == "success":
            success = processes.share(self.state.lately)
        coefficients = stage.coefficients(iteration * self.batch, success)
        guidance = stage.guidance(iteration * self.batch)
        labelled = coefficients.distill > 0.0
        with processes.together():
            if position is None:
                with clock.stage("simulate+render"):
                    seed = episode_seeds(config.seed, self.episodes, iteration)
                    position = collect.start(stage.envs, seed, stage.draws(labelled))
            frames, position, episodes = stage.collect(
                self.state, position, config.ppo.rollout_steps, keys, labelled, clock, self.stop.check, guidance
            )
            self._refuse(stage.learner.nonfinite_input(frames))
        lost = float((~jax.device_get(frames.valid)).sum())
        self.state, metrics = stage.update(self.state, frames, keys, coefficients, clock)
        with processes.together():
            self._refuse(stage.learner.nonfinite_term(metrics))
        self.stop.unsaved = True

        row = {f"train/{name}": float(value) for name, value in metrics.items()}
        row |= {"train/distill_coef": coefficients.distill, "train/learning_rate": coefficients.learning_rate}
        row |= {f"rollout/{name}": float(values.mean()) for name, values in episodes.items() if len(values)}
        if guidance:
            row["train/guidance"] = guidance
        if config.env.restart_workers:
            row["rollout/lost_steps"] = lost
        self.state = dataclasses.replace(self.state.saw(episodes["success"]), row=row)
        return position

    def _evaluate_if_due(self, clock: StageClock) -> tuple[dict[str, float] | None, float]:
        """As `_evaluate`; no result, and what was sampled, where `eval.when_sampled` or `eval.share` leave it out."""
        threshold, share = self.config.eval.when_sampled, self.config.eval.share
        result = success = sampled = None
        due, steps = True, 0
        if threshold or share:
            successes, episodes = self.state.recent
            sampled = processes.share(successes / max(episodes, 1))
            self.state = dataclasses.replace(self.state, row=self.state.row | {"eval/sampled_success": sampled})
            most = share * self.state.iteration * self.batch if share else math.inf
            due = sampled >= threshold and self.state.evaluated_steps <= most
        if due:
            result, success = self._evaluate(False, clock)
            steps = round(processes.share(result["length"] * result["episodes"] if result else 0.0))
        self.state = self.state.evaluated(success, steps, sampled)
        return result, self.state.marks[-1]

    def _evaluate(self, last: bool, clock: StageClock) -> tuple[dict[str, float] | None, float]:
        """What the first process measured (in that one), and the success, in all."""
        result = None
        with clock.stage("evaluate"), processes.together():
            if processes.is_first():
                result = evaluate_student(self.stage, self.state, last, self.workdir, self.stop.check)
        return result, processes.share(result["success"] if result else 0.0)

    def _log(self, result: dict[str, float] | None, clock: StageClock, progress: TrainingProgress) -> None:
        """Writes the row of the last iteration, with the times since the one before and the evaluation's `result`."""
        row = self.state.row | {f"time/{name}": value for name, value in clock.lap().items()}
        if result:
            row |= {f"eval/{name}": value for name, value in result.items()}
        if processes.is_first():
            self.log.write(self.state.iteration - 1, self.steps_before + self.state.iteration * self.batch, row)
        progress.advance(row)
        self.state = dataclasses.replace(self.state, row=None)

    def _save(self, success: float | None = None) -> None:
        self.state.save(self.checkpoints, self.state.iteration * self.batch, success)
        self.saved = self.state
        self.stop.unsaved = jax.process_count() > 1

    def _restore(self, plan: StagePlan) -> TrainingState:
        """The newest checkpoint's state, or that which the stage begins with; says what no checkpoint can hold."""
        say, latest = self.console.say, self.checkpoints.latest
        fresh = self.stage.fresh_state(self.root_key)
        if latest is None:
            state = plan.begin(self.stage, fresh)
            if rests := resting(state.learner.params):
                numbers = ", ".join(map(str, rests))
                say(f"Actions rest in dimensions {numbers}: no label moved there (distill.still).")
            return state
        say(f"Continuing after iteration {latest} of {self.num_iterations}.")
        if latest % self.config.eval.every and latest % self.config.checkpoint.every:
            say("The episodes that ran then are lost: the environments begin new ones.")
        return fresh.restored(self.checkpoints, say)

    def _refuse(self, term: str | None) -> None:
        """Ends the run if there is a term that was not finite; the state is that before it then."""
        if term is not None:
            raise UserError(
                f"{term} was not finite in iteration {self.state.iteration}; the run stopped before it reached the "
                f"parameters, and they are saved in {self.workdir}: {mend_of(term, self.config.algorithm)}."
            )
