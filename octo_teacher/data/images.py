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


def decode_images(encoded: Sequence[bytes], where: str) -> np.ndarray:
    """Decodes the frames of an episode to uint8 [T, H, W, 3]; raises UserError that starts with `where`."""
    images = []
    for step, frame in enumerate(encoded):
        image = decode_image(frame, where)
        if images and image.shape != images[0].shape:
            sizes = " and ".join(f"{one.shape[1]}x{one.shape[0]}" for one in (images[0], image))
            raise UserError(f"{where} has frames of {sizes} pixels, from step {step} on, in one episode.")
        images.append(image)
    return np.stack(images)
