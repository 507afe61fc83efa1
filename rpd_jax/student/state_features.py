"""What the student's networks see of the simulator's state: running normalisation, and the same at several scales."""

import jax
import jax.numpy as jnp
from flax import linen as nn

KINDS = ("raw", "scaled")
# Beside the normalised state: where a robot grasps, a millimetre counts; it is little beside a deviation of decimetres.
SCALES = (1.0, 4.0)
# Of a deviation: states that hardly move in the frames seen so far must not become huge where they do.
LEAST_DEVIATION = 1e-2
RANGE = 10.0
# Frames that mean and deviation are taken from; they rest afterwards, so that the policy is not moved by them.
STATISTICS_FRAMES = 100_000


class StateFeatures(nn.Module):
    """float32 [B, D] -> [B, D·(1 + number of scales)]: the normalised state z, and tanh(k s/σ) for each scale k.

    Mean and deviation are variables of the collection "statistics": no gradient reaches them, `with_statistics` moves
    them. Before the first states they are 0 and 1.
    """

    @nn.compact
    def __call__(self, state: jax.Array) -> jax.Array:
        dim = state.shape[-1]
        mean = self.variable("statistics", "mean", jnp.zeros, (dim,), jnp.float32).value
        variance = self.variable("statistics", "variance", jnp.ones, (dim,), jnp.float32).value
        self.variable("statistics", "count", jnp.zeros, (), jnp.float32)
        mean = jax.lax.stop_gradient(mean)
        spread = deviation(jax.lax.stop_gradient(variance))
        normalized = jnp.clip((state - mean) / spread, -RANGE, RANGE)
        return jnp.concatenate([normalized, *(jnp.tanh(scale * state / spread) for scale in SCALES)], axis=-1)


def deviation(variance: jax.Array) -> jax.Array:
    """The standard deviation σ [D] that states are divided by."""
    return jnp.maximum(jnp.sqrt(variance), LEAST_DEVIATION)


def with_statistics(variables: dict, states: jax.Array, valid: jax.Array | None = None) -> dict:
    """The student's variables with states [B, D] counted into mean and variance, by Chan et al. (1979).

    Args:
        variables: of an ActorCritic; returned as they are where it does not normalise a state.
        states: that it saw. Once STATISTICS_FRAMES were counted, further ones change nothing.
        valid: bool [B], False leaves a state out. None: all count.
    """
    if "statistics" not in variables:
        return variables
    old = variables["statistics"]["state_features"]
    valid = jnp.ones(states.shape[0], bool) if valid is None else valid.astype(bool)
    size = jnp.sum(valid, dtype=jnp.float32)
    total = old["count"] + size
    delta = jnp.mean(states, axis=0, where=valid[:, None]) - old["mean"]
    variance = old["count"] * old["variance"] + size * jnp.var(states, axis=0, where=valid[:, None])
    new = {
        "mean": old["mean"] + delta * size / total,
        "variance": (variance + delta**2 * old["count"] * size / total) / total,
        "count": total,
    }
    rests = (old["count"] >= STATISTICS_FRAMES) | (size == 0)
    new = jax.tree.map(lambda kept, moved: jnp.where(rests, kept, moved), dict(old), new)
    return {**variables, "statistics": {"state_features": new}}
