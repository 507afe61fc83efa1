"""The teacher acts in a share of the episodes, and the student learns there: DAgger's mixture (Ross et al. 2011)."""

from functools import partial

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
        num_steps: of the rollout.
    """

    def __init__(self, labeller: Labeller, share: float, key: jax.Array, num_steps: int):
        self._labeller = labeller
        keys, self._share = _step_keys(key, num_steps, share)
        self._keys = list(keys)

    def actors(self, t: int, before: jax.Array | np.ndarray | None, begun: jax.Array | np.ndarray) -> jax.Array:
        """Who acts at step `t`, index into ACTORS, int32 [N].

        Args:
            t: of the rollout.
            before: the same of the step before; None: all are to be drawn.
            begun: bool [N], an episode ended before this step, so that who acts in the new one is to be drawn.
        """
        return _draw(self._keys[t], self._share, before, begun)

    def actions(self, student: jax.Array, actors: jax.Array, rgb: jax.Array | None, state: jax.Array) -> jax.Array:
        """The actions [N, A] of those who act; `student` has the student's."""
        return _chosen(actors, student, *self._labeller.act(rgb, state))


# Compiled, so that no constant of theirs goes to a device at each step.


@partial(jax.jit, static_argnums=1)
def _step_keys(key, num_steps, share):
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(num_steps)), jnp.asarray(share, jnp.float32)


@jax.jit
def _draw(key, share, before, begun):
    draw = jax.random.uniform(key, begun.shape)
    drawn = jnp.where(draw >= share, 0, jnp.where(draw < share / 2, 1, 2))
    return drawn if before is None else jnp.where(begun, drawn, before)


@jax.jit
def _chosen(actors, student, sample, label):
    who = actors[:, None]
    return jnp.where(who == 0, student, jnp.where(who == 1, sample, label))
