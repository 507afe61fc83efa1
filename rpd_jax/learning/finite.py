"""Numbers that must be finite in an update, which of them was not, and what helps."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rpd_jax.learning import objective
from rpd_jax.learning.algorithms import find_algorithm
from rpd_jax.learning.rollout import Rollout

INPUT_TERMS = ("actions", "logprobs", "values", "rewards", "final_values", "teacher_actions")
# In the order in which they are looked at.
FINITE_TERMS = (*INPUT_TERMS, *objective.LOSS_TERMS, "grad_norm")


def first_nonfinite_input(rollout: Rollout) -> jax.Array:
    """The code of the first of INPUT_TERMS that is not finite everywhere, see `first_nonfinite`."""
    return first_nonfinite([getattr(rollout, name) for name in INPUT_TERMS], 0)


def first_nonfinite(terms: Sequence[jax.Array | None], offset: int) -> jax.Array:
    """int32: 1 + offset + index of the first term that is not finite everywhere, 0 if all are (None: finite)."""
    code = jnp.zeros((), jnp.int32)
    for index, term in reversed(list(enumerate(terms))):
        if term is not None:
            code = jnp.where(jnp.all(jnp.isfinite(term)), code, offset + index + 1)
    return code


def mend_of(term: str, algorithm: str) -> str:
    """What helps where one of FINITE_TERMS was not finite, the end of a sentence."""
    if term == "rewards":
        return "mend the rewards of the task"
    if term == "teacher_actions":
        return "look at the teacher's checkpoint and its action statistics"
    mend = "lower ppo.learning_rate in a run with another --workdir"
    if term in ("distill_loss", "replay_loss") and find_algorithm(algorithm).reads_spread:
        mend += ", or raise distill.std_floor there, for a teacher whose samples of a frame are the same"
    return mend
