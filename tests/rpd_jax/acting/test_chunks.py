"""Several actions of a chunk are run before a teacher is asked again, in each environment until its episode ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octo_teacher.teacher import OctoTeacher
from rpd_jax.acting.chunks import ExecutedChunks, ensembled
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


def averaged_one_by_one(chunks, dones, valid):
    """`ensembled`, as its definition says, for one sample: [T, N, K, A] -> [T, N, A]."""
    labels = np.zeros_like(chunks[:, :, 0])
    for t in range(len(chunks)):
        for n in range(chunks.shape[1]):
            said = [chunks[t, n, 0]]
            for age in range(1, chunks.shape[2]):
                if t - age < 0 or dones[t - age + 1, n]:
                    break
                if valid[t - age, n]:
                    said.append(chunks[t - age, n, age])
            labels[t, n] = np.mean(said, axis=0)
    return labels


def test_a_label_is_the_mean_of_what_the_chunks_of_its_episode_say_of_it():
    rng = np.random.default_rng(0)
    chunks = rng.normal(size=(2, 1, 12, 3, 4, 7)).astype(np.float32)
    dones, valid = rng.random((12, 3)) < 0.2, rng.random((12, 3)) < 0.8
    for own_valid in (valid, np.ones_like(valid)):
        found = ensembled(chunks, dones.astype(np.float32), None if own_valid.all() else own_valid)
        for e in range(2):
            np.testing.assert_allclose(found[e, 0], averaged_one_by_one(chunks[e, 0], dones, own_valid), atol=1e-6)
    # By hand, one environment: an episode ended before step 2. Step 1 is the mean of two chunks, step 2 is alone.
    chunks = np.arange(3 * 2, dtype=np.float32).reshape(3, 1, 2, 1)  # step t: its first action 2t, its second 2t + 1
    found = ensembled(chunks, np.array([[0.0], [0.0], [1.0]]))
    np.testing.assert_array_equal(found[:, 0, 0], [0.0, (2.0 + 1.0) / 2.0, 4.0])


def test_chunks_longer_than_the_rollout_count_as_far_as_it_goes():
    chunks = np.ones((2, 1, 5, 7), np.float32)
    np.testing.assert_array_equal(ensembled(chunks, np.zeros((2, 1))), np.ones((2, 1, 7)))
