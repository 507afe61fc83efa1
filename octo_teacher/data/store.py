"""Decoded demos on disk: whatever the source's format, each frame can be read at random without decoding anything.

A store is a folder: <camera>.u8 (all frames behind each other, uint8 [N, S, S, 3]), actions.npy (float32 [N, A]) and
store.json (length and instruction of each episode). It is made once per source, camera names and frame sizes, and found
again by a hash of these and of the source's file sizes and times.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from octo_teacher.data.episodes import Demo
from octo_teacher.data.readers import read_demos, source_files
from rpd_jax.errors import UserError

_VERSION = 1


def default_cache() -> Path:
    """$XDG_CACHE_HOME/rpd_jax/demos, or ~/.cache/rpd_jax/demos."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rpd_jax" / "demos"


@dataclasses.dataclass(frozen=True)
class StoredFrames:
    """The frames start .. start + count of a store's camera; opened on first use, so that it is cheap to pickle."""

    path: str
    size: int
    start: int
    count: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.count, self.size, self.size, 3)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, steps) -> np.ndarray:
        frames = _open_frames(self.path, self.size)
        return np.array(frames[self.start : self.start + self.count][steps])


@lru_cache(maxsize=256)
def _open_frames(path: str, size: int) -> np.ndarray:
    return np.memmap(path, np.uint8, mode="r").reshape(-1, size, size, 3)


def load_demos(
    source: str | Path,
    image_sizes: Mapping[str, int],
    cameras: Mapping[str, str] | None = None,
    *,
    cache: Path | None = None,
    instruction: str = "",
    split: str = "train",
    on_episode: Callable[[int], None] = lambda count: None,
) -> list[Demo]:
    """Returns the demos of a dataset with frames in a store, which is made first if there is none.

    Args:
        source: an h5 file, or a folder; see `read_demos`.
        image_sizes: model camera -> height and width to which its frames are resized (Lanczos).
        cameras: model camera -> the dataset's name of it; see `read_demos`.
        cache: folder of stores.
        instruction, split: see `read_demos`.
        on_episode: called after each episode that is read, with their number.

    Raises:
        UserError: a missing or malformed file, no episode in it, or no space for the store.
    """
    source = Path(source).absolute()
    cameras = {name: (cameras or {}).get(name, "") for name in image_sizes}
    files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in source_files(source)]
    named = [_VERSION, str(source), files, sorted(image_sizes.items()), sorted(cameras.items()), instruction, split]
    key = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:20]
    cache = default_cache() if cache is None else Path(cache)
    folder = cache / key
    if not (folder / "store.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=cache))
        try:
            _write(scratch, source, image_sizes, cameras, instruction, split, on_episode)
            if not (folder / "store.json").is_file():  # another run may have been faster
                os.replace(scratch, folder)
        except OSError as error:
            raise UserError(
                f"The decoded demos of {source} cannot be written to {cache} ({error.strerror}): make space or set "
                "config.cache."
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return _open(folder, image_sizes)


def _write(folder: Path, source: Path, image_sizes, cameras, instruction, split, on_episode) -> None:
    episodes, actions = [], []
    files = {camera: (folder / f"{camera}.u8").open("wb") for camera in image_sizes}
    try:
        for demo in read_demos(source, cameras, instruction=instruction, split=split):
            for camera, size in image_sizes.items():
                files[camera].write(resize(demo.images[camera][:], size).tobytes())
            actions.append(demo.actions)
            episodes.append({"length": len(demo.actions), "instruction": demo.instruction})
            on_episode(len(episodes))
    finally:
        for file in files.values():
            file.close()
    if not episodes:
        raise UserError(f"{source} holds no episode.")
    if len({part.shape[1] for part in actions}) != 1:
        raise UserError(f"{source} has episodes whose actions differ in dimension.")
    np.save(folder / "actions.npy", np.concatenate(actions))
    folder.chmod(0o755)
    (folder / "store.json").write_text(json.dumps({"source": str(source), "episodes": episodes}))


def _open(folder: Path, image_sizes: Mapping[str, int]) -> list[Demo]:
    episodes = json.loads((folder / "store.json").read_text())["episodes"]
    actions = np.load(folder / "actions.npy")
    demos, start = [], 0
    for episode in episodes:
        length = episode["length"]
        images = {
            camera: StoredFrames(str(folder / f"{camera}.u8"), size, start, length)
            for camera, size in image_sizes.items()
        }
        demos.append(Demo(images, actions[start : start + length], episode["instruction"]))
        start += length
    return demos


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes frames uint8 [T, H, W, 3] to [T, size, size, 3] (Lanczos)."""
    if images.shape[1:3] == (size, size):
        return images
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)) for image in images]
    )
