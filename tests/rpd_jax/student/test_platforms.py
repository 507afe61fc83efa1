"""A program is made for the platform that it is lowered for, wherever that happens: no GPU is needed to look at it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from octo_teacher.model import vit_encoders
from rpd_jax import settings
from rpd_jax.evaluate.trained_student import TrainedStudent
from rpd_jax.export.policy import export_program
from rpd_jax.learning import schedules
from rpd_jax.learning.learner import Learner
from rpd_jax.plan import rollout_shapes
from rpd_jax.student import convolution
from rpd_jax.student.networks import ActorCritic

STEPS, ENVS, SIZE = 2, 4, 40
FRAMES = jnp.zeros((STEPS, ENVS, SIZE, SIZE, 3), jnp.uint8)
PRODUCTS, CONVOLUTIONS = "dot_general", "stablehlo.convolution"


@pytest.fixture(scope="module")
def learner():
    config = default.get_config()
    config.profile = "cpu"
    changes = {"algorithm": "ppo", "env.num_envs": ENVS, "ppo.rollout_steps": STEPS, "ppo.num_minibatches": 2}
    changes |= {"env.image_size": SIZE, "student.image_size": SIZE, "distill.replay": 0, "distill.replay_batch": 0}
    config.update_from_flattened_dict(changes | {"total_steps": 16})
    config = settings.resolve(config)
    return Learner(ActorCritic.from_config(config.student), config)


@pytest.fixture(scope="module")
def state(learner):
    shapes = jax.eval_shape(learner.network.init, jax.random.key(0), FRAMES[0])
    return learner.init_from(jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), shapes))


def lowered(function, platform, *arguments):
    return function.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def assert_convolutions_for_cuda_only(text_for):
    assert CONVOLUTIONS in text_for("cuda")
    assert CONVOLUTIONS not in text_for("cpu") and PRODUCTS in text_for("cpu")


def test_update(learner, state):
    rollout = rollout_shapes(learner, STEPS, ENVS, SIZE)
    coefficients = schedules.coefficients(learner.config, 0)
    arguments = state, rollout, jax.random.key(0), coefficients, None, None
    assert_convolutions_for_cuda_only(lambda platform: lowered(jax.jit(learner.update), platform, *arguments))


def test_policy_step(learner, state):
    arguments = learner.local_params(state), FRAMES[0], None, jax.random.key(0)
    assert_convolutions_for_cuda_only(lambda platform: lowered(learner.policy_step, platform, *arguments))


def test_exported_policy(learner, state):
    config = ConfigDict({"env": {"image_size": SIZE}})
    student = TrainedStudent(config, learner.network, learner.local_params(state), iteration=0, state_dim=None)
    assert_convolutions_for_cuda_only(lambda platform: export_program(student, (platform,)).mlir_module())


def test_gradients_of_octo_s_convolutions():
    """Its forward pass is a convolution everywhere; on a CPU the gradients are products."""
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
    gradient = jax.jit(jax.grad(lambda x, kernel: vit_encoders.conv2d(x, kernel, 2, 1).sum(), argnums=(0, 1)))
    assert lowered(gradient, "cuda", x, kernel).count(CONVOLUTIONS) == 2
    on_cpu = lowered(gradient, "cpu", x, kernel)
    assert on_cpu.count(CONVOLUTIONS) == 0 and PRODUCTS in on_cpu


@pytest.mark.parametrize(
    ("batch", "limit", "expected"),
    [
        (256, 8, (32, 8)),  # as many as may be
        (60, 8, (10, 6)),  # the next smaller divisor
        (3, 8, (1, 3)),
        (67, 8, (9, 8)),  # prime: 5 images more than there are
        (10, 9, (2, 5)),
        (1, 8, (1, 1)),
        (67, 1, (67, 1)),
    ],
)
def test_chunks_are_large_whatever_the_batch(batch, limit, expected):
    assert convolution._chunks(batch, limit) == expected


def test_frames_of_a_prime_batch_are_computed_like_others(monkeypatch):
    """In chunks that do not divide it, values and gradients are those of all frames at once."""
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (13, SIZE, SIZE, 3), np.uint8)
    shapes = ((8, 3, 4), (4, 4, 6), (3, 6, 6))
    layers = [
        (random.normal(size=(k, k, c, o), scale=0.1).astype(np.float32), np.zeros(o, np.float32)) for k, c, o in shapes
    ]

    def value_and_gradient():
        stack = lambda layers: jnp.square(convolution._stack_of_products(frames, layers, (4, 2, 1), jnp.float32)).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(stack))(layers)

    whole = value_and_gradient()
    monkeypatch.setattr(convolution, "_chunks", lambda batch, limit: (3, 5))
    for found, expected in zip(jax.tree.leaves(value_and_gradient()), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
