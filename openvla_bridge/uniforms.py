"""Random numbers for workers, which have no JAX: those of a frame follow from a key and the frame's number."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def frame_uniforms(key: jax.Array, first: int, frames: int, samples: int, action_dim: int) -> jax.Array:
    """float32 [S, B, A] in [0, 1): frame i's numbers depend on `key` and `first` + i only."""

    def draw(frame: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, frame), (samples, action_dim))

    return jax.vmap(draw, out_axes=1)(first + jnp.arange(frames))
