"""Action chunks: how a teacher that predicts several actions at a time is run, and how its labels are averaged."""

import jax
import jax.numpy as jnp
import numpy as np

from rpd_jax.teachers import Teacher, look


class ExecutedChunks:
    """A teacher's own actions, sampled: several of each chunk, before it is asked again.

    To be called once for each step of N environments, with their frames, states and a key; returns actions float32
    [N, 7]. Each environment has a chunk of its own, which ends with its episode.

    Args:
        teacher: whose actions these are.
        instruction: the sentence that it is given.
        execute: actions of a chunk that are run.
    """

    def __init__(self, teacher: Teacher, instruction: str, execute: int):
        self._teacher, self._instruction, self._execute = teacher, instruction, execute
        self._left: np.ndarray | None = None  # int [N], actions of each chunk that are still to be run
        self._chunks: np.ndarray | None = None  # float32 [N, execute, 7]

    def __call__(self, rgb: jax.Array, state: jax.Array, key: jax.Array) -> np.ndarray:
        count = len(state)
        if self._left is None:
            self._left = np.zeros(count, int)
            self._chunks = np.zeros((count, self._execute, 7), np.float32)
        empty = self._left == 0
        if empty.any():
            seen = look(self._teacher, state)
            chunks = self._teacher.act(rgb, self._instruction, key, steps=self._execute, **seen)[0]
            self._chunks = np.where(empty[:, None, None], np.asarray(chunks), self._chunks)
            self._left[empty] = self._execute
        actions = self._chunks[np.arange(count), self._execute - self._left]
        self._left -= 1
        return actions

    def forget(self, ended: np.ndarray) -> None:
        """The rest of a chunk is not run where an episode has ended; bool [N]."""
        self._left[ended] = 0


@jax.jit
def ensembled(chunks: jax.Array, dones: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """The mean of what the last K chunks say of each moment: temporal ensembling (Zhao et al. 2023, arXiv 2304.13705).

    There, weights fall with a chunk's age; here all count the same. A chunk counts within its own episode only, and
    at the first steps of an episode, or of the rollout, there are fewer than K.

    Args:
        chunks: float32 [..., T, N, K, A]: at step t the actions for the steps t, t + 1, ...
        dones: [T, N]; dones[t] says that an episode ended before step t.
        valid: bool [T, N]; chunks of steps that were lost do not count for others. None: none was lost.

    Returns:
        float32 [..., T, N, A].
    """
    total, count = chunks[..., 0, :], jnp.ones(dones.shape, chunks.dtype)
    same, current = jnp.ones(dones.shape, bool), dones.astype(bool)
    usable = jnp.ones(dones.shape, bool) if valid is None else valid
    for age in range(1, min(chunks.shape[-2], len(dones))):
        # Still in the episode of `age` steps before: none ended before any of the steps in between.
        same = same.at[age:].set(same[age:] & ~current[1 : len(dones) - age + 1]).at[:age].set(False)
        counts = same & jnp.roll(usable, age, axis=0)
        said = jnp.roll(chunks[..., age, :], age, axis=-3)
        total = total + jnp.where(counts[..., None], said, 0.0)
        count = count + counts
    return total / count[..., None]
