"""A teacher whose actions mean something else is told by how they look."""

import numpy as np
import pytest

from rpd_jax.acting.odd_actions import OddActions


def seen(actions, parts=4):
    odd = OddActions()
    for part in np.array_split(actions, parts):
        odd.see(part)
    return odd.sentences()


@pytest.fixture
def usual():
    """Half-open to open, in all directions; no rotation, as the embedded teachers have none."""
    actions = np.random.default_rng(0).uniform(-1, 1, (400, 7)).astype(np.float32)
    actions[:, 3:6] = 0.0
    return actions


def test_usual_actions_are_not_odd(usual):
    assert seen(usual) == []
    usual[:, 6] = np.where(np.arange(400) % 10 == 0, -1.0, 1.0)  # a gripper is open or closed, and mostly one of them
    assert seen(usual) == []
    usual[:, 6] = -1.0  # closed for ever, as where things are pushed
    assert seen(usual) == []
    usual[:, 0] = np.where(np.arange(400) % 2, 1.0, -1.0)  # at full speed, in both directions
    assert seen(usual) == []


def test_a_number_that_stands_still_or_sits_at_its_bound_is_named(usual):
    usual[:, 6] = 0.5  # half-open for ever: 0...1 that nobody mapped
    usual[:, 2] = np.where(np.arange(400) < 5, 0.3, -1.0)  # an absolute height, clipped
    first, second = seen(usual)
    assert first.startswith("Warning: Number 2 of the teacher's actions (translation z) is at its bound in 99% of the")
    assert second.startswith("Warning: Number 6 of the teacher's actions (gripper) never moves, it is always 0.5:")
    assert "teacher.gripper" in second


def test_few_actions_tell_nothing(usual):
    usual[:, 6] = 0.5
    assert seen(usual[:99]) == [] and len(seen(usual[:100])) == 1
