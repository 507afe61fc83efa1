"""Image augmentations of the original fine-tuning recipe, on the device."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

_GREY = jnp.array([0.2989, 0.5870, 0.1140])


def augment(images: jax.Array, key: jax.Array, config: ConfigDict, geometry: bool = True) -> jax.Array:
    """Augments frames; all frames of one window share their draws.

    In this order: random resized crop, random shift, brightness, contrast, saturation, hue.

    Args:
        images: uint8 [B, W, H, W, 3].
        key: JAX random key.
        config: `crop_scale` (least, greatest fraction of the area kept), `crop_ratio` (least, greatest aspect ratio),
            `shift` (greatest shift in pixels, edges repeated), `brightness` (greatest offset in [0, 1] units),
            `contrast` and `saturation` (least, greatest factor), `hue` (greatest offset in turns).
        geometry: whether to crop and shift.

    Returns:
        uint8 [B, W, H, W, 3].
    """
    keys = jax.random.split(key, images.shape[0])
    return jax.vmap(lambda window, k: _augment_window(window, k, config, geometry))(images, keys)


def _augment_window(window: jax.Array, key: jax.Array, config: ConfigDict, geometry: bool) -> jax.Array:
    crop_key, shift_key, color_key = jax.random.split(key, 3)
    x = window.astype(jnp.float32) / 255.0
    if geometry and tuple(config.crop_scale) != (1.0, 1.0):
        x = random_resized_crop(x, crop_key, tuple(config.crop_scale), tuple(config.crop_ratio))
    if geometry and config.shift:
        x = random_shift(x, shift_key, config.shift)
    x = jitter_colors(x, color_key, config.brightness, config.contrast, config.saturation, config.hue)
    return jnp.round(jnp.clip(x, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def random_resized_crop(
    images: jax.Array, key: jax.Array, scale: tuple[float, float], ratio: tuple[float, float]
) -> jax.Array:
    """Cuts out one random box and resizes it (bilinear) to the full frame; images float32 [W, H, W, 3].

    The box keeps a fraction of the area drawn from `scale` and has an aspect ratio drawn log-uniformly from `ratio`.
    """
    scale_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    area = jax.random.uniform(scale_key, minval=scale[0], maxval=scale[1])
    aspect = jnp.exp(jax.random.uniform(ratio_key, minval=jnp.log(ratio[0]), maxval=jnp.log(ratio[1])))
    height = jnp.minimum(jnp.sqrt(area / aspect), 1.0)
    width = jnp.minimum(jnp.sqrt(area * aspect), 1.0)
    top = jax.random.uniform(top_key) * (1.0 - height)
    left = jax.random.uniform(left_key) * (1.0 - width)
    rows = _interpolation(images.shape[-3], top, height)
    columns = _interpolation(images.shape[-2], left, width)
    return jnp.einsum("ih,whvc,jv->wijc", rows, images, columns)


def _interpolation(size: int, start: jax.Array, extent: jax.Array) -> jax.Array:
    """Matrix [size, size] that samples [start, start + extent] of a line of `size` pixels at `size` points."""
    at = (start + (jnp.arange(size) + 0.5) / size * extent) * size - 0.5
    at = jnp.clip(at, 0.0, size - 1.0)
    return jnp.maximum(0.0, 1.0 - jnp.abs(at[:, None] - jnp.arange(size)))


def random_shift(images: jax.Array, key: jax.Array, pixels: int) -> jax.Array:
    """Shifts images [W, H, W, 3] by up to `pixels` whole pixels along both axes, repeating the edge."""
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode="edge")
    top, left = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
    return jax.lax.dynamic_slice(padded, (0, top, left, 0), images.shape)


def jitter_colors(
    images: jax.Array,
    key: jax.Array,
    brightness: float,
    contrast: tuple[float, float],
    saturation: tuple[float, float],
    hue: float,
) -> jax.Array:
    """Changes brightness, contrast, saturation and hue of images float32 [..., 3] in [0, 1], one draw for all of them.

    Contrast scales around each channel's mean over the frame, saturation around the grey value; hue turns the chroma
    plane of YIQ, which is linear and so cheaper than a way through HSV. All together are one affine map of the colours.
    """
    brightness_key, contrast_key, saturation_key, hue_key = jax.random.split(key, 4)
    shift = jax.random.uniform(brightness_key, minval=-brightness, maxval=brightness)
    scale = jax.random.uniform(contrast_key, minval=contrast[0], maxval=contrast[1])
    chroma = jax.random.uniform(saturation_key, minval=saturation[0], maxval=saturation[1])
    turn = 2 * jnp.pi * jax.random.uniform(hue_key, minval=-hue, maxval=hue)
    to_yiq = jnp.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    rotation = jnp.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    desaturation = chroma * jnp.eye(3) + (1.0 - chroma) * _GREY
    matrix = jnp.linalg.inv(to_yiq) @ rotation @ to_yiq @ desaturation
    mean = jnp.mean(images, axis=(-3, -2), keepdims=True)
    x = scale * images + ((1.0 - scale) * mean + shift)
    # Channel by channel: on a CPU a product with so small a matrix takes several times as long.
    return sum(x[..., channel : channel + 1] * matrix[:, channel] for channel in range(3))
