"""Frames of video files, read front to back by the ffmpeg that imageio brings."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from octo_teacher.data.images import MOST_PIXELS, resize_frame
from rpd_jax.errors import UserError


class FrameReader:
    """Reads runs of frames of constant rate; consecutive runs of one file cost one pass over it.

    Args:
        fps: frames per second, which turns seconds into frame numbers.
    """

    def __init__(self, fps: float):
        self._fps = fps
        self._path: Path | None = None
        self._frames: Iterator = iter(())
        self._next = 0
        self._size = (0, 0)

    def read(self, path: Path, start: float, count: int, size: int | None = None) -> np.ndarray:
        """Returns the `count` frames from second `start` on, uint8 [count, H, W, 3].

        Args:
            path: the file.
            start: seconds.
            count: of frames.
            size: height and width to which each is resized before the next one is decoded; None leaves them.

        Raises:
            UserError: the file is missing, no video, or too short.
        """
        if not -0.5 < start * self._fps < 1e9:
            raise UserError(f"{path}: an episode is said to start at second {start}: the metadata is damaged.")
        first = round(start * self._fps)
        if path != self._path or first < self._next:
            self._open(path)
        frames = None
        while self._next < first + count:
            frame = self._decode()
            if frame is None:
                raise UserError(f"{path} has {self._next} frames; {first + count} are needed: copy it again.")
            if self._next >= first:
                image = resize_frame(np.frombuffer(frame, np.uint8).reshape(self._size[1], self._size[0], 3), size)
                frames = np.empty((count, *image.shape), np.uint8) if frames is None else frames
                frames[self._next - first] = image
            self._next += 1
        return frames

    def expect_end(self) -> None:
        """Raises UserError if the file goes on after the frames that were read last."""
        if self._decode() is not None:
            raise UserError(
                f"{self._path} has more frames than the {self._next} that its episodes have rows for: copy the dataset "
                "again."
            )

    def close(self) -> None:
        """Ends ffmpeg."""
        if self._path is not None:
            self._frames.close()
            self._path = None

    def _decode(self) -> bytes | None:
        """The next frame, None at the end of the file."""
        try:
            return next(self._frames, None)
        except (OSError, RuntimeError, ValueError):
            raise UserError(f"{self._path} cannot be decoded beyond frame {self._next}: copy it again.") from None

    def _open(self, path: Path) -> None:
        self.close()
        if not path.is_file():
            raise UserError(f"{path} is missing: the dataset was not fully copied.")
        frames = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24", output_params=["-fps_mode", "passthrough"])
        try:
            with warnings.catch_warnings():
                # JAX warns of every fork; this one only starts ffmpeg.
                warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
                self._size = next(frames)["size"]
            if not 0 < self._size[0] * self._size[1] <= MOST_PIXELS:
                raise ValueError
        except (OSError, RuntimeError, StopIteration, ValueError, TypeError, KeyError, IndexError, AssertionError):
            raise UserError(f"{path} is not a readable video: copy it again.") from None
        self._path, self._frames, self._next = path, frames, 0
