"""Image augmentation: what each part leaves alone, its bounds, and one draw per window."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from octo_teacher.finetuning.augmentation import augment, jitter_colors, random_resized_crop, random_shift

OFF = {
    "crop_scale": (1.0, 1.0),
    "crop_ratio": (1.0, 1.0),
    "shift": 0,
    "brightness": 0.0,
    "contrast": (1.0, 1.0),
    "saturation": (1.0, 1.0),
    "hue": 0.0,
}
RECIPE = {
    "crop_scale": (0.8, 1.0),
    "crop_ratio": (0.9, 1.1),
    "shift": 4,
    "brightness": 0.1,
    "contrast": (0.9, 1.1),
    "saturation": (0.9, 1.1),
    "hue": 0.05,
}
NO_JITTER = {"brightness": 0.0, "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": 0.0}


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_everything_off_changes_nothing():
    images = random_images(3, 2, 16, 16, 3)
    np.testing.assert_array_equal(augment(images, jax.random.key(0), ConfigDict(OFF)), images)


def test_examples_differ_and_frames_of_a_window_share_their_draw():
    frame = random_images(16, 16, 3)
    images = np.broadcast_to(frame, (4, 2, 16, 16, 3))
    out = np.asarray(augment(images, jax.random.key(1), ConfigDict(RECIPE)))
    assert out.dtype == np.uint8 and out.shape == images.shape
    np.testing.assert_array_equal(out[:, 0], out[:, 1])
    assert all((out[i, 0] != out[j, 0]).any() for i in range(4) for j in range(i))


def test_a_crop_keeps_the_area_it_is_told_to():
    """A crop maps the frame's coordinates linearly: their slopes are the box's sides."""
    size = 64
    at = (jnp.arange(size) + 0.5) / size
    coordinates = jnp.stack([*jnp.meshgrid(at, at, indexing="ij"), jnp.zeros((size, size))], axis=-1)[None]
    for seed in range(20):
        out = np.asarray(random_resized_crop(coordinates, jax.random.key(seed), (0.8, 0.9), (0.9, 1.1)))[0]
        height = (out[50, 32, 0] - out[10, 32, 0]) / 40 * size
        width = (out[32, 50, 1] - out[32, 10, 1]) / 40 * size
        assert 0.79 < height * width < 0.91
        assert out[..., :2].min() >= 0.0 and out[..., :2].max() <= 1.0


def test_a_shift_moves_whole_pixels_within_its_bound():
    image = jnp.zeros((1, 16, 16, 3)).at[0, 8, 8].set(1.0)
    places = set()
    for seed in range(60):
        out = np.asarray(random_shift(image, jax.random.key(seed), 2))[0, ..., 0]
        assert out.sum() == 1.0
        places.add(tuple(int(i) for i in np.argwhere(out)[0]))
    rows, columns = zip(*places, strict=True)
    assert set(rows) == set(columns) == {6, 7, 8, 9, 10}


def test_brightness_is_one_offset_within_its_bound():
    images = jnp.asarray(random_images(1, 8, 8, 3)) / 255.0
    out = jitter_colors(images, jax.random.key(2), **{**NO_JITTER, "brightness": 0.1})
    offset = np.asarray(out - images)
    assert 0.0 < abs(offset).max() <= 0.1 + 1e-5
    np.testing.assert_allclose(offset, offset.flat[0], atol=1e-5)


def test_contrast_keeps_the_mean_and_saturation_and_hue_keep_grey():
    images = jnp.asarray(random_images(1, 8, 8, 3)) / 255.0
    out = jitter_colors(images, jax.random.key(3), **{**NO_JITTER, "contrast": (0.5, 0.6)})
    np.testing.assert_allclose(out.mean((1, 2)), images.mean((1, 2)), atol=1e-5)
    assert 0.5 <= float(out.std() / images.std()) <= 0.65
    grey = jnp.broadcast_to(images[..., :1], images.shape)
    out = jitter_colors(grey, jax.random.key(3), **{**NO_JITTER, "saturation": (0.1, 2.0), "hue": 0.5})
    np.testing.assert_allclose(out, grey, atol=2e-3)
