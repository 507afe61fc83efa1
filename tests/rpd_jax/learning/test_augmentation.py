"""Random shifts move whole frames and repeat their edges."""

import jax
import jax.numpy as jnp
import numpy as np

from rpd_jax.learning.augmentation import random_shift


def test_shifted_frame_is_a_crop_of_the_edge_padded_frame():
    frames = np.random.default_rng(0).integers(0, 256, (40, 9, 9, 3), dtype=np.uint8)
    shifted = np.asarray(random_shift(jax.random.key(0), jnp.asarray(frames), 2))
    assert shifted.dtype == np.uint8
    seen = set()
    for frame, result in zip(frames, shifted, strict=True):
        padded = np.pad(frame, ((2, 2), (2, 2), (0, 0)), mode="edge")
        crops = {(y, x): padded[y : y + 9, x : x + 9] for y in range(5) for x in range(5)}
        matches = [place for place, crop in crops.items() if np.array_equal(crop, result)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 12 and {y for y, _ in seen} == {x for _, x in seen} == set(range(5))


def test_no_shift_changes_nothing():
    frames = jnp.arange(48, dtype=jnp.uint8).reshape(1, 4, 4, 3)
    assert random_shift(jax.random.key(0), frames, 0) is frames
