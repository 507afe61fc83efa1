"""What a teacher's last number means, and whose actions can be the environment's."""

import jax.numpy as jnp
import numpy as np
import pytest

from rpd_jax.action_convention import check_action_dim, choose_gripper, gripper_to_environment
from rpd_jax.errors import UserError

RLDS = np.array([0.0, 1.0, 1.0, 0.0])
SIGNED = np.array([-1.0, 1.0, 1.0, -1.0])


def statistics_of(values, names=("min", "max", "mean", "std")):
    numbers = {"min": values.min(), "max": values.max(), "mean": values.mean(), "std": values.std()}
    numbers |= {"p01": np.quantile(values, 0.01), "p99": np.quantile(values, 0.99)}
    return {name: [0.3, numbers[name]] for name in names}


@pytest.mark.parametrize(
    ("values", "names", "convention"),
    [
        (RLDS, ("min", "max"), "open"),
        (RLDS, ("p01", "p99"), "open"),
        (RLDS, ("mean", "std"), "open"),
        (SIGNED, ("min", "max"), "signed"),
        (SIGNED, ("p01", "p99"), "signed"),
        (SIGNED, ("mean", "std"), "signed"),
        (np.full(4, -1.0), ("min", "max"), "signed"),
        (np.zeros(4), ("min", "max"), "open"),
        (np.ones(4), ("min", "max"), "signed"),  # 1 is open by both
        # One outlier above 1 is none of the 99%; a rare -1 is no outlier, since no gripper from 0 to 1 has it.
        (np.append(np.tile(RLDS, 100), 1.5), ("min", "max", "p01", "p99"), "open"),
        (np.append(np.ones(400), -1.0), ("min", "max", "p01", "p99"), "signed"),
        (np.linspace(-0.02, 1.02, 50), ("min", "max"), "open"),
        (np.append(np.tile(SIGNED, 100), -30.0), ("min", "max", "p01", "p99"), "signed"),
        (np.array([-1.6, 1.5]), ("min", "max"), "signed"),  # noise, clipped by the environment
        (np.zeros(4), ("mean", "std"), "open"),
        # Rarely open, and rarely closed: far from 0.5 and 0 the mean, and the deviation small.
        (np.append(np.zeros(99), 1.0), ("mean", "std"), "open"),
        (np.append(np.ones(19), 0.0), ("mean", "std"), "open"),
        (np.append(np.ones(19), -1.0), ("mean", "std"), "signed"),
        (np.linspace(0.0, 1.0, 50), ("mean", "std"), "open"),
        (np.linspace(-1.0, 1.0, 50), ("mean", "std"), "signed"),
    ],
)
def test_statistics_decide(values, names, convention):
    decided, note = choose_gripper("auto", statistics_of(values, names), "its statistics")
    assert decided == convention
    assert "since it" in note and "in its statistics" in note


def test_a_setting_wins_over_statistics():
    for setting in ("signed", "open", "closed"):
        decided, note = choose_gripper(setting, statistics_of(RLDS), "its statistics")
        assert decided == setting and f"teacher.gripper={setting!r}" in note


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (
            {"min": [0.0], "max": [40.0]},
            "goes from 0 to 40 in its statistics.*set teacher.gripper to one of signed, open",
        ),
        # Millimetres, radians with zero in between, and metres that two fingers are apart.
        ({"min": [-3.0], "max": [99.0]}, "goes from -3 to 99 .*, which is no convention that is known"),
        ({"min": [-0.17], "max": [1.7]}, "goes from -0.17 to 1.7 .*, which is no convention that is known"),
        ({"min": [-0.2], "max": [0.3]}, "goes from -0.2 to 0.3 .*, which is no convention that is known"),
        ({"q01": [0.0], "q99": [0.04]}, "goes from 0 to 0.04 .*, which is no convention that is known"),
        ({"mean": [40.0], "std": [30.0]}, "has mean 40 and deviation 30 .*, which is no convention that is known"),
        ({"mean": [0.02], "std": [0.01]}, "has mean 0.02 and deviation 0.01 .*, which is no convention that is known"),
        ({"mean": [0.0]}, "no range of the gripper in its statistics"),
        ({}, "no range"),
        ({"min": ["x"], "max": [None], "p01": 3.0, "p99": {}}, "no range"),
    ],
)
def test_what_is_no_convention_is_refused(statistics, message):
    with pytest.raises(UserError, match=message):
        choose_gripper("auto", statistics, "its statistics")
    with pytest.raises(UserError, match=r"teacher.gripper='up' is not one of auto, signed, open, closed"):
        choose_gripper("up", statistics, "its statistics")


@pytest.mark.parametrize("library", [np, jnp])
def test_only_the_last_number_is_turned(library):
    actions = library.asarray([[0.25, 0.0], [-0.5, 1.0], [1.0, 0.75]], library.float32)
    for convention, gripper in (
        ("signed", [0.0, 1.0, 0.75]),
        ("open", [-1.0, 1.0, 0.5]),
        ("closed", [1.0, -1.0, -0.5]),
    ):
        turned = gripper_to_environment(actions, convention)
        assert turned.dtype == np.float32
        np.testing.assert_array_equal(turned, np.stack([actions[:, 0], gripper], axis=1))


@pytest.mark.parametrize("dims", [1, 6, 8, 14])
def test_other_numbers_of_dimensions_are_refused(dims):
    with pytest.raises(UserError, match=f"X gives actions of {dims} number.* takes 7 .pd_ee_delta_pose"):
        check_action_dim(dims, "X")
    check_action_dim(7, "X")
