"""Decodes the encoded frames of a demo."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from rpd_jax.errors import UserError

# No camera of a robot has more; a damaged header may claim any number, and memory for it.
MOST_PIXELS = 2**24
# What Pillow raises for broken files.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    OverflowError,
    KeyError,
    IndexError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def decode_image(encoded: bytes, where: str) -> np.ndarray:
    """Decodes a PNG or JPEG to uint8 [H, W, 3]; raises UserError that starts with `where`."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG"))
        if image.width * image.height > MOST_PIXELS:
            raise ValueError
        if image.mode.startswith(("I", "F")):
            raise UserError(f"{where} holds {image.mode} numbers, as depth images do, not 8 bits per colour.")
        return np.asarray(image.convert("RGB"))
    except _BROKEN:
        raise UserError(f"{where} holds something else than a PNG or JPEG image: the file is damaged.") from None


def decode_images(encoded: Sequence[bytes], where: str, size: int | None = None) -> np.ndarray:
    """Decodes the frames of an episode to uint8 [T, H, W, 3]; raises UserError that starts with `where`.

    Args:
        encoded: a PNG or JPEG of each.
        where: the file and the episode.
        size: height and width to which each is resized before the next one is decoded; None leaves them as they are.
    """
    frames, shape = None, None
    for step, frame in enumerate(encoded):
        image = decode_image(frame, where)
        if shape not in (None, image.shape):
            sizes = " and ".join(f"{one[1]}x{one[0]}" for one in (shape, image.shape))
            raise UserError(f"{where} has frames of {sizes} pixels, from step {step} on, in one episode.")
        shape, image = image.shape, resize_frame(image, size)
        frames = np.empty((len(encoded), *image.shape), np.uint8) if frames is None else frames
        frames[step] = image
    return frames


def resize_frame(image: np.ndarray, size: int | None) -> np.ndarray:
    """Resizes a frame uint8 [H, W, 3] to [size, size, 3] (Lanczos); None, or its own size, leaves it as it is."""
    if size is None or image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes frames uint8 [T, H, W, 3] to [T, size, size, 3]; see `resize_frame`."""
    if images.shape[1:3] == (size, size):
        return images
    return np.stack([resize_frame(image, size) for image in images])
