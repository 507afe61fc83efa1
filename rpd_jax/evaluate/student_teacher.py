"""A student of an earlier run as a teacher: to compress it, to move it to another camera, to go on from an expert."""

from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rpd_jax.errors import UserError
from rpd_jax.evaluate.trained_student import TrainedStudent, load_student
from rpd_jax.teachers import Teacher


class StudentTeacher(Teacher):
    """Labels with the mean of the student's Gaussian, or with samples of it where `temperature` is above 0.

    Attributes:
        sees_frames, sees_state: what the student looks at.

    Args:
        student: of a run.
        temperature: times σ: the spread of the samples.
    """

    worthwhile_batch = 1

    def __init__(self, student: TrainedStudent, temperature: float = 0.0):
        self.sees_frames, self.sees_state = student.network.sees_frames, student.network.sees_state
        self._log_std, self._temperature = student.params["params"]["log_std"], temperature
        self._mean = student.compiled_mean_action()

    def act(
        self,
        rgb: jax.Array | None,
        instruction: str,
        key: jax.Array,
        num_samples: int = 1,
        first_frame: int = 0,
        state: jax.Array | None = None,
    ) -> jax.Array:
        """Returns actions float32 [S, B, 7] in [-1, 1]; see `rpd_jax.teachers.Teacher`.

        Args:
            rgb: uint8 [B, H, W, 3], read where the student sees frames.
            instruction: not read: the student knows one task.
            key: of the samples.
            num_samples: S; without a temperature they are all the same.
            first_frame: number of the first frame.
            state: float32 [B, D], read where the student sees the state.
        """
        mean = self._mean(rgb if self.sees_frames else None, state if self.sees_state else None)
        if self._temperature == 0.0:
            return jnp.broadcast_to(jnp.clip(mean, -1.0, 1.0), (num_samples, *mean.shape))
        sigma = self._temperature * jnp.exp(self._log_std)
        return _samples(mean, sigma, key, first_frame, num_samples)

    def close(self) -> None:
        """Releases the parameters."""
        self._mean = None


@partial(jax.jit, static_argnums=4)
def _samples(mean: jax.Array, sigma: jax.Array, key: jax.Array, first_frame: int, num_samples: int) -> jax.Array:
    keys = jax.vmap(partial(jax.random.fold_in, key))(first_frame + jnp.arange(len(mean)))
    noise = jax.vmap(lambda key: jax.random.normal(key, (num_samples, mean.shape[-1])), out_axes=1)(keys)
    return jnp.clip(mean + sigma * noise, -1.0, 1.0)


def load(config: ConfigDict) -> StudentTeacher:
    """The teacher `student`: the newest checkpoint of the run directory `teacher.checkpoint`.

    Raises:
        UserError: no run, one without a checkpoint, or one that cannot look at what this run has to show.
    """
    run = config.teacher.checkpoint
    student = load_student(run)
    task, size = student.config.env.task, student.network.image_size
    if student.network.sees_state and task != config.env.task:
        raise UserError(
            f"teacher.checkpoint={run} is a student of {task} that sees the simulator's state, which in "
            f"{config.env.task} means something else: give a run of that task, or one that sees frames only."
        )
    if student.network.sees_frames and config.env.image_size < size:
        raise UserError(
            f"teacher.checkpoint={run} looks at frames of {size} px and env.image_size={config.env.image_size} draws "
            f"less: set env.image_size to {size} or more."
        )
    return StudentTeacher(student, config.teacher.temperature)
