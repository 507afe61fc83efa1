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


@pytest.mark.parametrize(
    ("evaluations", "until", "patience", "ended"),
    [
        ((), 0.9, 2, False),
        ((0.5, 0.9), 0.9, 0, True),
        ((0.95, 0.5), 0.9, 0, False),  # it is the newest that counts
        ((0.5, 0.9), 0.0, 0, False),
        ((0.5, 0.4, 0.5), 0.0, 2, True),
        ((0.5, 0.4, 0.6), 0.0, 2, False),
        ((0.5, 0.4), 0.0, 2, False),  # only one since the best
        ((0.0, 0.0, 0.0, 0.0), 0.0, 3, True),
    ],
)
def test_training_ends_by_what_it_reached(evaluations, until, patience, ended):
    state = TrainingState({"weight": jnp.ones(3)}, None, evaluations=evaluations)
    assert state.ended(until, patience) == ended


def test_evaluations_so_far_are_part_of_a_checkpoint(tmp_path):
    state = TrainingState({"weight": jnp.ones(3)}, None, 2, evaluations=(0.25, 0.5))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        state.save(checkpoints, step=8)
        assert TrainingState({"weight": jnp.zeros(3)}, None).restored(checkpoints, print).evaluations == (0.25, 0.5)
