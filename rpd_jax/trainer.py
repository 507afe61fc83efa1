"""The loop: rollout, labels, update, log, evaluate, checkpoint. A frame's way through the program can be read here."""

import contextlib
import json
import os
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from rpd_jax import evaluation, profiles, rollout, schedules
from rpd_jax.checkpoints import Checkpoints
from rpd_jax.console import Console
from rpd_jax.envs.cpu_env import WorkerError
from rpd_jax.envs.factory import make_vector_env
from rpd_jax.errors import UserError
from rpd_jax.estimate import estimate_seconds
from rpd_jax.interruption import Interrupted, StopRequest
from rpd_jax.learner import Learner
from rpd_jax.metrics import MetricsLog, StageClock
from rpd_jax.networks import ActorCritic
from rpd_jax.report.figures import plot_run
from rpd_jax.run_directory import open_run
from rpd_jax.tasks import find_task
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
    paper = config.profiles.paper
    config = profiles.resolve(config)
    workdir = open_run(workdir, config)
    console = Console()
    console.settings(config, profiles.departures(config, paper), workdir)
    results_path = workdir / "results.json"
    if results_path.exists():
        results = json.loads(results_path.read_text())
    else:
        with contextlib.ExitStack() as stack:
            results = Trainer(config, workdir, console, stack).run()
        _write_json(results_path, results)
    plot_run(workdir, workdir / "curve.png")
    console.finish(results, workdir)
    return results


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
        self.instruction = config.teacher.instruction or find_task(config.env.task).instruction
        self.batch = config.env.num_envs * config.ppo.rollout_steps
        self.num_iterations = config.total_steps // self.batch
        self.root_key = jax.random.key(config.seed)
        self.stop = stack.enter_context(StopRequest())
        self.learner = Learner(ActorCritic.from_config(config.student), config)
        self.teacher = load_teacher(config) if self.learner.num_samples else None
        if self.teacher:
            stack.callback(self.teacher.close)
        self.checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
        stack.callback(self.checkpoints.close)
        self.envs = stack.enter_context(make_vector_env(config.env))
        rgb = self.envs.reset(0)
        self.state = self.learner.init(self.root_key, rgb, self.envs.state)
        self.replay = self.learner.create_replay(self.envs.action_dim, self.envs.state_dim)
        self.iteration = 0  # iterations done
        restored = self.checkpoints.restore(self._checkpoint_tree())
        if restored is not None:
            self.iteration, tree, _ = restored
            self.state, self.replay = tree["learner"], tree.get("replay")
            console.say(f"Continuing after iteration {self.iteration} of {self.num_iterations}.")
        self.log = MetricsLog(workdir, self.iteration)
        stack.callback(self.log.close)

    def run(self) -> dict[str, float | None]:
        """Iterates to the end; returns what results.json will hold."""
        try:
            teacher = self._measure_teacher()
            seconds = estimate_seconds(self.config, self.envs, self.learner, self.teacher, self.instruction)
            self.console.estimate(seconds * (self.num_iterations - self.iteration))
            student = self._iterate()
        except (Interrupted, WorkerError) as reason:
            if self.checkpoints.latest != self.iteration:
                self._save()
            cause = reason if isinstance(reason, Interrupted) else "A worker failed"
            self.console.say(f"{cause}: saved after iteration {self.iteration}; the same command continues.")
            raise
        self.console.time_split(self.workdir / "metrics.jsonl")
        return {"algorithm": self.config.algorithm, "student": student, "teacher": teacher}

    def _iterate(self) -> dict[str, float]:
        config, clock = self.config, StageClock()
        position = None
        with self.console.progress(self.num_iterations, self.iteration, self.batch) as progress:
            while True:
                iteration, step = self.iteration, self.iteration * self.batch
                policy_key, teacher_key, update_key = jax.random.split(jax.random.fold_in(self.root_key, iteration), 3)
                coef = schedules.distill_coef(config.distill, step)
                rate = schedules.learning_rate(config.ppo, step, config.total_steps)

                with clock.stage("simulate+render"):
                    if position is None:
                        position = rollout.start(self.envs, self._seed("train", iteration))
                    frames, position, episodes = rollout.collect(
                        self.envs,
                        self.learner,
                        self.state.params,
                        position,
                        config.ppo.rollout_steps,
                        policy_key,
                        self.stop.check,
                    )
                with clock.stage("label"):
                    if self.teacher and coef > 0.0:
                        frames = rollout.label(
                            frames,
                            self.teacher,
                            self.instruction,
                            teacher_key,
                            self.learner.num_samples,
                            config.distill.averaged,
                            self.learner.label_sets,
                        )
                        self.replay = self.learner.extend_replay(self.replay, frames)
                        jax.block_until_ready(frames.teacher_actions)
                with clock.stage("update"):
                    self.state, metrics = self.learner.update(
                        self.state,
                        frames,
                        update_key,
                        replay=self.replay,
                        distill_coef=coef,
                        replay_coef=coef * config.distill.replay_coef,
                        learning_rate=rate,
                    )
                    metrics = jax.device_get(metrics)
                self._refuse_bad_numbers(metrics)
                self.iteration += 1
                last = self.iteration == self.num_iterations

                numbers = {f"train/{name}": value for name, value in metrics.items()}
                numbers |= {"train/distill_coef": coef, "train/learning_rate": rate}
                numbers |= {f"rollout/{name}": values.mean() for name, values in episodes.items() if len(values)}
                if config.env.restart_workers:
                    numbers["rollout/lost_steps"] = float((~frames.valid).sum())
                if last or self.iteration % config.eval.every == 0:
                    with clock.stage("evaluate"):
                        result = self._evaluate(last)
                        numbers |= {f"eval/{name}": value for name, value in result.items()}
                        position = None
                if last or self.iteration % config.checkpoint.every == 0:
                    with clock.stage("checkpoint"):
                        self._save()
                        position = None
                seconds = clock.lap()
                numbers |= {f"time/{name}": value for name, value in seconds.items()}
                self.log.write(iteration, step + self.batch, numbers)
                progress.advance(numbers)
                if last:
                    return result

    def _evaluate(self, last: bool) -> dict[str, float]:
        """Success of the mean action; at the end over more episodes, with a video."""
        config = self.config.eval
        episodes = evaluation.run_episodes(
            self.envs,
            lambda rgb, state, key: self.learner.mean_action(self.state.params, rgb, state),
            config.final_episodes if last else config.episodes,
            self._seed("final evaluation" if last else "evaluation"),
            config.video_episodes if last else 0,
            self.stop.check,
        )
        if episodes.videos:
            evaluation.write_video(self.workdir / "videos" / "student.mp4", episodes.videos)
            evaluation.write_filmstrip(self.workdir / "videos" / "student.png", min(episodes.videos, key=len))
        return episodes.summary()

    def _measure_teacher(self) -> dict[str, float] | None:
        """Success of the teacher's own actions in the final evaluation's episodes; measured once per run."""
        path = self.workdir / "teacher.json"
        if path.exists():
            return json.loads(path.read_text())
        if self.teacher is None or not self.config.teacher.eval_episodes:
            return None
        self.console.say(f"Measuring the teacher over {self.config.teacher.eval_episodes} episodes.")
        episodes = evaluation.run_episodes(
            self.envs,
            lambda rgb, state, key: self.teacher.act(rgb, self.instruction, key, 1)[0],
            self.config.teacher.eval_episodes,
            self._seed("final evaluation"),
            self.config.eval.video_episodes,
            self.stop.check,
        )
        evaluation.write_video(self.workdir / "videos" / "teacher.mp4", episodes.videos)
        _write_json(path, episodes.summary())
        return episodes.summary()

    def _checkpoint_tree(self) -> dict:
        tree = {"learner": self.state}
        return tree if self.replay is None else tree | {"replay": self.replay}

    def _save(self) -> None:
        self.checkpoints.save(self.iteration, self._checkpoint_tree(), {"step": self.iteration * self.batch})

    def _refuse_bad_numbers(self, metrics: dict) -> None:
        term = self.learner.nonfinite_term(metrics)
        if term is not None:
            self._save()
            raise UserError(
                f"{term} was not finite in iteration {self.iteration}; the update stopped before it reached the "
                f"parameters, and they are saved in {self.workdir}: lower ppo.learning_rate, or look at the rewards "
                "and the teacher's labels."
            )

    def _seed(self, purpose: str, iteration: int = 0) -> int:
        """A 31-bit seed for the environments, different for every purpose, iteration and run seed."""
        entropy = [self.config.seed, iteration, *purpose.encode()]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)


def _write_json(path: Path, values: dict) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(temporary, path)
