"""What a run carries from iteration to iteration is saved whole or not at all."""

import jax.numpy as jnp
import numpy as np
import pytest

from rpd_jax.acting.training_state import TrainingState
from rpd_jax.learning.replay import Replay
from rpd_jax.learning.update import LearnerState
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


def test_where_evaluations_are_left_out_the_sampled_actions_say_what_was_best():
    state = TrainingState({"weight": jnp.ones(3)}, None)
    state = state.saw(np.array([1.0, 0.0, 1.0], np.float32)).saw(np.zeros(0, np.float32)).saw(np.ones(1, np.float32))
    assert state.recent == (3, 4)
    for success, sampled in ((None, 0.5), (0.9, 0.8), (None, 0.7), (None, 0.8)):
        state = state.evaluated(success, 100, sampled)
    assert state.recent == (0, 0) and state.marks == (0.5, 0.8, 0.7, 0.8)
    assert not state.ended(0.9, 3) and state.ended(0.9, 2), "two since the best, and the newest is no evaluation"
    assert state.evaluated(0.9, 100, 0.6).reached(0.9) and not state.evaluated(0.9, 100, 0.6).reached(0.95)
    assert state.evaluated(0.9, 100, None).evaluations[-1] == 0.9


def test_what_succeeds_lately_counts_more_than_what_did_before():
    state = TrainingState({"weight": jnp.ones(3)}, None)
    assert state.lately == 0.0
    risen = [state := state.saw(np.ones(32, np.float32)) for _ in range(20)]
    np.testing.assert_allclose([one.lately for one in risen], 1 - np.exp(-0.5 * np.arange(1, 21)), rtol=1e-6)
    # Sixteen episodes of which half succeed take a part of what is missing, none take nothing.
    state = state.saw(np.tile(np.array([0.0, 1.0], np.float32), 8))
    assert state.lately == pytest.approx(risen[-1].lately + (1 - np.exp(-0.25)) * (0.5 - risen[-1].lately))
    assert state.saw(np.zeros(0, np.float32)).lately == state.lately


def test_evaluations_so_far_are_part_of_a_checkpoint(tmp_path):
    marks = {"evaluations": (None, 0.5), "sampled": (0.25, 0.375), "recent": (3, 7), "lately": 0.3}
    state = TrainingState({"weight": jnp.ones(3)}, None, 2, **marks)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        state.save(checkpoints, step=8)
        restored = TrainingState({"weight": jnp.zeros(3)}, None).restored(checkpoints, print)
    assert {name: getattr(restored, name) for name in marks} == marks


def state_of(number, iteration, evaluations, **others):
    """A state whose parameters are `number`."""
    learner = LearnerState({"weight": jnp.full(3, number)}, {"moment": jnp.zeros(3)}, *jnp.zeros((2,), jnp.int32))
    return TrainingState(learner, None, iteration, evaluations=evaluations, **others)


@pytest.mark.parametrize(
    ("evaluations", "taken"),
    [
        ((0.1, 0.8, 0.3, 0.2), 4.0),  # of the second evaluation, after iteration 4
        ((0.1, 0.3, 0.2, 0.8), 8.0),  # of the last one
        ((0.5, 0.1, 0.5, 0.2), 6.0),  # as good twice: the later one
    ],
)
def test_the_best_parameters_are_left_and_stay_after_another_start(tmp_path, evaluations, taken):
    with Checkpoints(tmp_path, keep=1, keep_best=1) as checkpoints:
        for number in range(1, len(evaluations) + 1):
            state = state_of(float(2 * number), 2 * number, evaluations[:number])
            if number < len(evaluations):
                state.save(checkpoints, step=number, success=evaluations[number - 1])
        best = state.with_best(checkpoints, every=2)
        assert best.learner.params["weight"].tolist() == [taken] * 3
        best.save(checkpoints, step=9, success=0.9)  # in other episodes
        again = state_of(0.0, 0, ()).restored(checkpoints, print)
        assert again.iteration == 8 and again.with_best(checkpoints, 2) is again
        assert again.learner.params["weight"].tolist() == [taken] * 3


def test_without_a_checkpoint_of_the_best_the_last_parameters_stay(tmp_path):
    with Checkpoints(tmp_path, keep=1, keep_best=1) as checkpoints:
        state_of(4.0, 4, (0.8, 0.3)).save(checkpoints, step=4, success=0.3)
        assert state_of(5.0, 5, (0.8, 0.3)).with_best(checkpoints, 2).learner.params["weight"].tolist() == [5.0] * 3
        assert state_of(5.0, 5, ()).with_best(checkpoints, 2).learner.params["weight"].tolist() == [5.0] * 3
