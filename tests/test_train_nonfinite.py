"""A run whose update meets a number that is not finite goes back to where its iteration began."""

import jax
import numpy as np
import pytest

from configs import push_cube_sparse
from rpd_jax import settings
from rpd_jax.acting.training_state import TrainingState
from rpd_jax.errors import UserError
from rpd_jax.learning.finite import FINITE_TERMS, mend_of
from rpd_jax.learning.learner import Learner
from rpd_jax.run.checkpoints import Checkpoints
from rpd_jax.student.networks import ActorCritic
from rpd_jax.trainer import train

ENVS, STEPS = 2, 8
STATE_DIM = 35  # of PushCube-v1


def make_config():
    """Settings that are allowed, and under which σ grows with each minibatch until its square is not finite."""
    config = push_cube_sparse.get_config()
    config.profile = "cpu_state"
    config.update_from_flattened_dict(
        {
            "algorithm": "ppd",
            "student.observation": "state",
            "student.initial_log_std": 5.0,
            "total_steps": 2 * ENVS * STEPS,
            "env.num_envs": ENVS,
            "env.workers": 1,
            "env.image_size": 16,
            "env.mesh_detail": 0.07,
            "teacher.eval_episodes": 0,
            "ppo.rollout_steps": STEPS,
            "ppo.num_minibatches": 2,
            "ppo.update_epochs": 40,
            "ppo.learning_rate": 1.0,
            "ppo.entropy_coef": 1e6,
            "distill.schedule": "constant",
            "distill.coef": 1e-36,
            "distill.num_samples": 2,
            "distill.replay": 2 * ENVS * STEPS,
            "distill.replay_batch": 4,
            "distill.replay_coef": 1.0,
        }
    )
    return config


def test_the_mend_fits_the_cause():
    """A lower learning rate mends neither the rewards of a task nor the labels of a teacher."""
    others = {term for term in FINITE_TERMS if "learning_rate" not in mend_of(term, "rpd_mse")}
    assert others == {"rewards", "teacher_actions"}
    assert "rewards" in mend_of("rewards", "ppd") and "checkpoint" in mend_of("teacher_actions", "ppd")
    spread = {term for term in FINITE_TERMS if "std_floor" in mend_of(term, "ppd")}
    assert spread == {"distill_loss", "replay_loss"}


@pytest.mark.slow
def test_state_and_replay_are_those_before_the_iteration(tmp_path):
    with pytest.raises(UserError, match=r"distill_loss was not finite in iteration 0.*: lower ppo\.learning_rate"):
        train(make_config(), tmp_path)
    config = settings.resolve(make_config())
    learner = Learner(ActorCritic.from_config(config.student), config)
    begun = TrainingState(
        learner.init(jax.random.key(config.seed), None, np.zeros((ENVS, STATE_DIM), np.float32)),
        learner.create_replay(7, STATE_DIM),
    )
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        saved = begun.restored(checkpoints, pytest.fail)
        assert checkpoints.latest == saved.iteration == saved.came == 0
    jax.tree.map(np.testing.assert_array_equal, (saved.learner, saved.replay), (begun.learner, begun.replay))
