"""Image preprocessing on the device, batched, equal to Pillow's bicubic resize in every pixel.

Pillow resizes 8-bit images in two passes, one along each axis; each is a sum of pixels times weights in 22-bit fixed
point, rounded and clipped to 8 bits (Pillow, src/libImaging/Resample.c). The same integers are used here.
"""

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
import torch

from openvla_bridge.checkpoint_files import read_json
from openvla_bridge.errors import BridgeError

_PRECISION_BITS = 32 - 8 - 2
STRATEGIES = ("resize-naive", "resize-crop", "letterbox")


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """What preprocessor_config.json says: side length in pixels, strategy, mean and std [2][3] of the two backbones."""

    size: int
    strategy: str
    means: tuple[tuple[float, ...], ...]
    stds: tuple[tuple[float, ...], ...]


def read_image_settings(folder: Path) -> ImageSettings:
    """Reads preprocessor_config.json; raises BridgeError if it is missing or asks for something unknown."""
    config = read_json(folder / "preprocessor_config.json")
    try:
        sizes = {side for _, *sides in config["input_sizes"] for side in sides}
        settings = ImageSettings(
            size=int(min(sizes)),
            strategy=config["image_resize_strategy"],
            means=tuple(tuple(map(float, mean)) for mean in config["means"]),
            stds=tuple(tuple(map(float, std)) for std in config["stds"]),
        )
        sound = len(sizes) == 1 and set(config["interpolations"]) == {"bicubic"} and settings.strategy in STRATEGIES
        sound = sound and [len(row) for row in settings.means + settings.stds] == [3] * 4
        sound = sound and all(math.isfinite(x) for row in settings.means for x in row)
        sound = sound and all(0 < x < math.inf for row in settings.stds for x in row)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BridgeError(f"preprocessor_config.json is not OpenVLA's ({error!r} is missing or wrong).") from None
    if not sound:
        raise BridgeError(
            "preprocessor_config.json asks for something else than square bicubic images for two backbones, "
            f"resized by one of {', '.join(STRATEGIES)}."
        )
    return settings


class Preprocessor:
    """Turns camera frames into the pixels that the vision backbones take.

    Args:
        settings: of the checkpoint.
        device: where the work is done.
    """

    def __init__(self, settings: ImageSettings, device: torch.device):
        self.settings = settings
        self.device = device
        self._mean = torch.tensor(settings.means, device=device).view(2, 3, 1, 1)
        self._std = torch.tensor(settings.stds, device=device).view(2, 3, 1, 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Returns float32 [B, 6, size, size] for uint8 [B, H, W, 3] of any size, on any device."""
        settings = self.settings
        pixels = torch.empty(len(images), 2, 3, settings.size, settings.size, device=self.device)
        # On a CPU an image stays in the cache through all passes if it goes through them alone.
        group = 1 if self.device.type == "cpu" else max(1, len(images))
        for start in range(0, len(images), group):
            resized = self.resize(images[start : start + group].to(self.device)).float().div_(255.0)
            out = pixels[start : start + group]
            torch.sub(resized[:, None], self._mean, out=out)
            out.div_(self._std)
        return pixels.flatten(1, 2)

    def resize(self, images: torch.Tensor) -> torch.Tensor:
        """Returns int32 [B, 3, size, size], values 0 to 255, for uint8 [B, H, W, 3]."""
        size, strategy = self.settings.size, self.settings.strategy
        if strategy == "resize-naive":
            return resize_bicubic(images, size, size)
        if strategy == "letterbox":
            # The published code fills with the last backbone's mean, for both copies.
            images = _pad_to_square(images, [int(255 * mean) for mean in self.settings.means[-1]])
        height, width = images.shape[1:3]
        short = min(height, width)
        resized = resize_bicubic(images, int(size * height / short), int(size * width / short))
        top, left = (round((side - size) / 2.0) for side in resized.shape[2:])
        return resized[:, :, top : top + size, left : left + size]


def resize_bicubic(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resizes as `PIL.Image.resize((width, height), BICUBIC)` of Pillow 13 does, to the last bit.

    Args:
        images: uint8 [B, H, W, C].
        height, width: of the result.

    Returns:
        int32 [B, C, height, width], values 0 to 255.
    """
    batch, old_height, old_width, channels = images.shape
    # Pillow 13 goes through the rows first where that leaves much less to do; older ones never do.
    if old_height > height and old_height - height > 2 * (old_width - width):
        rows = _resample(images.to(torch.int32).reshape(batch, old_height, -1), height)
        columns = rows.view(batch, height, old_width, channels).permute(0, 2, 3, 1)
        columns = _resample(columns.reshape(batch, old_width, -1), width)
        return columns.view(batch, width, channels, height).permute(0, 2, 3, 1)
    columns = images.transpose(1, 2).to(torch.int32).reshape(batch, old_width, -1)
    columns = _resample(columns, width).view(batch, width, old_height, channels)
    rows = _resample(columns.permute(0, 2, 3, 1).reshape(batch, old_height, -1), height)
    return rows.view(batch, height, channels, width).transpose(1, 2)


def _resample(x: torch.Tensor, size: int) -> torch.Tensor:
    """One of Pillow's passes: int32 [B, old, K] to [B, size, K]."""
    if x.shape[1] == size:
        return x
    indices, weights = _device_taps(x.shape[1], size, x.device)
    total = x.new_full((len(x), size, x.shape[2]), 1 << (_PRECISION_BITS - 1))
    for index, weight in zip(indices, weights, strict=True):
        total.addcmul_(x.index_select(1, index), weight)
    return total.bitwise_right_shift_(_PRECISION_BITS).clamp_(0, 255)


@functools.lru_cache(maxsize=32)
def _device_taps(old: int, new: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    indices, weights = resampling_taps(old, new)
    return torch.from_numpy(indices).to(device), torch.from_numpy(weights).to(device)[..., None]


def resampling_taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Pillow's fixed-point weights for one axis (precompute_coeffs and normalize_coeffs_8bpc).

    Returns:
        Indices int64 [K, new] into the old axis, and weights int32 [K, new]; unused taps have weight 0.
    """
    scale = old / new
    widening = max(scale, 1.0)
    support = 2.0 * widening
    centers = (np.arange(new) + 0.5) * scale
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centers + support + 0.5).astype(np.int64), old)
    taps = first + np.arange(math.ceil(support) * 2 + 1)[:, None]
    values = np.where(taps < last, _bicubic((taps - centers + 0.5) * (1.0 / widening)), 0.0)
    # Added one after the other, as Pillow does: the order decides the last bit.
    values = values / functools.reduce(np.add, values)
    scaled = values * (1 << _PRECISION_BITS)
    return np.minimum(taps, old - 1), np.trunc(scaled + np.where(values < 0, -0.5, 0.5)).astype(np.int32)


def _bicubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _pad_to_square(images: torch.Tensor, fill: list[int]) -> torch.Tensor:
    batch, height, width, channels = images.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = images.new_empty(batch, height + 2 * top, width + 2 * left, channels)
    square[:] = torch.tensor(fill, dtype=torch.uint8, device=images.device)
    square[:, top : top + height, left : left + width] = images
    return square
