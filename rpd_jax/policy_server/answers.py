"""What is checked and made of the chunks of actions that a policy server answers, whatever its protocol."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rpd_jax.action_convention import gripper_to_environment
from rpd_jax.errors import UserError


def labels(actions: np.ndarray, steps: int | None, gripper: str) -> jax.Array:
    """A teacher's labels in the environment's convention, float32 [S, B, 7] in [-1, 1], or [S, B, steps, 7].

    Args:
        actions: the servers', float32 [S, B, steps or 1, 7].
        steps: None: without an axis for the actions of a chunk.
        gripper: what its number means, see `action_convention.gripper_to_environment`.
    """
    found = jnp.asarray(actions if steps else actions[:, :, 0])
    return jnp.clip(gripper_to_environment(found, gripper), -1.0, 1.0)


def first_actions(chunks: np.ndarray, steps: int, address: str) -> np.ndarray:
    """Returns the first `steps` actions of each chunk, float32 [N, steps, 7].

    Args:
        chunks: numbers [N, horizon, 7].
        steps: how many are wanted.
        address: that they came from, for the sentence.

    Raises:
        UserError: chunks are shorter, or one of those actions is not finite.
    """
    if chunks.shape[1] < steps:
        raise UserError(
            f"{address} answers {chunks.shape[1]} action{'s' * (chunks.shape[1] > 1)} at a time, and {steps} are "
            "wanted: lower teacher.chunk, or --execute."
        )
    first = chunks[:, :steps]
    if not np.isfinite(first).all():
        odd = first[~np.isfinite(first).all(axis=-1)][0]
        numbers = ", ".join(f"{number:g}" for number in odd)
        raise UserError(f"{address} answers actions that are not finite ({numbers}): see that policy.")
    return first.astype(np.float32)


def no_such_key(key: str, answer: Any, address: str) -> UserError:
    """The sentence for an answer without actions of that name."""
    there = ", ".join(map(str, answer)) if isinstance(answer, dict) else type(answer).__name__
    return UserError(f"An answer of {address} holds no {key!r} (it holds: {there[:200]}): set teacher.action_key.")
