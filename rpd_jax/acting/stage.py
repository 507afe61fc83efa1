"""Student, teacher and environments of one stage of a run, and the iteration that its loop repeats."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from rpd_jax.acting import collect
from rpd_jax.acting.guide import Guide
from rpd_jax.acting.labelling import Labeller
from rpd_jax.acting.training_state import TrainingState
from rpd_jax.envs.factory import make_vector_env
from rpd_jax.envs.vector_env import VectorEnv
from rpd_jax.learning import schedules
from rpd_jax.learning.learner import Learner
from rpd_jax.learning.rollout import Rollout
from rpd_jax.learning.schedules import Coefficients
from rpd_jax.learning.sharding import make_mesh
from rpd_jax.run import processes
from rpd_jax.run.ending import told_if_no_memory
from rpd_jax.student.networks import ActorCritic
from rpd_jax.teachers import load_teacher, sees_frames


class Clock(Protocol):
    """Something that measures the parts of an iteration: "simulate+render", "label" and "update"."""

    def stage(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Counts the time of the `with` block as that of `name`."""


class IterationKeys(NamedTuple):
    """Random keys of the student's actions, the teacher's samples and the update."""

    policy: jax.Array
    teacher: jax.Array
    update: jax.Array


@jax.jit
def iteration_keys(root_key: jax.Array, iteration: int) -> IterationKeys:
    """The keys of one iteration, from the run's."""
    return IterationKeys(*jax.random.split(jax.random.fold_in(root_key, iteration), 3))


@dataclasses.dataclass
class Stage:
    """Who takes part: `collect` and `update` are an iteration of theirs, for the loop, the estimate and the profiler.

    Attributes:
        config: resolved; reads `ppo`, `distill` and `total_steps`.
        learner: the student, and how it learns.
        labeller: the teacher, or None where the algorithm has none.
        envs: this process's environments.
    """

    config: ConfigDict
    learner: Learner
    labeller: Labeller | None
    envs: VectorEnv

    @classmethod
    def open(cls, config: ConfigDict, stack: contextlib.ExitStack, asks_teacher: bool = True) -> "Stage":
        """Starts the teacher and the environments; `stack` closes them.

        Args:
            config: resolved; its environments are those of all processes together.
            stack: of the caller.
            asks_teacher: False where all labels are in the replay from the beginning.

        Raises:
            UserError: settings, files or the machine do not allow it.
        """
        learner = Learner(ActorCritic.from_config(config.student), config, make_mesh())
        labeller = None
        if learner.num_samples and asks_teacher:
            labeller = Labeller(load_teacher(config), config, learner)
            stack.callback(labeller.teacher.close)
        envs = stack.enter_context(make_vector_env(config.env, config.env.num_envs // jax.process_count()))
        return cls(config, learner, labeller, envs)

    @told_if_no_memory("for the student and its replay", "distill.replay, student.image_size or env.num_envs")
    def fresh_state(self, key: jax.Array) -> TrainingState:
        """A new student, and an empty replay; resets the environments, for the shapes of what they show."""
        self.envs.set_drawing(self.learner.network.sees_frames)
        rgb = self.envs.reset(0)
        learner = self.learner.init(key, rgb, self.envs.state)
        return TrainingState(learner, self.learner.create_replay(self.envs.action_dim, self.envs.state_dim))

    def draws(self, labelled: bool) -> bool:
        """True if the frames of a rollout are looked at: by the student, by the teacher, or by a later stage."""
        if self.learner.network.sees_frames or not labelled or self.labeller is None:
            return self.learner.network.sees_frames
        return self.config.distill.replay_both or sees_frames(self.labeller.teacher)

    def guidance(self, step: int) -> float:
        """The share of episodes that the teacher acts in after `step` environment steps."""
        return schedules.guide_share(self.config, step) if self.labeller else 0.0

    def coefficients(self, step: int, success: float = 0.0) -> Coefficients:
        """What an update weighs its terms with, and its learning rate.

        Args:
            step: environment steps before it.
            success: of the sampled actions, lately, see `TrainingState.lately`; the same in all processes.
        """
        return schedules.coefficients(self.config, step, success)

    @told_if_no_memory("while acting and labelling", "env.num_envs, ppo.rollout_steps or env.image_size")
    def collect(
        self,
        state: TrainingState,
        position: collect.Position,
        num_steps: int,
        keys: IterationKeys,
        labelled: bool,
        clock: Clock,
        check_stop: Callable[[], None] = lambda: None,
        guidance: float = 0.0,
    ) -> tuple[Rollout, collect.Position, dict[str, np.ndarray]]:
        """First half of an iteration: this process's student steps its environments, its teacher labels the frames.

        Args:
            state: whose student acts.
            position: of the environments.
            num_steps: of each of them.
            keys: the iteration's, the same in all processes.
            labelled: False leaves the labels out, as where nothing weighs them.
            clock: counts "simulate+render" and "label"; where they overlap, the latter is what is left to wait for.
            check_stop: called once per step; may raise to leave early.
            guidance: share of episodes that the teacher acts in; its labels of each step are waited for then.

        Returns:
            As `collect.rollout`, labels included.
        """
        labeller = self.labeller if labelled else None
        with clock.stage("simulate+render"):
            on_frames = labeller.begin(processes.own_key(keys.teacher)) if labeller else None
            guide = None
            if labeller and guidance:
                key = jax.random.fold_in(processes.own_key(keys.policy), num_steps)
                on_frames, guide = None, Guide(labeller, guidance, key, num_steps)
            rollout, position, episodes = collect.rollout(
                self.envs,
                self.learner,
                self.learner.local_params(state.learner),
                position,
                num_steps,
                processes.own_key(keys.policy),
                check_stop,
                on_frames,
                self.draws(labelled),
                guide,
            )
            jax.block_until_ready(rollout)
        with clock.stage("label"):
            if labeller:
                rollout = jax.block_until_ready(labeller.label(rollout))
        return rollout, position, episodes

    @told_if_no_memory(
        "in the update", "env.num_envs, ppo.rollout_steps or student.image_size, or raise ppo.num_minibatches,"
    )
    def update(
        self, state: TrainingState, rollout: Rollout, keys: IterationKeys, coefficients: Coefficients, clock: Clock
    ) -> tuple[TrainingState, dict]:
        """Second half: the student learns from all processes' rollouts, and the replay keeps them.

        Args:
            state: its replay is consumed, unless the update meets a number that is not finite.
            rollout: of this process, as `collect` returned it.
            keys: the iteration's.
            coefficients: of the update.
            clock: counts "update".

        Returns:
            The state after the iteration, and the update's metrics, on the host. The state is `state` where
            `Learner.nonfinite_term` finds one in the metrics.
        """
        with clock.stage("update"):
            rollout = self.learner.spread(rollout)
            learner, metrics = self.learner.update(state.learner, rollout, keys.update, coefficients, state.replay)
            metrics = jax.device_get(metrics)
            if self.learner.nonfinite_term(metrics) is not None:
                return state, metrics
            replay, came = state.replay, state.came
            if rollout.teacher_actions is not None and replay is not None:
                came += self.learner.rows_of(rollout)
                replay = self.learner.extend_replay(replay, rollout)
        state = dataclasses.replace(state, learner=learner, replay=replay, came=came, iteration=state.iteration + 1)
        return state, metrics
