"""An earlier student labels as a teacher: by its mean, or by samples of its Gaussian."""

import jax
import numpy as np
import pytest

from configs import default
from rpd_jax import settings
from rpd_jax.errors import UserError
from rpd_jax.evaluate.student_teacher import StudentTeacher, load
from rpd_jax.evaluate.trained_student import TrainedStudent
from rpd_jax.run.checkpoints import Checkpoints
from rpd_jax.run.directory import open_run
from rpd_jax.student.networks import ActorCritic
from rpd_jax.teachers import load_teacher, look, sees_frames
from rpd_jax.training_run.fields import TRAINING

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
STATES = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
KEY = jax.random.key(4)


def make_run(workdir, observation, task="PushCube-v1"):
    config = default.get_config(task)
    config.algorithm, config.student.observation, config.student.initial_log_std = "ppo", observation, -2.0
    config.env.image_size = config.student.image_size = 40
    config = settings.resolve(config)
    open_run(workdir, config, TRAINING)
    network = ActorCritic.from_config(config.student)
    frames = FRAMES if network.sees_frames else None
    params = network.init(jax.random.key(0), frames, STATES if network.reads_state else None)
    with Checkpoints(workdir / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(1, {"learner": {"params": params}}, {"step": 0})
    return network, params


def trainer_config(run, **changes):
    config = default.get_config()
    config.teacher.name, config.teacher.checkpoint = "student", str(run)
    config.update_from_flattened_dict(changes)
    return settings.resolve(config)


@pytest.mark.parametrize("observation", ["rgb", "state", "rgb+state"])
def test_labels_are_the_student_s_mean_actions(tmp_path, observation):
    network, params = make_run(tmp_path / "run", observation)
    teacher = load_teacher(trainer_config(tmp_path / "run"))
    assert sees_frames(teacher) == ("rgb" in observation)
    assert set(look(teacher, STATES)) == ({"state"} if "state" in observation else set())
    frames = FRAMES if "rgb" in observation else None
    state = STATES if "state" in observation else None
    expected = np.clip(network.apply(params, frames, state, method="mean_action"), -1, 1)
    labels = teacher.begin(frames, "push", KEY, 3, **look(teacher, STATES))()
    assert labels.shape == (3, 6, 7)
    for label in labels:
        np.testing.assert_allclose(label, expected, atol=1e-6)
    teacher.close()


def test_with_a_temperature_samples_follow_its_gaussian_and_their_frame(tmp_path):
    network, params = make_run(tmp_path / "run", "state")
    student = TrainedStudent(None, network, params, 1, 5)
    teacher = StudentTeacher(student, temperature=0.5)
    samples = np.asarray(teacher.act(None, "", KEY, 2000, first_frame=10, state=STATES))
    mean = np.asarray(StudentTeacher(student).act(None, "", KEY, state=STATES)[0])
    np.testing.assert_allclose(samples.std(axis=0), 0.5 * np.exp(-2.0), rtol=0.1)
    np.testing.assert_allclose(samples.mean(axis=0), mean, atol=0.01)
    part = teacher.act(None, "", KEY, 2000, first_frame=12, state=STATES[2:4])
    np.testing.assert_allclose(part, samples[:, 2:4], atol=1e-6)


def test_what_it_cannot_look_at_is_refused(tmp_path):
    make_run(tmp_path / "state", "state", task="PickCube-v1")
    make_run(tmp_path / "rgb", "rgb")
    with pytest.raises(UserError, match="is a student of PickCube-v1 that sees the simulator's state"):
        load(trainer_config(tmp_path / "state"))
    with pytest.raises(UserError, match=r"looks at frames of 40 px and env.image_size=36 draws less"):
        load(trainer_config(tmp_path / "rgb", **{"env.image_size": 36, "student.image_size": 36}))
    with pytest.raises(UserError, match=r"holds no run \(config.json\)"):
        load(trainer_config(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"^teacher\.checkpoint='' names nothing"):
        trainer_config("")
