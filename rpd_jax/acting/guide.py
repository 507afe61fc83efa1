"""The teacher acts in a share of the episodes, and the student learns there: DAgger's mixture (Ross et al. 2011)."""

import jax
import jax.numpy as jnp
import numpy as np

from rpd_jax.acting.labelling import Labeller

# Who acts in an episode, as a prefix of what is measured of it: the student, the teacher by a single sample at each
# step, or the teacher by its labels (the mean of several samples; what the student is to learn).
ACTORS = ("", "sample_", "label_")


class Guide:
    """Draws who acts in each episode of a rollout, and lets the teacher act.

    Args:
        labeller: the teacher, asked at each step; it has begun this rollout.
        share: of the episodes that the teacher acts in, half of them by single samples, half by its labels.
        key: of the draws.
    """

    def __init__(self, labeller: Labeller, share: float, key: jax.Array):
        self._labeller, self._share, self._key = labeller, share, key

    def actors(self, t: int, before: np.ndarray | None, begun: np.ndarray) -> np.ndarray:
        """Who acts at step `t`, index into ACTORS, int [N].

        Args:
            t: of the rollout.
            before: the same of the step before; None: all are to be drawn.
            begun: bool [N], an episode ended before this step, so that who acts in the new one is to be drawn.
        """
        draw = np.asarray(jax.random.uniform(jax.random.fold_in(self._key, t), begun.shape))
        drawn = np.where(draw >= self._share, 0, np.where(draw < self._share / 2, 1, 2))
        return drawn if before is None else np.where(begun, drawn, before)

    def actions(self, student: jax.Array, actors: np.ndarray, rgb: jax.Array | None, state: jax.Array) -> jax.Array:
        """The actions [N, A] of those who act; `student` has the student's."""
        sample, label = self._labeller.act(rgb, state)
        who = actors[:, None]
        return jnp.where(who == 0, student, jnp.where(who == 1, sample, label))
