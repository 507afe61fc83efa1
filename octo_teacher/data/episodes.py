"""The internal form of a demo, whatever file it came from, and what is computed from demos alone."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from rpd_jax.action_convention import ACTION_DIM
from rpd_jax.errors import UserError


class Frames(Protocol):
    """Frames of one camera with random access, uint8 [T, H, W, 3]; a numpy array is one."""

    shape: tuple[int, int, int, int]

    def __len__(self) -> int:
        """T."""

    def __getitem__(self, steps: Any) -> np.ndarray:
        """The frames of these steps, indexed as a numpy array."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """One episode of T steps.

    Attributes:
        images: camera name of the model ("primary", "wrist") -> the frame in which each action was chosen.
        actions: float32 [T, A], labels in the environment's convention.
        instruction: what the robot was told.
        gripper_converted: whether the gripper's number was made the environment's from one between 0 and 1.
    """

    images: Mapping[str, Frames]
    actions: np.ndarray
    instruction: str
    gripper_converted: bool = False


def split_demos(demos: Sequence[Demo], held_out: float, seed: int) -> tuple[list[Demo], list[Demo]]:
    """Splits whole episodes into training and held-out ones; at least one of each if `held_out` > 0."""
    count = max(1, round(held_out * len(demos))) if held_out else 0
    if count >= len(demos):
        raise UserError(f"{len(demos)} episodes are too few to hold out {held_out:.0%} of them: record more.")
    order = np.random.default_rng(seed).permutation(len(demos))
    return [demos[i] for i in sorted(order[count:])], [demos[i] for i in sorted(order[:count])]


def action_statistics(demos: Sequence[Demo]) -> dict[str, Any]:
    """Returns statistics of one dataset in the form of a published dataset_statistics.json (lists of float).

    {"action": {mean, std, max, min, p99, p01, mask}, "num_transitions", "num_trajectories"}; the mask is False for what
    is not normalised: the last of the tasks' seven numbers, the gripper, if it stays within -1 and 1.
    """
    actions = np.concatenate([demo.actions for demo in demos]).astype(np.float64)
    statistics = {
        "mean": actions.mean(axis=0),
        "std": actions.std(axis=0),
        "max": actions.max(axis=0),
        "min": actions.min(axis=0),
        "p99": np.quantile(actions, 0.99, axis=0),
        "p01": np.quantile(actions, 0.01, axis=0),
        "mask": np.ones(actions.shape[1], bool),
    }
    if actions.shape[1] == ACTION_DIM and np.abs(actions[:, -1]).max() <= 1.0:
        statistics["mask"][-1] = False
    return {
        "action": {name: value.tolist() for name, value in statistics.items()},
        "num_transitions": len(actions),
        "num_trajectories": len(demos),
    }


def normalize_actions(actions: np.ndarray, statistics: dict[str, Any]) -> np.ndarray:
    """(a - mean) / (std + 1e-8) where the mask is True, for actions float32 [..., A] and their "action" statistics."""
    mean, std, mask = (np.asarray(statistics[name]) for name in ("mean", "std", "mask"))
    return np.where(mask, (actions - mean) / (std + 1e-8), actions).astype(np.float32)
