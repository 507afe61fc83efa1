"""The loop: rollout, labels, update, log, evaluate, checkpoint. A frame's way through the program can be read here."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from rpd_jax import settings
from rpd_jax.acting import collect
from rpd_jax.acting.episodes import run_episodes, teacher_act
from rpd_jax.acting.estimate import estimate_seconds
from rpd_jax.acting.labelling import Labeller
from rpd_jax.acting.video import write_filmstrip, write_video
from rpd_jax.envs.factory import make_vector_env
from rpd_jax.errors import UserError
from rpd_jax.learning import schedules
from rpd_jax.learning.learner import Learner
from rpd_jax.learning.sharding import make_mesh
from rpd_jax.report.figures import plot_run
from rpd_jax.run import processes
from rpd_jax.run.checkpoints import CheckpointError, Checkpoints
from rpd_jax.run.console import Console
from rpd_jax.run.directory import check_run, open_run
from rpd_jax.run.lock import hold
from rpd_jax.run.metrics import MetricsLog, StageClock
from rpd_jax.run.stop import Interrupted, StopRequest
from rpd_jax.student.networks import ActorCritic
from rpd_jax.teachers import load_teacher


def train(config: ConfigDict, workdir: str | Path) -> dict[str, float | None]:
    """Runs, or continues, the training run that `config` describes, to its end.

    Args:
        config: as `configs.default.get_config` makes it.
        workdir: the run's directory; made, or resumed if it is of the same config.

    Returns:
        What results.json holds: success of "student" and "teacher" (None where not measured), with 95% bounds.

    Raises:
        UserError: settings, files or the machine do not allow the run.
        WorkerError: an environment worker failed (and `env.restart_workers` is off); the state was saved.
        Interrupted: SIGINT or SIGTERM came; the state was saved.
    """
    processes.connect()
    paper = config.profiles.paper
    config = settings.resolve(config)
    settings.check_machine(config)
    console = Console(quiet=not processes.is_first())
    with _held_run(workdir, config, console) as workdir:
        console.settings(config, settings.departures(config, paper), workdir)
        results_path = workdir / "results.json"
        if not results_path.exists():
            with contextlib.ExitStack() as stack:
                results = Trainer(config, workdir, console, stack).run()
            with processes.first_before_others():
                if processes.is_first():
                    _write_json(results_path, results)
        results = json.loads(results_path.read_text())
        if processes.is_first():
            plot_run(workdir, workdir / "curve.png")
        console.finish(results, workdir)
        return results


@contextlib.contextmanager
def _held_run(workdir: str | Path, config: ConfigDict, console: Console) -> Iterator[Path]:
    """The run's directory, which no other run can open inside the `with` block."""
    with contextlib.ExitStack() as stack:
        with processes.together(), processes.first_before_others():
            check_run(workdir, config)
            if processes.is_first():
                stack.enter_context(hold(workdir, console.say))
            workdir = open_run(workdir, config)
        yield workdir


