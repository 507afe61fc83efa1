"""Groups of tokens, their order in the sequence, and who attends to whom."""

import dataclasses
from collections.abc import Sequence
from fnmatch import fnmatch

import flax
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class TokenGroup:
    """Tokens [..., n, d] and which of them are visible, bool [..., n]."""

    tokens: jax.Array
    mask: jax.Array

    @classmethod
    def concatenate(cls, groups: "Sequence[TokenGroup]") -> "TokenGroup":
        """Joins groups along the token axis."""
        return cls(
            jnp.concatenate([group.tokens for group in groups], axis=-2),
            jnp.concatenate([group.mask for group in groups], axis=-1),
        )


@dataclasses.dataclass(frozen=True)
class Layout:
    """The order of tokens: prefix groups, then all timestep groups once per timestep.

    Attributes:
        prefix: (name, number of tokens) of each prefix group.
        timestep: the same of each group that is repeated at every timestep.
        horizon: number of timesteps.
        correct_attention: with False, the first token of every group but the first (inside the prefix, and inside a
            timestep) takes the attention rules of the group before it, as models were trained before that was mended.
    """

    prefix: tuple[tuple[str, int], ...]
    timestep: tuple[tuple[str, int], ...]
    horizon: int
    correct_attention: bool

    @property
    def prefix_length(self) -> int:
        return sum(size for _, size in self.prefix)

    @property
    def timestep_length(self) -> int:
        return sum(size for _, size in self.timestep)

    def rules(self) -> np.ndarray:
        """Who may attend to whom, padding apart: bool [query, key].

        Task tokens attend to task tokens; observation tokens to task tokens and to observation tokens of the same or
        earlier timesteps; a readout to both and to its own group; nobody else attends to a readout.
        """
        names, times = self._owners(self.prefix), [-1] * self.prefix_length
        for time in range(self.horizon):
            names += self._owners(self.timestep)
            times += [time] * self.timestep_length
        times = np.array(times)
        kinds, index = np.unique(names, return_inverse=True)
        allowed = np.array([[_may_attend(query, key) for key in kinds] for query in kinds])
        return allowed[index[:, None], index[None, :]] & (times[None, :] <= times[:, None])

    def _owners(self, groups: tuple[tuple[str, int], ...]) -> list[str]:
        ends = np.cumsum([size for _, size in groups])
        positions = np.arange(ends[-1] if len(groups) else 0)
        owners = np.searchsorted(ends, positions, side="right" if self.correct_attention else "left")
        return [groups[owner][0] for owner in owners]


def _may_attend(query: str, key: str) -> bool:
    if query.startswith("task_"):
        patterns = ("task_*",)
    elif query.startswith("obs_"):
        patterns = ("task_*", "obs_*")
    else:
        patterns = ("task_*", "obs_*", query)
    return any(fnmatch(key, pattern) for pattern in patterns)
