"""What an action of the environment is, and how a teacher's own convention is turned into it. Imports no JAX.

ManiSkill's pd_ee_delta_pose takes seven numbers in [-1, 1]: translation, rotation, and the gripper with +1 = open.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rpd_jax.errors import UserError

CONTROL_MODE = "pd_ee_delta_pose"
ACTION_DIM = 7
# What the gripper's number may mean -> (scale, shift) that turn it into the environment's.
GRIPPERS = {
    "signed": (1.0, 0.0),  # -1 closed, 1 open: the environment's own
    "open": (2.0, -1.0),  # 0 closed, 1 open: RLDS, as Octo and OpenVLA of the paper have it
    "closed": (-2.0, 1.0),  # 0 open, 1 closed: DROID
}
GRIPPER_SETTINGS = ("auto", *GRIPPERS)
# Beyond these a gripper between 0 and 1 has left its range by more than noise.
_LOWEST, _HIGHEST = -0.1, 1.1
# One that never comes this near to 1, or to -1, is measured otherwise: in metres, say.
_NEAR = 0.5
# So far one between -1 and 1 may go, whose noise is on both sides; the environment clips it.
_FARTHEST = 2.0
# From here on 1 is open by either convention that has it, and nothing is to be turned.
_ALWAYS_OPEN = 0.9


def check_action_dim(dims: int, who: str) -> None:
    """Raises UserError unless a teacher's actions have as many numbers as the environment's."""
    if dims != ACTION_DIM:
        raise UserError(
            f"{who} gives actions of {dims} number{'s' * (dims != 1)}; the environment takes {ACTION_DIM} "
            f"({CONTROL_MODE}: translation, rotation, gripper), so it cannot be a teacher."
        )


def choose_gripper(setting: str, statistics: Mapping[str, Any], whose: str) -> tuple[str, str]:
    """Decides what the last number of a teacher's actions means.

    "auto" looks at the range of that number in the actions that the teacher was trained on: the lowest and the highest
    of them, quantiles before extremes for the highest, since a few outliers are usual. Without a range, mean and
    deviation decide: numbers between 0 and h with mean m have a variance of m (h - m) at most (Bhatia and Davis 2000).

    Args:
        setting: one of `GRIPPER_SETTINGS`.
        statistics: of the actions, un-normalised: "min", "max", "p01" or "q01", "p99" or "q99", "mean", "std", each a
            list with the gripper last; what is missing is missing.
        whose: for the sentence, such as "the statistics of 'bridge'".

    Returns:
        A key of `GRIPPERS`, and the sentence that says what was decided and why.

    Raises:
        UserError: an unknown setting, or numbers that are neither.
    """
    if setting in GRIPPERS:
        return setting, f"gripper {_MEANING[setting]}, as teacher.gripper={setting!r} says"
    if setting != "auto":
        raise UserError(f"teacher.gripper={setting!r} is not one of {', '.join(GRIPPER_SETTINGS)}.")
    lows = _of_gripper(statistics, "p01", "q01", "min")
    low = min(lows, default=None)
    high = next(iter(_of_gripper(statistics, "p99", "q99", "max")), None)
    mean, std = (next(iter(_of_gripper(statistics, name)), None) for name in ("mean", "std"))
    if low is not None and high is not None:
        convention, seen = _of_range(low, lows[0], high), f"goes from {low:g} to {high:g} in {whose}"
        always_open = convention == "signed" and low > _ALWAYS_OPEN
    elif mean is not None and std is not None:
        convention, seen = _of_moments(mean, std), f"has mean {mean:g} and deviation {std:g} in {whose}"
        always_open = False
    else:
        raise UserError(
            f"There is no range of the gripper in {whose}: set teacher.gripper to one of {', '.join(GRIPPERS)}."
        )
    if convention is None:
        raise UserError(
            f"The gripper {seen}, which is no convention that is known: set teacher.gripper to one of "
            f"{', '.join(GRIPPERS)}."
        )
    return convention, f"gripper {'always open' if always_open else _MEANING[convention]}, since it {seen}"


def _of_range(low: float, usual_low: float, high: float) -> str | None:
    """The convention of numbers from `low`, or without outliers `usual_low`, to `high`; None if it is neither."""
    if low < _LOWEST:
        farthest = _FARTHEST if low <= -_NEAR else _HIGHEST
        return "signed" if max(-low, high) >= _NEAR and max(-usual_low, high) <= farthest else None
    if _ALWAYS_OPEN < low <= high <= _HIGHEST:
        return "signed"
    always_closed = low == high == 0.0
    return "open" if _NEAR <= high <= _HIGHEST or always_closed else None


def _of_moments(mean: float, std: float) -> str | None:
    """The convention of numbers with that mean and deviation; None if it is neither."""
    square = mean**2 + std**2
    # Of numbers between 0 and h it is h times the mean at most, and of those between -h and h it is h^2.
    if 0.0 <= mean <= 1.0 and _NEAR * mean <= square <= mean + 1e-3:
        return "open"
    return "signed" if _NEAR**2 <= square <= _HIGHEST**2 else None


_MEANING = {
    "signed": "from -1 (closed) to 1 (open)",
    "open": "from 0 (closed) to 1 (open)",
    "closed": "from 0 (open) to 1 (closed)",
}


def gripper_to_environment(actions: Any, convention: str) -> Any:
    """Returns actions [..., A], numpy's or JAX's, whose last number is the environment's gripper."""
    if convention == "signed":
        return actions
    scale, shift = GRIPPERS[convention]
    is_gripper = np.arange(actions.shape[-1]) == actions.shape[-1] - 1
    scales, shifts = (np.where(is_gripper, x, other).astype(actions.dtype) for x, other in ((scale, 1.0), (shift, 0.0)))
    return actions * scales + shifts


def _of_gripper(statistics: Mapping[str, Any], *names: str) -> list[float]:
    found = []
    for name in names:
        try:
            values = np.asarray(statistics.get(name), np.float64)
        except (TypeError, ValueError, OverflowError):
            continue  # no numbers
        if values.ndim == 1 and len(values) and np.isfinite(values[-1]):
            found.append(float(values[-1]))
    return found