class Trainer:
    """Everything a run owns, and its loop.

    A run is a sequence of stretches that end with an evaluation or a checkpoint. Each begins with newly seeded
    episodes, and all randomness of an iteration comes from the seed and the iteration's number. So a run that was
    killed and started again from a checkpoint goes through the same states as one that was not.
    """

    def __init__(self, config: ConfigDict, workdir: Path, console: Console, stack: contextlib.ExitStack):
        """Starts the teacher and the environments and restores the newest checkpoint.

        Args:
            config: resolved.
            workdir: where everything is written.
            console: what the user sees.
            stack: closes what the trainer opened.
        """
        self.config, self.workdir, self.console = config, workdir, console
        self.batch = config.env.num_envs * config.ppo.rollout_steps
        self.num_iterations = config.total_steps // self.batch
        self.root_key = jax.random.key(config.seed)
        self.stop = stack.enter_context(StopRequest())
        mesh = make_mesh()
        self.num_devices = jax.device_count()
        self.learner = Learner(ActorCritic.from_config(config.student), config, mesh)
        self.labeller = None
        if self.learner.num_samples:
            self.labeller = Labeller(load_teacher(config), config, self.learner)
            stack.callback(self.labeller.teacher.close)
        self.checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep, config.checkpoint.keep_best)
        stack.callback(self.checkpoints.close)
        self.envs = stack.enter_context(make_vector_env(config.env, config.env.num_envs // jax.process_count()))
        rgb = self.envs.reset(0)
        self.state = self.learner.init(self.root_key, rgb, self.envs.state)
        self.replay = self.learner.create_replay(self.envs.action_dim, self.envs.state_dim)
        self.iteration = 0  # iterations done
        self.row: dict[str, float] | None = None  # metrics of the last of them, while they are not logged
        self._restore()
        if processes.is_first():
            # A row that the checkpoint holds is written again, also where it was written before a kill.
            self.log = MetricsLog(workdir, self.iteration - (self.row is not None), config.log.wandb)
            stack.callback(self.log.close)

    def run(self) -> dict[str, float | None]:
        """Iterates to the end; returns what results.json will hold (in the first process)."""
        try:
            with processes.together():
                teacher = self._measure_teacher() if processes.is_first() else None
            seconds = estimate_seconds(self.config, self.envs, self.learner, self.labeller, self.stop.check)
            self.console.estimate(seconds * (self.num_iterations - self.iteration))
            student = self._iterate()
        except (Interrupted, UserError) as reason:
            if isinstance(reason, CheckpointError):
                raise
            if self.checkpoints.latest != self.iteration:
                self._save()
            cause = reason if isinstance(reason, Interrupted) else "Stopped by an error"
            self.console.say(f"{cause}: saved after iteration {self.iteration}; the same command continues.")
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise UserError(
                f"Could not write in {self.workdir} ({error.strerror}): make room on the disk and run the same command "
                f"again; it continues from checkpoint {self.checkpoints.latest}."
            ) from error
        if processes.is_first():
            self.console.time_split(self.workdir / "metrics.jsonl")
        return {"algorithm": self.config.algorithm, "student": student, "teacher": teacher}

    def _iterate(self) -> dict[str, float] | None:
        """Iterations, evaluations and checkpoints to the end; returns the final evaluation (in the first process)."""
        config, clock = self.config, StageClock()
        position = None
        with self.console.progress(self.num_iterations, self.iteration, self.batch) as progress:
            while True:
                if self.row is None and self.iteration < self.num_iterations:
                    self.row, position = self._learn(position, clock)
                last = self.iteration == self.num_iterations
                result = success = None
                if last or self.iteration % config.eval.every == 0:
                    with clock.stage("evaluate"), processes.together():
                        result = self._evaluate(last) if processes.is_first() else None
                    success = processes.share(result["success"] if result else 0.0)
                    position = None
                if self.row is not None:
                    row = self.row | {f"time/{name}": value for name, value in clock.lap().items()}
                    if result:
                        row |= {f"eval/{name}": value for name, value in result.items()}
                    if processes.is_first():
                        self.log.write(self.iteration - 1, self.iteration * self.batch, row)
                    progress.advance(row)
                    self.row = None
                # After the log: a checkpoint says that everything before it is on disk.
                due = last or self.iteration % config.checkpoint.every == 0
                if due and self.checkpoints.latest != self.iteration:
                    with clock.stage("checkpoint"):
                        self._save(success)
                    position = None
                if last:
                    return result

    def _learn(self, position: collect.Position | None, clock: StageClock) -> tuple[dict, collect.Position]:
        """One iteration: rollout, labels, update. Returns what to log, and where the environments stand."""
        config, step = self.config, self.iteration * self.batch
        policy_key, teacher_key, update_key = jax.random.split(jax.random.fold_in(self.root_key, self.iteration), 3)
        coef = schedules.distill_coef(config.distill, step)
        rate = schedules.learning_rate(config.ppo, step, config.total_steps)

        with processes.together():
            with clock.stage("simulate+render"):
                if position is None:
                    position = collect.start(self.envs, self._seed("train", self.iteration))
                labeller = self.labeller if coef > 0.0 else None
                on_frames = labeller.begin(processes.own_key(teacher_key)) if labeller else None
                frames, position, episodes = collect.rollout(
                    self.envs,
                    self.learner,
                    self.learner.local_params(self.state),
                    position,
                    config.ppo.rollout_steps,
                    processes.own_key(policy_key),
                    self.stop.check,
                    on_frames,
                )
            with clock.stage("label"):
                if labeller:
                    frames = jax.block_until_ready(labeller.label(frames))
            self._refuse(self.learner.nonfinite_input(frames))
        lost = float((~frames.valid).sum())
        with clock.stage("update"):
            frames = self.learner.spread(frames)
            state, metrics = self.learner.update(
                self.state,
                frames,
                update_key,
                replay=self.replay,
                distill_coef=coef,
                replay_coef=coef * config.distill.replay_coef,
                learning_rate=rate,
            )
            metrics = jax.device_get(metrics)
            self._refuse(self.learner.nonfinite_term(metrics))
            self.state = state
            if frames.teacher_actions is not None:
                self.replay = self.learner.extend_replay(self.replay, frames)
        self.iteration += 1

        row = {f"train/{name}": float(value) for name, value in metrics.items()}
        row |= {"train/distill_coef": coef, "train/learning_rate": rate}
        row |= {f"rollout/{name}": float(values.mean()) for name, values in episodes.items() if len(values)}
        if config.env.restart_workers:
            row["rollout/lost_steps"] = lost
        return row, position

    def _evaluate(self, last: bool) -> dict[str, float]:
        """Success of the mean action; at the end over more episodes, with a video."""
        config, params = self.config.eval, self.learner.local_params(self.state)
        episodes = run_episodes(
            self.envs,
            lambda rgb, state, key: self.learner.mean_action(params, rgb, state),
            config.final_episodes if last else config.episodes,
            self._seed("final evaluation" if last else "evaluation"),
            config.video_episodes if last else 0,
            self.stop.check,
        )
        if episodes.videos:
            write_video(self.workdir / "videos" / "student.mp4", episodes.videos)
            write_filmstrip(self.workdir / "videos" / "student.png", min(episodes.videos, key=len))
        return episodes.summary()

    def _measure_teacher(self) -> dict[str, float] | None:
        """Success of the teacher's own actions in the final evaluation's episodes; measured once per run."""
        path = self.workdir / "teacher.json"
        if path.exists():
            return json.loads(path.read_text())
        if self.labeller is None or not self.config.teacher.eval_episodes:
            return None
        self.console.say(f"Measuring the teacher over {self.config.teacher.eval_episodes} episodes.")
        episodes = run_episodes(
            self.envs,
            teacher_act(self.labeller.teacher, self.labeller.instruction),
            self.config.teacher.eval_episodes,
            self._seed("final evaluation"),
            self.config.eval.video_episodes,
            self.stop.check,
        )
        write_video(self.workdir / "videos" / "teacher.mp4", episodes.videos)
        _write_json(path, episodes.summary())
        return episodes.summary()

    def _checkpoint_tree(self) -> dict:
        tree = {"learner": self.state}
        return tree if self.replay is None else tree | {"replay": self.replay}

    def _save(self, success: float | None = None) -> None:
        progress = {"step": self.iteration * self.batch, "row": self.row, "devices": self.num_devices}
        self.checkpoints.save(self.iteration, self._checkpoint_tree(), progress, success)

    def _restore(self) -> None:
        """Continues from the newest checkpoint, if there is one, and says what no checkpoint can hold."""
        restored = self.checkpoints.restore(self._checkpoint_tree())
        if restored is None:
            return
        self.iteration, tree, progress = restored
        self.state, self.row = tree["learner"], progress.get("row")
        self.console.say(f"Continuing after iteration {self.iteration} of {self.num_iterations}.")
        if self.iteration % self.config.eval.every and self.iteration % self.config.checkpoint.every:
            self.console.say("The episodes that ran then are lost: the environments begin new ones.")
        devices = progress.get("devices", 1)
        if devices == self.num_devices:
            self.replay = tree.get("replay")
        elif self.replay is not None:
            self.console.say(
                f"The replay starts empty: it was kept by {devices} devices and {self.num_devices} are here."
            )

    def _refuse(self, term: str | None) -> None:
        """Ends the run if there is a term that was not finite; state and replay are those before it then."""
        if term is not None:
            raise UserError(
                f"{term} was not finite in iteration {self.iteration}; the run stopped before it reached the "
                f"parameters, and they are saved in {self.workdir}: lower ppo.learning_rate, or look at the rewards "
                "and the teacher's labels."
            )

    def _seed(self, purpose: str, iteration: int = 0) -> int:
        """A 31-bit seed for the environments, different for every purpose, iteration, run seed and process."""
        entropy = [self.config.seed, iteration, *purpose.encode()]
        if not processes.is_first():
            entropy.append(jax.process_index())
        return int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)


def _write_json(path: Path, values: dict) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(temporary, path)
