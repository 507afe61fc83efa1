"""Labels for a rollout's frames: each frame is looked at once by the teacher, after the rollout or while it runs."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32
from ml_collections import ConfigDict

from rpd_jax.acting.chunks import ensembled
from rpd_jax.acting.episodes import Act
from rpd_jax.learning.learner import Learner
from rpd_jax.learning.minibatches import flat
from rpd_jax.learning.rollout import Rollout
from rpd_jax.tasks import find_task
from rpd_jax.teachers import Teacher, check_horizon, look


class Labeller:
    """Asks the teacher for the labels that an algorithm needs.

    With `teacher.overlap` the teacher looks at frames while the environments still step, which saves time where the two
    use different hardware. It draws the same samples either way.

    Args:
        teacher: looks at the frames.
        config: resolved; reads `teacher`, `distill` and `env.task`.
        learner: whose labels these are.
    """

    def __init__(self, teacher: Teacher, config: ConfigDict, learner: Learner):
        self.teacher = teacher
        self.instruction = config.teacher.instruction or find_task(config.env.task).instruction
        self._overlap = config.teacher.overlap == "on"
        # E sets of S labels, each the mean of so many of the teacher's samples. Where a loss reads their spread (ppd),
        # means of several would be too close together.
        self._sets, self._samples = learner.label_sets, learner.num_samples
        self._averaged = config.distill.averaged if self._samples == 1 else 1
        self._steps = config.teacher.chunk if self._samples == 1 else 1
        check_horizon(teacher, self._steps, f"teacher.chunk={self._steps}")
        self._label = config.distill.label

    def begin(self, key: jax.Array) -> Callable[[jax.Array | None, jax.Array], None] | None:
        """Begins a rollout.

        Args:
            key: of the teacher's samples.

        Returns:
            what `collect.rollout` is to call with the frames and states of each step; None if the labels come
            afterwards.
        """
        self._key = key
        self._unseen: list[tuple[jax.Array | None, jax.Array]] = []
        self._answers: list[Callable[[], jax.Array]] = []
        self._asked = 0
        return self._see if self._overlap else None

    def label(self, rollout: Rollout) -> Rollout:
        """Returns the rollout that `begin` began with `teacher_actions`, which may still be computed.

        Returns:
            labels float32 [E, S, T, N, A]: 4·E·S·T·N·A bytes.
        """
        num_steps, num_envs, _ = rollout.actions.shape
        if not self._asked and not self._unseen:
            self._unseen.append((None if rollout.rgb is None else flat(rollout.rgb), flat(rollout.state)))
        self._ask()
        answers = [answer() for answer in self._answers]
        actions = jnp.concatenate(answers, axis=1) if len(answers) > 1 else answers[0]
        # Of chunks the nearest is chosen as a whole.
        chunk = actions.shape[2:]
        actions = actions.reshape(self._averaged, self._sets, self._samples, num_steps, num_envs, -1)
        actions = one_of_several(actions, self._label)
        if self._steps > 1:
            actions = ensembled(actions.reshape(*actions.shape[:-1], *chunk), rollout.dones, rollout.valid)
        return rollout.replace(teacher_actions=actions)

    def act(self, rgb: jax.Array | None, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the teacher would do now: a single sample and its label, float32 [N, A]; `label` asks no second time.

        Args:
            rgb: frames of a step uint8 [N, H, W, 3], or None where it sees the state only.
            state: float32 [N, D].
        """
        self._unseen.append((rgb, state))
        self._ask()
        return _sample_and_label(self._answers[-1](), self._sets * self._samples, self._label, self._steps > 1)

    def _see(self, rgb: jax.Array | None, state: jax.Array) -> None:
        self._unseen.append((rgb, state))
        if sum(len(state) for _, state in self._unseen) >= self.teacher.worthwhile_batch:
            self._ask()

    def _ask(self) -> None:
        if not self._unseen:
            return
        frames, states = (_joined(parts) for parts in zip(*self._unseen, strict=True))
        self._unseen = []
        samples = self._sets * self._samples * self._averaged
        arguments = (frames, self.instruction, self._key, samples, self._asked)
        options = look(self.teacher, states) | ({"steps": self._steps} if self._steps > 1 else {})
        self._answers.append(self.teacher.begin(*arguments, **options))
        self._asked += len(states)


def label_act(teacher: Teacher, instruction: str, num_samples: int, kind: str) -> Act:
    """A teacher that acts by its labels, each made of several samples; see `one_of_several`."""

    def act(rgb: jax.Array, state: jax.Array, key: jax.Array) -> jax.Array:
        return one_of_several(teacher.act(rgb, instruction, key, num_samples, **look(teacher, state)), kind)

    return act


@partial(jax.jit, static_argnums=1)
def one_of_several(samples: Float32[Array, "K *rest A"], kind: str) -> Float32[Array, "*rest A"]:
    """The label that K of the teacher's samples make.

    Args:
        samples: of the same frames.
        kind: "mean", or "nearest": the sample nearest to the mean. Where there are several ways to act their mean is
            none of them; the sample nearest to it is one that the teacher would take, and nearly always the same one.
    """
    mean = samples.mean(axis=0)
    if kind == "mean" or len(samples) == 1:
        return mean
    nearest = jnp.argmin(jnp.sum(jnp.square(samples - mean), axis=-1), axis=0)
    return jnp.take_along_axis(samples, nearest[None, ..., None], axis=0)[0]


@partial(jax.jit, static_argnums=(1, 2, 3))
def _sample_and_label(samples, every, kind, of_chunks):
    if of_chunks:
        samples = samples[:, :, 0]
    return samples[0], one_of_several(samples[::every], kind)


def _joined(parts):
    if parts[0] is None or len(parts) == 1:
        return parts[0]
    return jnp.concatenate(parts)
