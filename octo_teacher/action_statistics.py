"""Statistics of a checkpoint's actions: which of them count, their checks, and un-normalisation.

How the original Octo names them: config.json keeps the arguments of its data sets, "dataset_kwargs", with one entry per
data set in "dataset_kwargs_list"; "action_proprio_normalization_type" in it is "normal" (its default) or "bounds".
Fine-tuning with the original code writes its own arguments into finetune_config.json beside it.
"""

import enum
from collections.abc import Iterator, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from rpd_jax.action_convention import CONTROL_MODE
from rpd_jax.errors import UserError

FINETUNE_CONFIG = "finetune_config"
_TYPE_KEY = "action_proprio_normalization_type"
# finetune_octo.py's entry of config.json on the actions of its demos: {"control_mode": that of the tasks or None where
# nobody says it, "gripper": "signed" where it is known to go from -1 (closed) to 1 (open), else None, "unlike": why a
# model of them cannot drive the tasks, "" if it can}.
DEMOS_ACTIONS = "demos_actions"


class NormalizationType(enum.StrEnum):
    """How a model's actions were normalised.

    NORMAL: (a - mean) / std. BOUNDS: p01 .. p99 to [-1, 1]. Only dimensions where the statistics' mask is True.
    """

    NORMAL = "normal"
    BOUNDS = "bounds"


# What BOUNDS means by the statistics that there are: quantiles, under Octo's or OpenVLA's names; before Octo 1.5, whose
# statistics had no quantiles, it was the extremes.
_ENTRIES = {
    NormalizationType.NORMAL: (("mean", "std"),),
    NormalizationType.BOUNDS: (("p01", "p99"), ("q01", "q99"), ("min", "max")),
}


@flax.struct.dataclass
class ActionStatistics:
    """The statistics that normalise actions of A dimensions; a pytree.

    Attributes:
        kind: how.
        first, second: float32 [A]: mean and deviation, or the lower and the upper bound.
        mask: bool [A], True where actions are normalised.
    """

    kind: NormalizationType = flax.struct.field(pytree_node=False)
    first: np.ndarray
    second: np.ndarray
    mask: np.ndarray

    @property
    def action_dim(self) -> int:
        return self.mask.shape[0]

    def unnormalize(self, actions: jax.Array) -> jax.Array:
        """Maps normalised actions [..., A or more] back, and cuts them to A.

        NORMAL: a * std + mean. BOUNDS: (a + 1) * (p99 - p01) / 2 + p01. Where the mask is False, a stays. Not clipped.
        """
        actions = actions[..., : self.action_dim]
        if self.kind == NormalizationType.NORMAL:
            mapped = actions * self.second + self.first
        else:
            mapped = (actions + 1) * (self.second - self.first) / 2 + self.first
        return jnp.where(self.mask, mapped, actions)


def read_statistics(
    entry: Any,
    kind: NormalizationType = NormalizationType.NORMAL,
    action_dim: int | None = None,
    where: str = "The action statistics",
) -> ActionStatistics:
    """Checks the statistics of one data set, {"mean": [A], "std": [A], "mask": [A], ...}, and takes what `kind` needs.

    A deviation of 0, or bounds that are equal, are those of a dimension that never moved: it is given back as it was.

    Args:
        action_dim: how many dimensions the model's actions have; statistics of fewer cut them.
        where: what the sentences are about, with the file.

    Raises:
        UserError: an entry is missing, no list of finite numbers, of another length, or no possible deviation or bound.
    """
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} are no object with mean, std and so on.")
    names = next((pair for pair in _ENTRIES[kind] if all(name in entry for name in pair)), _ENTRIES[kind][0])
    missing = [name for name in names if name not in entry]
    if missing:
        raise UserError(
            f"{where} lack {missing[0]!r}, which normalization_type={kind.value} needs"
            + (": choose one dataset of dataset_statistics and its 'action'." if "action" not in entry else ".")
        )
    first, second = (_numbers(entry[name], name, where) for name in names)
    mask = _mask(entry.get("mask"), len(first), where)
    if len({value.shape for value in (first, second, mask)}) != 1:
        raise UserError(f"{where} {', '.join((*names, 'mask'))} differ in length.")
    if action_dim is not None and len(first) > action_dim:
        raise UserError(f"{where} have {len(first)} dimensions; the model's actions have {action_dim}.")
    wrong = np.flatnonzero(second < (0 if kind == NormalizationType.NORMAL else first))
    if len(wrong):
        name, i = names[1], wrong[0]
        least = "0" if kind == NormalizationType.NORMAL else f"{names[0]}[{i}]={first[i]:g}"
        raise UserError(f"{where} have {name}[{i}]={second[i]:g}, below {least}.")
    return ActionStatistics(kind, first, second, mask)


