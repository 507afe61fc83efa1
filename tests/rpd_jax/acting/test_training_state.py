"""What a run carries from iteration to iteration is saved whole or not at all."""

import jax.numpy as jnp
import pytest

from rpd_jax.acting.training_state import TrainingState
from rpd_jax.learning.replay import Replay
from rpd_jax.run.checkpoints import CheckpointError, Checkpoints


def test_a_replay_that_was_lost_is_not_saved(tmp_path):
    """As where memory runs out while a rollout is added in place."""
    replay = Replay.create(4, num_samples=1, action_dim=7, state_dim=2)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        TrainingState({"weight": jnp.ones(3)}, replay, 1).save(checkpoints, step=8)
        replay.labels.delete()
        with pytest.raises(CheckpointError, match="replay was lost when memory ran out: the same command continues"):
            TrainingState({"weight": jnp.ones(3)}, replay, 2).save(checkpoints, step=16)
        assert checkpoints.latest == 1
