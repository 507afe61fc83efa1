"""Several actions of a chunk are run before a teacher is asked again, in each environment until its episode ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octo_teacher.teacher import OctoTeacher
from rpd_jax.acting.chunks import ExecutedChunks
from rpd_jax.errors import UserError
from rpd_jax.teachers import check_horizon

KEYS = [jax.random.key(t) for t in range(8)]


class Counting:
    """A small teacher whose action says which frame it saw, and how many steps ago: [value, step, 0 ...]."""

    horizon = 3

    def __init__(self):
        self.asked = []

    def act(self, rgb, instruction, key, num_samples=1, first_frame=0, steps=None):
        self.asked.append(np.asarray(rgb)[:, 0, 0, 0].tolist())
        actions = np.zeros((num_samples, len(rgb), steps, 7), np.float32)
        actions[..., 0] = np.asarray(rgb)[None, :, :1, 0, 0]
        actions[..., 1] = np.arange(steps)
        return jnp.asarray(actions)


def frames_at(t, count=2):
    return jnp.full((count, 4, 4, 3), t, jnp.uint8)


def test_a_chunk_is_run_before_the_teacher_is_asked_again_and_ends_with_the_episode():
    teacher = Counting()
    act = ExecutedChunks(teacher, "push", 3)
    run = []
    for t in range(7):
        run.append(act(frames_at(t), np.zeros((2, 5)), KEYS[t])[:, :2].tolist())
        act.forget(np.array([False, t == 3]))  # the second environment's episode ends with step 3
    first = [[0, 0], [0, 1], [0, 2], [3, 0], [3, 1], [3, 2], [6, 0]]
    second = [[0, 0], [0, 1], [0, 2], [3, 0], [4, 0], [4, 1], [4, 2]]
    assert [step[0] for step in run] == first and [step[1] for step in run] == second
    assert len(teacher.asked) == 4  # at 0, 3, 4 and 6


def test_an_octo_s_chunk_begins_with_its_label(micro_octo):
    teacher = OctoTeacher.load(micro_octo)
    frames = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8))
    label, chunk = teacher.act(frames, "push", KEYS[0], 2), teacher.act(frames, "push", KEYS[0], 2, steps=3)
    assert teacher.horizon == 4 and chunk.shape == (2, 3, 3, 7)
    np.testing.assert_allclose(chunk[:, :, 0], label, atol=1e-6)
    assert np.abs(chunk[:, :, 1] - chunk[:, :, 0]).max() > 1e-3


def test_more_than_a_chunk_has_is_refused(micro_octo):
    with pytest.raises(
        UserError, match=r"--execute=5 asks for more actions than this teacher predicts at once: give 4"
    ):
        check_horizon(OctoTeacher.load(micro_octo), 5, "--execute=5")
