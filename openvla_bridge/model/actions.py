"""Action tokens to actions: bins, un-normalisation, and which statistics to use. float64 throughout, as published."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from openvla_bridge.errors import BridgeError


def bin_centers(num_bins: int = 256) -> np.ndarray:
    """The num_bins - 1 values between evenly spaced edges on [-1, 1]."""
    edges = np.linspace(-1.0, 1.0, num_bins)
    return (edges[:-1] + edges[1:]) / 2.0


def tokens_to_bins(tokens: np.ndarray, vocab_size: int, num_bins: int = 256) -> np.ndarray:
    """Index into `bin_centers` of each token: tokens count down from the vocabulary's end; others are clipped."""
    return np.clip(vocab_size - tokens - 1, 0, num_bins - 2)


@dataclasses.dataclass(frozen=True)
class ActionStatistics:
    """How the actions of one data set were normalised; arrays [A]. Where `mask` is false they were not."""

    q01: np.ndarray
    q99: np.ndarray
    mask: np.ndarray

    @property
    def action_dim(self) -> int:
        return len(self.q01)

    def unnormalize(self, actions: np.ndarray) -> np.ndarray:
        """Maps [-1, 1] to [q01, q99] where the mask is true; actions [..., A]."""
        return np.where(self.mask, 0.5 * (actions + 1.0) * (self.q99 - self.q01) + self.q01, actions)

    def to_environment(self, actions: np.ndarray) -> np.ndarray:
        """Turns un-normalised actions into the environment's, in [-1, 1].

        An unmasked last dimension is the gripper of the RLDS convention, 0 closed and 1 open; ManiSkill has -1 and +1
        (as vlagents' ManiSkill evaluator converts it).
        """
        actions = np.array(actions)
        if not self.mask[-1]:
            actions[..., -1] = 2.0 * actions[..., -1] - 1.0
        return np.clip(actions, -1.0, 1.0)


def choose_statistics(norm_stats: Mapping[str, Any], unnorm_key: str | None) -> ActionStatistics:
    """Returns the action statistics of a data set; the key may be left out (None or "") if there is one only.

    Raises:
        BridgeError: no such key, several to choose from, or statistics that are none.
    """
    names = ", ".join(map(repr, norm_stats)) or "none"
    if not unnorm_key:
        if len(norm_stats) != 1:
            raise BridgeError(f"The checkpoint has action statistics of {names}: set teacher.dataset to one of them.")
        unnorm_key = next(iter(norm_stats))
    if unnorm_key not in norm_stats:
        raise BridgeError(
            f"teacher.dataset={unnorm_key!r} is not among the checkpoint's action statistics: it has {names}."
        )
    try:
        entry = norm_stats[unnorm_key]["action"]
        q01, q99 = np.array(entry["q01"], np.float64), np.array(entry["q99"], np.float64)
        mask = np.array(entry.get("mask", np.ones(len(q01), bool)), bool)
        sound = q01.ndim == 1 and len(q01) > 0 and q01.shape == q99.shape == mask.shape
        sound = sound and bool(np.isfinite(q01).all() and np.isfinite(q99).all())
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise BridgeError(f"The action statistics of {unnorm_key!r} are not q01 and q99 of equal length, all finite.")
    return ActionStatistics(q01, q99, mask)
