"""Preprocessing against Pillow itself, and against the published image processor."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from openvla_bridge.model.preprocess import STRATEGIES, ImageSettings, Preprocessor, resize_bicubic

DATA = np.load(Path(__file__).parents[1] / "data" / "openvla" / "preproc_io.npz")
MEANS, STDS = ((0.485, 0.456, 0.406), (0.5,) * 3), ((0.229, 0.224, 0.225), (0.5,) * 3)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_is_the_published_one(strategy):
    preprocess = Preprocessor(ImageSettings(56, strategy, MEANS, STDS), torch.device("cpu"))
    for i in range(3):
        found = preprocess(torch.from_numpy(DATA[f"image_{i}"])[None])[0]
        np.testing.assert_array_equal(found.numpy(), DATA[f"{strategy.replace('-', '_')}_{i}"])


def assert_as_pillow(images, height, width):
    found = resize_bicubic(torch.from_numpy(images), height, width).permute(0, 2, 3, 1).numpy()
    for image, result in zip(images, found, strict=True):
        expected = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(result, expected)


sides = st.integers(1, 80)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(sides, sides, sides, sides, st.integers(0, 2**32 - 1), st.booleans())
def test_every_pixel_of_any_resize_is_pillows(height, width, new_height, new_width, seed, hard):
    """Hard images are black and white pixels: they overshoot the range of 8 bits between the passes."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    assert_as_pillow(np.where(images < 128, 0, 255).astype(np.uint8) if hard else images, new_height, new_width)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (128, 128), (480, 640), (100, 224)])
def test_camera_sizes(height, width):
    images = np.random.default_rng(1).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    assert_as_pillow(images, 224, 224)
