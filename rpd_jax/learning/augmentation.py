"""Random shifts of frames."""

from functools import partial

import jax
import jax.numpy as jnp


def random_shift(key: jax.Array, frames: jax.Array, max_shift: int) -> jax.Array:
    """Shifts each frame by its own whole number of pixels in both directions; edge pixels fill the gap.

    Source: DrQ (Kostrikov et al. 2021), without interpolation.

    Args:
        key: JAX random key.
        frames: [B, H, W, C] of any dtype.
        max_shift: shifts are uniform in −max_shift ... max_shift pixels; 0 leaves the frames as they are.

    Returns:
        the shifted frames, shape and dtype of `frames`.
    """
    if max_shift == 0:
        return frames
    batch, height, width, channels = frames.shape
    padding = ((0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0))
    padded = jnp.pad(frames, padding, mode="edge")
    corners = jax.random.randint(key, (batch, 2), 0, 2 * max_shift + 1)

    def crop(of_one):
        frame, corner = of_one
        return jax.lax.dynamic_slice(frame, (corner[0], corner[1], 0), (height, width, channels))

    # All at once XLA writes into one loop with whatever reads the frames, and on a CPU looks each pixel up for itself.
    one_by_one = partial(jax.lax.map, crop)
    return jax.lax.platform_dependent((padded, corners), cpu=one_by_one, default=jax.vmap(crop))
