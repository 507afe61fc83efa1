"""Labels asked for while the environments step are those asked for afterwards."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import jaxtyped
from ml_collections import ConfigDict

from configs import default
from rpd_jax import settings
from rpd_jax.acting import collect, labelling
from rpd_jax.acting.labelling import Labeller
from rpd_jax.envs.factory import make_vector_env
from rpd_jax.errors import UserError
from rpd_jax.learning.learner import Learner
from rpd_jax.student.networks import ActorCritic
from rpd_jax.teachers import Teacher, load_teacher

STEPS, ENVS = 5, 2


def make_config(**changes) -> ConfigDict:
    config = default.get_config()
    config.profile = "cpu"
    small = {
        "env.num_envs": ENVS,
        "env.workers": 1,
        "env.image_size": 40,
        "env.mesh_detail": 0.07,
        "student.image_size": 40,
        "ppo.rollout_steps": STEPS,
        "ppo.num_minibatches": 1,
        "ppo.update_epochs": 3,
        "distill.averaged": 2,
    }
    config.update_from_flattened_dict(small | changes)
    return settings.resolve(config)


def checked_act(teacher):
    """`act`, which must be called and answer as the protocol says."""

    def act(self, rgb, instruction, key, num_samples=1, first_frame=0):
        return teacher.act(rgb, instruction, key, num_samples, first_frame)

    act.__annotations__ = Teacher.act.__annotations__
    return partial(jaxtyped(act, typechecker=beartype), teacher)


@pytest.fixture(scope="module")
def collected():
    """A rollout, and the frames that `collect` passed on, step by step."""
    config = make_config(algorithm="ppo")
    learner = Learner(ActorCritic.from_config(config.student), config)
    seen = []
    with make_vector_env(config.env) as envs:
        position = collect.start(envs, 0)
        params = learner.init(jax.random.key(0), position.rgb, position.state).params
        frames, *_ = collect.rollout(
            envs, learner, params, position, STEPS, jax.random.key(2), on_frames=lambda *seen_now: seen.append(seen_now)
        )
    return frames, seen


def test_each_step_is_seen_once_and_in_order(collected):
    frames, seen = collected
    np.testing.assert_array_equal(jnp.stack([rgb for rgb, _ in seen]), frames.rgb)
    np.testing.assert_array_equal(jnp.stack([state for _, state in seen]), frames.state)
    assert (np.diff(frames.rgb, axis=0) != 0).any(axis=(1, 2, 3, 4)).all()


@pytest.mark.parametrize(
    ("algorithm", "refresh", "shape"),
    [("rpd_mse", "epoch", (3, 1)), ("ppd", "rollout", (1, 10))],
    ids=["sets", "samples"],
)
def test_the_same_labels_during_the_rollout_and_after_it(collected, algorithm, refresh, shape):
    frames, seen = collected
    labels = {}
    for overlap in ("on", "off"):
        config = make_config(**{"algorithm": algorithm, "teacher.refresh": refresh, "teacher.overlap": overlap})
        learner = Learner(ActorCritic.from_config(config.student), config)
        labeller = Labeller(load_teacher(config), config, learner)
        on_frames = labeller.begin(jax.random.key(1))
        assert (on_frames is None) == (overlap == "off")
        if on_frames:
            labeller.teacher.worthwhile_batch = 2 * ENVS  # pairs of steps, and one is left over
            for rgb, state in seen:
                on_frames(rgb, state)
        labels[overlap] = np.asarray(labeller.label(frames).teacher_actions)
        if overlap == "off":
            flat = frames.rgb.reshape(STEPS * ENVS, *frames.rgb.shape[2:])
            samples = config.distill.averaged * learner.label_sets * learner.num_samples
            checked_act(labeller.teacher)(flat, labeller.instruction, jax.random.key(1), samples)
        labeller.teacher.close()
    assert labels["on"].shape == (*shape, STEPS, ENVS, 7)
    # Batches of other sizes round differently.
    np.testing.assert_allclose(labels["on"], labels["off"], atol=2e-5)
    for axis in (-3, 0 if shape[0] > 1 else 1):  # frames differ, and so do sets or samples
        assert np.abs(np.diff(labels["on"], axis=axis)).max() > 1e-3


def test_a_label_is_the_mean_or_the_sample_nearest_to_it():
    """Two ways around an obstacle: their mean goes through it, the nearest sample is one of the ways."""
    left, right = np.full((5, 2, 7), -0.8), np.full((3, 2, 7), 0.8)
    samples = np.concatenate([left, right]) + 0.01 * np.arange(8)[:, None, None]
    samples[:, 1] = -samples[:, 1]
    for chosen in (samples, samples[:, None]):  # [K, B, A] and [K, T, N, A]
        mean = labelling.one_of_several(jnp.asarray(chosen), "mean")
        np.testing.assert_allclose(mean, chosen.mean(axis=0), atol=1e-6)
        assert np.abs(mean).max() < 0.3
        nearest = labelling.one_of_several(jnp.asarray(chosen), "nearest")
        distances = np.linalg.norm(chosen - chosen.mean(axis=0), axis=-1).reshape(8, 2)
        expected = chosen.reshape(8, 2, 7)[distances.argmin(axis=0), [0, 1]]
        np.testing.assert_allclose(nearest.reshape(2, 7), expected, atol=1e-6)
    alone = labelling.one_of_several(jnp.asarray(samples[:1]), "nearest")
    np.testing.assert_allclose(alone, samples[0], atol=1e-6)


def test_ppd_gets_the_teacher_s_own_spread(collected):
    """Means of several samples would be closer together; a label of the other algorithms is such a mean."""
    frames, _ = collected
    labels, teacher = {}, load_teacher(make_config())
    for algorithm, averaged in (("ppd", 1), ("ppd", 4), ("rpd_mse", 4)):
        config = make_config(**{"algorithm": algorithm, "distill.averaged": averaged, "distill.num_samples": 4})
        labeller = Labeller(teacher, config, Learner(ActorCritic.from_config(config.student), config))
        labeller.begin(jax.random.key(1))
        labels[algorithm, averaged] = np.asarray(labeller.label(frames).teacher_actions)
    np.testing.assert_array_equal(labels["ppd", 4], labels["ppd", 1])
    np.testing.assert_allclose(labels["rpd_mse", 4], labels["ppd", 1].mean(axis=1, keepdims=True), atol=2e-5)


def test_labels_of_several_chunks_begin_as_they_are_and_become_means(collected):
    frames, seen = collected
    labels = {}
    for chunk, overlap in ((1, "off"), (3, "off"), (3, "on")):
        config = make_config(**{"algorithm": "rpd_mse", "teacher.chunk": chunk, "teacher.overlap": overlap})
        labeller = Labeller(load_teacher(config), config, Learner(ActorCritic.from_config(config.student), config))
        on_frames = labeller.begin(jax.random.key(1))
        for rgb, state in seen if on_frames else ():
            on_frames(rgb, state)
        labels[chunk, overlap] = np.asarray(labeller.label(frames).teacher_actions)
    one, three = labels[1, "off"], labels[3, "off"]
    assert one.shape == three.shape
    np.testing.assert_allclose(three[:, :, 0], one[:, :, 0], atol=2e-5)  # nothing was said before
    assert np.abs(three[:, :, 1:] - one[:, :, 1:]).max() > 1e-3
    np.testing.assert_allclose(labels[3, "on"], three, atol=2e-5)
    with pytest.raises(UserError, match=r"teacher.chunk=9 asks for more actions than .* at once: give 4 at most"):
        config = make_config(**{"algorithm": "rpd_mse", "teacher.chunk": 9})
        Labeller(labeller.teacher, config, Learner(ActorCritic.from_config(config.student), config))


@pytest.mark.parametrize(
    ("changes", "overlap"),
    [
        ({}, "off"),  # Octo on the cores that simulate
        ({"teacher.overlap": "on"}, "on"),
        ({"teacher.name": "openpi", "teacher.address": "ws://127.0.0.1:8000"}, "on"),
        ({"teacher.name": "groot", "teacher.address": "tcp://127.0.0.1:5555"}, "on"),
        ({"teacher.name": "openvla", "teacher.devices": ("auto",)}, "off"),
        ({"teacher.name": "openvla", "teacher.devices": ("cpu", "cuda:0")}, "on"),
        ({"teacher.name": "openvla", "teacher.devices": ("cuda:0",), "env.backend": "gpu"}, "off"),
        ({"teacher.name": "openvla", "teacher.devices": ("cuda:1", "cuda:2"), "env.backend": "gpu"}, "on"),
    ],
)
def test_overlap_where_the_teacher_has_hardware_of_its_own(changes, overlap):
    assert make_config(**changes).teacher.overlap == overlap
