"""The value of the last observation of each episode that ended in a rollout."""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rpd_jax.envs.vector_env import Step
from rpd_jax.learning.learner import Learner


class FinalValues(Protocol):
    """Sees a rollout step by step."""

    def see(self, step: Step, ended: jax.Array | np.ndarray) -> None:
        """Takes what a step gave; `ended` bool [N] says in which environments an episode ended with it."""

    def stacked(self) -> jax.Array | np.ndarray:
        """V(last observation) float32 [T, N] where an episode ended, 0 elsewhere."""


def final_values(learner: Learner, params: dict, state: jax.Array | np.ndarray) -> FinalValues:
    """What is to see a rollout of environments whose arrays are of the kind of `state`, NumPy's or JAX's."""
    return _OnHost(learner, params, len(state)) if isinstance(state, np.ndarray) else _OnDevice(learner, params)


class _OnHost:
    """Keeps the last observations of ended episodes alone, and values them together after the rollout.

    As many at a time as there are environments: the program is that of a rollout's last observations then.
    """

    def __init__(self, learner: Learner, params: dict, num_envs: int):
        self._learner, self._params, self._num_envs = learner, params, num_envs
        self._ended: list[np.ndarray] = []
        self._frames: list[np.ndarray] = []
        self._states: list[np.ndarray] = []

    def see(self, step: Step, ended: np.ndarray) -> None:
        self._ended.append(ended)
        if ended.any():
            self._states.extend(step.final_state[ended])
            if step.final_rgb is not None:
                self._frames.extend(step.final_rgb[ended])

    def stacked(self) -> np.ndarray:
        ended = np.stack(self._ended)
        values = np.zeros(ended.shape, np.float32)
        batches = [self._batch(begin) for begin in range(0, len(self._states), self._num_envs)]
        if batches:
            values[ended] = np.concatenate(batches)[: len(self._states)]
        return values

    def _batch(self, begin: int) -> np.ndarray:
        rows = np.minimum(np.arange(begin, begin + self._num_envs), len(self._states) - 1)
        rgb = np.stack([self._frames[row] for row in rows]) if self._frames else None
        return np.asarray(self._learner.value(self._params, rgb, np.stack([self._states[row] for row in rows])))


class _OnDevice:
    """Values the last observations where they lie, at each step in which some episode ended: one call for all rows."""

    def __init__(self, learner: Learner, params: dict):
        self._learner, self._params = learner, params
        self._values: list[jax.Array] = []

    def see(self, step: Step, ended: jax.Array) -> None:
        self._values.append(self._learner.value_where(self._params, ended, step.final_rgb, step.final_state))

    def stacked(self) -> jax.Array:
        return jnp.stack(self._values)
