"""Episodes as something to look at: a video of several side by side, or a strip of frames."""

import os
import warnings
from pathlib import Path

import imageio.v2 as imageio
import numpy as np

from rpd_jax.run.whole_file import replacing, write_whole


def write_video(path: Path, videos: list[np.ndarray], columns: int = 4, fps: int = 20) -> None:
    """Writes videos uint8 [T_i, H, W, 3] side by side as one mp4; a video that ends early stands still."""
    length = max(len(video) for video in videos)
    still = [np.concatenate([video, np.repeat(video[-1:], length - len(video), axis=0)]) for video in videos]
    columns = min(columns, len(still))
    still += [np.zeros_like(still[0])] * (-len(still) % columns)
    rows = [np.concatenate(still[i : i + columns], axis=2) for i in range(0, len(still), columns)]
    frames = np.concatenate(rows, axis=1)
    write_whole(path, _encoded(frames, fps))


def _encoded(frames: np.ndarray, fps: int) -> bytes:
    """An mp4 of frames uint8 [T, H, W, 3], made in memory: on a full disk ffmpeg leaves half a video and succeeds."""
    with open(os.memfd_create("video"), "rb") as memory, warnings.catch_warnings():
        # JAX warns of every fork; this one only starts ffmpeg.
        warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
        imageio.mimwrite(
            f"/proc/{os.getpid()}/fd/{memory.fileno()}",
            list(frames),
            format=".mp4",
            fps=fps,
            macro_block_size=1,
            quality=7,
            output_params=["-f", "mp4"],
        )
        return memory.read()


def write_filmstrip(path: Path, video: np.ndarray, frames: int = 6) -> None:
    """Writes evenly spaced frames of a video uint8 [T, H, W, 3], first and last included, side by side as a PNG."""
    moments = np.linspace(0, len(video) - 1, frames).round().astype(int)
    with replacing(path) as scratch:
        imageio.imwrite(scratch, np.concatenate(video[moments], axis=1))