def choose_statistics(
    statistics: Mapping[str, Any] | None, dataset: str | None, where: str = "The checkpoint"
) -> tuple[str | None, Mapping[str, Any]]:
    """Returns the name of a data set, None where it has none, and its action statistics.

    Args:
        statistics: {dataset: {"action": ...}}, or {"action": ...} of the only one.
        dataset: which; the only one if None.
        where: what the sentences are about.

    Raises:
        UserError: there are none, no such dataset, or several to choose from.
    """
    if not statistics:
        raise UserError(
            f"{where} has no action statistics, so what it predicts are no actions: put the dataset_statistics.json "
            "beside its config.json that it was trained with."
        )
    if "action" in statistics and dataset is None:
        return None, statistics["action"]
    names = [name for name, entry in statistics.items() if isinstance(entry, Mapping) and "action" in entry]
    if dataset is None and len(names) == 1:
        return names[0], statistics[names[0]]["action"]
    if dataset not in names:
        has = ", ".join(names) or ("one dataset without a name" if "action" in statistics else "no dataset")
        mend = f" to one of {', '.join(names)}" if names else "='' for the only one" if "action" in statistics else ""
        raise UserError(
            f"{where} has action statistics of {has}; dataset={dataset!r} is not one of them: "
            f"set teacher.dataset{mend}."
        )
    return dataset, statistics[dataset]["action"]


def named_normalization(config: Mapping[str, Any], dataset: str | None) -> NormalizationType | None:
    """Returns how the actions of a data set were normalised as config.json names it; None if it does not.

    Args:
        config: config.json, with the content of finetune_config.json as entry "finetune_config" where there is one.
        dataset: its name, None where it has none.

    Raises:
        UserError: an unknown type, or several and none of them for this data set.
    """
    if FINETUNE_CONFIG not in config and "finetune" in config:
        return NormalizationType.NORMAL  # ours: the only one that finetune_octo.py trains with
    found = list(_named_types(config.get(FINETUNE_CONFIG, config)))
    if not found and FINETUNE_CONFIG in config:
        found = list(_named_types({key: value for key, value in config.items() if key != FINETUNE_CONFIG}))
    own = {kind for name, kind in found if name == dataset and dataset is not None}
    kinds = own or {kind for _, kind in found}
    if len(kinds) > 1:
        raise UserError(
            f"config.json names several normalisations ({', '.join(sorted(kinds))}) and none for dataset={dataset!r}: "
            f'write a finetune_config.json beside it, {{"dataset_kwargs": {{"{_TYPE_KEY}": "normal"}}}} or "bounds".'
        )
    return kinds.pop() if kinds else None


def named_as_unlike(config: Mapping[str, Any]) -> str:
    """Why the actions of a model's demos are not the tasks', as its config.json says; "" if it does not say so."""
    entry = config.get(DEMOS_ACTIONS)
    unlike = entry.get("unlike") if isinstance(entry, Mapping) else None
    return unlike if isinstance(unlike, str) else ""


def named_as_signed(config: Mapping[str, Any]) -> bool:
    """Whether the gripper of a model's demos went from -1 to 1, as its config.json says, or by their control mode."""
    entry = config.get(DEMOS_ACTIONS)
    if not isinstance(entry, Mapping) or FINETUNE_CONFIG in config:
        return False
    return entry.get("gripper") == "signed" or entry.get("control_mode") == CONTROL_MODE


def _named_types(entry: Any) -> Iterator[tuple[str | None, NormalizationType]]:
    """Yields (data set's name, type) of every entry that names a type, outside of the network's own settings."""
    entries = [entry]
    while entries:
        entry = entries.pop()
        if isinstance(entry, Mapping):
            if entry.get(_TYPE_KEY) is not None:
                yield entry.get("name"), _parse_type(entry[_TYPE_KEY])
            entries += [value for key, value in entry.items() if key != "model"]
        elif isinstance(entry, list | tuple):
            entries += entry


def _parse_type(value: Any) -> NormalizationType:
    name = str(value).rsplit(".", 1)[-1].lower()  # "normal", or "NormalizationType.NORMAL"
    known = {"normal": NormalizationType.NORMAL, "bounds": NormalizationType.BOUNDS}
    known["bounds_q99"] = NormalizationType.BOUNDS  # OpenVLA's name for the quantiles
    if name not in known:
        raise UserError(f"config.json has {_TYPE_KEY}={value!r}, which is not implemented: known: {', '.join(known)}.")
    return known[name]


def _numbers(value: Any, name: str, where: str) -> np.ndarray:
    try:
        array = np.asarray(value)
        if array.dtype == bool or array.dtype.kind not in "iuf":
            raise ValueError
    except ValueError:
        raise UserError(f"{where} have a {name!r} that is no list of numbers.") from None
    if array.ndim != 1 or not len(array):
        what = "a single number" if array.ndim == 0 else f"an array of shape {list(array.shape)}"
        raise UserError(f"{where} have {what} as {name!r}; it must be a list with one number per action dimension.")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        i = int(np.flatnonzero(~np.isfinite(array))[0])
        raise UserError(f"{where} have {name}[{i}]={value[i]}, which is no finite number.")
    return array


def _mask(value: Any, length: int, where: str) -> np.ndarray:
    if value is None:
        return np.ones(length, bool)
    try:
        array = np.asarray(value)
        sound = array.ndim == 1 and array.dtype.kind in "biuf" and bool(np.isin(array, (0, 1)).all())
    except ValueError:
        sound = False
    if not sound:
        raise UserError(f"{where} have a 'mask' that is no list of true and false.")
    return array.astype(bool)
