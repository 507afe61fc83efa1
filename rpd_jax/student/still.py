"""Dimensions of an action that rest: where no label moves, neither noise nor a gradient moves the student.

A teacher that never turns the gripper gives labels of which some dimensions are one number throughout. The draws of a
Gaussian policy turn it all the same, step after step, and a task that wants precision fails by them; imitation cannot
say so, nor PPO learn it from rewards that come rarely.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# log σ of a dimension that rests: less than settings allow elsewhere, and what is drawn is the mean (σ is 6e-6).
RESTS = -12.0
# Labels that differ by less are one: a thousandth of what the controller can do in a step.
ALIKE = 1e-3


def rests(log_std: Float[Array, " A"]) -> Bool[Array, " A"]:
    """Which dimensions a σ leaves at rest."""
    return log_std <= RESTS


def held(mean: Float[Array, "B A"], log_std: Float[Array, " A"]) -> tuple[Float[Array, "B A"], Float[Array, " A"]]:
    """μ and log σ as they are, without a way for gradients through the dimensions that rest."""
    at_rest = rests(log_std)
    return tuple(jnp.where(at_rest, jax.lax.stop_gradient(array), array) for array in (mean, log_std))


def resting(variables: dict) -> list[int]:
    """The dimensions at rest in a student's variables, counted from 1."""
    return [int(index) + 1 for index in jnp.flatnonzero(rests(variables["params"]["log_std"]))]


def with_rests(variables: dict, labels: Float[Array, "K A"]) -> dict:
    """A student's variables with all dimensions at rest in which labels [K, A] are alike, at the middle of them.

    There the actor's output no longer depends on what it sees. Labels that are alike in all dimensions, or none, change
    nothing: no policy could be improved then.
    """
    return _with_rests(variables, labels) if len(labels) else variables


@jax.jit
def _with_rests(variables: dict, labels: Float[Array, "K A"]) -> dict:
    low, high = jnp.min(labels, axis=0), jnp.max(labels, axis=0)
    alike = high - low < ALIKE
    alike &= ~jnp.all(alike)
    params = variables["params"]
    output = params["actor"]["output"]
    output = {
        "kernel": jnp.where(alike, 0.0, output["kernel"]),
        "bias": jnp.where(alike, 0.5 * (low + high), output["bias"]),
    }
    params = params | {
        "actor": params["actor"] | {"output": output},
        "log_std": jnp.where(alike, RESTS, params["log_std"]),
    }
    return {**variables, "params": params}
