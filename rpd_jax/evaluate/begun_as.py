"""A student that begins as another run's: what acts is taken from there, and the critic begins anew."""

import jax
import jax.numpy as jnp

from rpd_jax.errors import UserError
from rpd_jax.evaluate.trained_student import TrainedStudent
from rpd_jax.student.networks import CRITIC_MODULES, ActorCritic
from rpd_jax.student.still import rests

# What a critic is made of, and the σ that training begins with.
_OWN = (*CRITIC_MODULES, "log_std")


def begun_as(network: ActorCritic, params: dict, student: TrainedStudent) -> dict:
    """Fresh parameters of `network` with those of another run's actor.

    Args:
        network: the student that is to be trained.
        params: its fresh parameters.
        student: the other one; what it guessed of the state, its statistics of states, and where it rests come along.

    Raises:
        UserError: its actor is built differently.
    """
    of_frames = ("encoder", "image_size") if network.sees_frames else ()
    of_state = ("state",) if network.sees_state else ()
    for field in ("action_dim", "observation", *of_frames, *of_state):
        there, here = getattr(student.network, field), getattr(network, field)
        if there != here:
            raise UserError(
                f"student.start is a student with {field}={there!r}, and this one has {here!r}: set it alike."
            )
    own = params["params"]
    taken = {name: part for name, part in student.params["params"].items() if name in own and name not in _OWN}
    log_std = student.params["params"]["log_std"]
    taken["log_std"] = jnp.where(rests(log_std), log_std, own["log_std"])
    begun = {**params, "params": own | taken}
    if "statistics" in params and "statistics" in student.params:
        begun["statistics"] = student.params["statistics"]
    if jax.tree.map(jnp.shape, begun) != jax.tree.map(jnp.shape, params):
        raise UserError("student.start is a student of a task with another state: give one of this task.")
    return begun
