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
    """How the actions of one data set were normalised; arrays [A]. Where `mask` is false they were not.

    The same checks as `octo_teacher.action_statistics` makes; a type of its own, since the worker's environment has
    neither JAX nor rpd_jax.

    Attributes:
        gripper: what is known of the last dimension, by the names of the statistics.
    """

    q01: np.ndarray
    q99: np.ndarray
    mask: np.ndarray
    gripper: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def action_dim(self) -> int:
        return len(self.q01)

    def unnormalize(self, actions: np.ndarray) -> np.ndarray:
        """Maps [-1, 1] to [q01, q99] where the mask is true; actions [..., A]."""
        return np.where(self.mask, 0.5 * (actions + 1.0) * (self.q99 - self.q01) + self.q01, actions)

    def to_environment(self, actions: np.ndarray, gripper: tuple[float, float] | None = None) -> np.ndarray:
        """Turns un-normalised actions into the environment's, in [-1, 1].

        Args:
            gripper: scale and shift of the last dimension, as the client decided. None: an unmasked one is the gripper
                of the RLDS convention, 0 closed and 1 open; ManiSkill has -1 and +1 (as vlagents' ManiSkill evaluator
                converts it).
        """
        actions = np.array(actions)
        scale, shift = gripper or ((1.0, 0.0) if self.mask[-1] else (2.0, -1.0))
        actions[..., -1] = scale * actions[..., -1] + shift
        return np.clip(actions, -1.0, 1.0)


def choose_statistics(
    norm_stats: Mapping[str, Any], unnorm_key: str | None, source: str = "The checkpoint"
) -> ActionStatistics:
    """Returns the action statistics of a data set; the key may be left out (None or "") if there is one only.

    `source` is the file or checkpoint that sentences name.

    Raises:
        BridgeError: no such key, several to choose from, or statistics that are none.
    """
    names = ", ".join(map(repr, norm_stats)) or "none"
    if not unnorm_key:
        if len(norm_stats) != 1:
            raise BridgeError(f"{source} has action statistics of {names}: set teacher.dataset to one of them.")
        unnorm_key = next(iter(norm_stats))
    if unnorm_key not in norm_stats:
        raise BridgeError(
            f"teacher.dataset={unnorm_key!r} is not among the action statistics of {source}: it has {names}."
        )
    where = f"{source}: the action statistics of {unnorm_key!r}"
    entry = norm_stats[unnorm_key].get("action")
    if not isinstance(entry, Mapping):
        raise BridgeError(f"{where} are missing: its entry has no 'action'.")
    q01, q99 = (_numbers(entry, name, where) for name in ("q01", "q99"))
    mask = _mask(entry, len(q01), where)
    if not q01.shape == q99.shape == mask.shape:
        raise BridgeError(f"{where} are not q01, q99 and mask of equal length.")
    wrong = np.flatnonzero(q99 < q01)
    if len(wrong):
        i = wrong[0]
        raise BridgeError(f"{where} have q99[{i}]={q99[i]:g}, below q01[{i}]={q01[i]:g}.")
    return ActionStatistics(q01, q99, mask, _of_gripper(entry, len(q01)))


def _numbers(entry: Mapping[str, Any], name: str, where: str) -> np.ndarray:
    value = entry.get(name)
    try:
        array = np.array(value)
        if value is None or array.ndim != 1 or not len(array) or array.dtype.kind not in "iuf":
            raise ValueError
    except ValueError:
        raise BridgeError(
            f"{where} have {name}={str(value)[:40]}; it must be a list with one number per action dimension."
        ) from None
    if not np.isfinite(array).all():
        i = int(np.flatnonzero(~np.isfinite(array))[0])
        raise BridgeError(f"{where} have {name}[{i}]={value[i]}, which is no finite number.")
    return array.astype(np.float64)


def _mask(entry: Mapping[str, Any], length: int, where: str) -> np.ndarray:
    if entry.get("mask") is None:
        return np.ones(length, bool)
    try:
        array = np.array(entry["mask"])
        sound = array.ndim == 1 and array.dtype.kind in "biuf" and bool(np.isin(array, (0, 1)).all())
    except ValueError:
        sound = False
    if not sound:
        raise BridgeError(f"{where} have a 'mask' that is no list of true and false.")
    return array.astype(bool)


def _of_gripper(entry: Mapping[str, Any], length: int) -> dict[str, float]:
    known = {}
    for name in ("min", "max", "q01", "q99", "mean", "std"):
        values = entry.get(name)
        if isinstance(values, list) and len(values) == length and isinstance(values[-1], int | float):
            known[name] = float(values[-1])
    return known
