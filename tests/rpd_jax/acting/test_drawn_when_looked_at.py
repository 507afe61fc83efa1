"""A stage draws frames for a student that sees them, for labels and for videos, and for nobody else."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from configs import default
from rpd_jax import settings
from rpd_jax.acting import collect
from rpd_jax.acting.evaluation import evaluate_student, measure_teacher
from rpd_jax.acting.stage import Stage, iteration_keys
from rpd_jax.run.checkpoints import Checkpoints
from rpd_jax.run.directory import open_run
from rpd_jax.run.records import read_teacher
from rpd_jax.run.stages import StageClock
from rpd_jax.training_run.fields import TRAINING

KEY = jax.random.key(0)
STEPS = 4


def config(**overrides):
    config = default.get_config()
    config.student.observation = "state"
    config.profile = "cpu_state"
    config.env.update(num_envs=2, workers=1, image_size=16, mesh_detail=0.07)
    config.ppo.update(rollout_steps=STEPS, num_minibatches=2)
    config.eval.update(episodes=2, final_episodes=2, video_episodes=0)
    config.distill.averaged = 1
    config.update_from_flattened_dict(overrides)
    return settings.resolve(config)


@pytest.fixture(scope="module")
def blind():
    """PPO on the state: nobody looks."""
    with contextlib.ExitStack() as stack:
        yield Stage.open(config(algorithm="ppo"), stack)


def test_ppo_on_the_state_draws_nothing_and_acts_the_same(blind):
    state, keys = blind.fresh_state(KEY), iteration_keys(KEY, 0)
    assert not blind.envs.drawing
    rollouts = []
    for drawn in (True, False):
        position = collect.start(blind.envs, 7, drawn)
        params = blind.learner.local_params(state.learner)
        rollout, after, _ = collect.rollout(
            blind.envs, blind.learner, params, position, STEPS, keys.policy, drawn=drawn
        )
        assert (rollout.rgb is not None) == (position.rgb is not None) == (after.rgb is not None) == drawn
        rollouts.append(rollout.replace(rgb=None))
    jax.tree.map(np.testing.assert_array_equal, *rollouts)
    # As the loop does it, labels or none: there is no teacher to look.
    for labelled in (True, False):
        rollout, _, _ = blind.collect(state, position, STEPS, keys, labelled, StageClock())
        assert rollout.rgb is None


def test_an_evaluation_draws_for_its_video_alone(blind, tmp_path):
    state = blind.fresh_state(KEY)
    evaluate_student(blind, state, True, tmp_path, lambda: None)
    assert not blind.envs.drawing and not (tmp_path / "videos").exists()
    filming = dataclasses.replace(blind, config=blind.config.copy_and_resolve_references())
    filming.config.eval.video_episodes = 1
    evaluate_student(filming, state, False, tmp_path, lambda: None)
    assert not blind.envs.drawing
    filming.config.eval.final_episodes = 6
    evaluate_student(filming, state, True, tmp_path, lambda: None)
    assert (tmp_path / "videos" / "student.png").exists()
    assert not blind.envs.drawing  # since the one episode of the film was over


@pytest.fixture(scope="module")
def taught():
    """A stage whose teacher looks at what its student does not see."""
    with contextlib.ExitStack() as stack:
        yield Stage.open(config(**{"teacher.eval_episodes": 2}), stack)


@pytest.mark.slow
def test_labels_are_drawn_for_and_no_longer_where_nothing_weighs_them(taught):
    state, keys = taught.fresh_state(KEY), iteration_keys(KEY, 0)
    position = collect.start(taught.envs, 7, taught.draws(True))
    rollout, position, _ = taught.collect(state, position, STEPS, keys, True, StageClock())
    assert rollout.rgb is not None and rollout.teacher_actions is not None
    rollout, position, _ = taught.collect(state, position, STEPS, keys, False, StageClock())
    assert rollout.rgb is None and rollout.teacher_actions is None
    # And on again in the middle of an episode.
    rollout, _, _ = taught.collect(state, position, STEPS, keys, True, StageClock())
    assert rollout.rgb is not None and rollout.rgb[0].std() > 0


@pytest.mark.slow
def test_a_teacher_is_measured_without_a_video_too(taught, tmp_path):
    """eval.video_episodes=0: nothing is filmed, but the teacher needs its frames."""
    taught.envs.set_drawing(False)
    measured = measure_teacher(taught, tmp_path, lambda text: None, lambda: None)
    assert measured["episodes"] == 2 and read_teacher(tmp_path / "teacher.json") == measured
    assert not (tmp_path / "videos").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kept", [False, True])
def test_where_neither_teacher_nor_student_looks_frames_are_drawn_if_they_are_kept(blind, kept, tmp_path):
    """As in the first stage of a run whose teacher is an earlier student of the state."""
    open_run(tmp_path, blind.config, TRAINING)
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(1, {"learner": blind.fresh_state(KEY).learner}, {"step": 8})
    teacher = {"teacher.name": "student", "teacher.checkpoint": str(tmp_path), "teacher.temperature": 1.0}
    replay = {"distill.replay": 16, "distill.replay_batch": 4, "distill.replay_both": kept}
    with contextlib.ExitStack() as stack:
        stage = Stage.open(config(**teacher, **replay), stack)
        state, keys = stage.fresh_state(KEY), iteration_keys(KEY, 0)
        position = collect.start(stage.envs, 7, stage.draws(True))
        rollout, *_ = stage.collect(state, position, STEPS, keys, True, StageClock())
        state, _ = stage.update(state, rollout, keys, stage.coefficients(0), StageClock())
    assert int(state.replay.count) == 2 * STEPS
    assert (state.replay.frames is not None) == kept
    assert not kept or np.asarray(state.replay.frames[: 2 * STEPS]).std() > 0


def test_a_rollout_s_frames_stay_where_they_were_put():
    frames = collect._FrameBuffer(3)
    for t in range(3):
        frames.add(np.full((2, 5, 5, 3), t, np.uint8))
    stacked = frames.stacked()
    assert stacked.unsafe_buffer_pointer() == frames._buffer.ctypes.data  # JAX copies what is not aligned
    np.testing.assert_array_equal(stacked[:, 1, 4, 4, 2], [0, 1, 2])
