"""Decoded demos on disk: whatever the source's format, each frame can be read at random without decoding anything.

A store is a folder: <camera>.u8 (all frames behind each other, uint8 [N, S, S, 3]), actions.npy (float32 [N, A]) and
store.json (length and instruction of each episode, how the gripper was converted, and what was said of those left out).
It is made once per source, camera names and frame sizes, and found again by a hash of these and of the source's file
sizes and times.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from octo_teacher.data.actions import choose_gripper, convert_gripper
from octo_teacher.data.episodes import Demo
from octo_teacher.data.images import resize
from octo_teacher.data.left_out import Tally, kept
from octo_teacher.data.readers import action_meaning, read_demos, source_files
from rpd_jax.errors import UserError
from rpd_jax.run.cache import cache_folder

_LOG = logging.getLogger(__name__)
_VERSION = 3


def default_cache() -> Path:
    """$XDG_CACHE_HOME/rpd_jax/demos, or ~/.cache/rpd_jax/demos."""
    return cache_folder("demos")


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
    only_successful: bool = True,
    gripper: str = "",
    on_episode: Callable[[int], None] = lambda count: None,
    on_note: Callable[[str], None] = _LOG.warning,
) -> list[Demo]:
    """Returns the demos of a dataset with frames in a store, which is made first if there is none.

    Args:
        source: an h5 file, or a folder; see `read_demos`.
        image_sizes: model camera -> height and width to which its frames are resized (Lanczos).
        cameras: model camera -> the dataset's name of it; see `read_demos`.
        cache: folder of stores.
        instruction, split, only_successful: see `read_demos`.
        gripper: how the gripper is told where the files do not say it; see `actions.GRIPPERS`.
        on_episode: called after each episode that is read, with their number.
        on_note: called with each line on what was left out or converted, also if it was so when the store was made.

    Raises:
        UserError: a missing or malformed file, no episode in it, or no space for the store.
    """
    source = Path(source).absolute()
    cameras = {name: (cameras or {}).get(name, "") for name in image_sizes}
    try:
        files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in source_files(source)]
    except OSError as error:
        raise UserError(f"{error.filename or source} cannot be read ({error.strerror}).") from None
    choices = [instruction, split, only_successful, gripper]
    named = [_VERSION, str(source), files, sorted(image_sizes.items()), sorted(cameras.items()), *choices]
    key = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:20]
    cache = default_cache() if cache is None else Path(cache)
    folder = cache / key
    content = _read_index(folder, image_sizes)
    if content is None:
        with _writing(source, cache):
            cache.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=cache))
        try:
            notes: list[str] = []
            tally = Tally(notes.append, keep=kept(only_successful))
            demos = read_demos(source, cameras, instruction=instruction, split=split, tally=tally, sizes=image_sizes)
            _write(scratch, source, demos, image_sizes, gripper, notes, on_episode, cache)
            with _writing(source, cache):
                if _read_index(folder, image_sizes) is None:  # another run may have been faster
                    shutil.rmtree(folder, ignore_errors=True)
                    os.replace(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        content = _read_index(folder, image_sizes)
        if content is None:
            raise UserError(f"The decoded demos in {folder} vanished or changed while they were read: try again.")
    for note in content["notes"]:
        on_note(note)
    return _open(folder, content, image_sizes)


def _write(folder: Path, source: Path, demos, image_sizes, gripper, notes, on_episode, cache) -> None:
    episodes, actions = [], []
    with contextlib.ExitStack() as stack:
        with _writing(source, cache):
            files = {
                camera: stack.enter_context((folder / f"{camera}.u8").open("wb", buffering=0)) for camera in image_sizes
            }
        for demo in demos:
            for camera, size in image_sizes.items():
                frames = memoryview(np.ascontiguousarray(resize(demo.images[camera][:], size))).cast("B")
                with _writing(source, cache):
                    while frames:
                        frames = frames[files[camera].write(frames) :]
            actions.append(demo.actions)
            episodes.append({"length": len(demo.actions), "instruction": demo.instruction})
            on_episode(len(episodes))
    if len({part.shape[1] for part in actions}) != 1:
        raise UserError(f"{source} has episodes whose actions differ in dimension.")
    together = np.concatenate(actions)
    how = choose_gripper(together, action_meaning(source), gripper, source)
    if how != "as_is":
        notes.append(f"{source}: the gripper, from 0 to 1, is converted to -1 (closed) to 1 (open) as {how}.")
    content = {"source": str(source), "episodes": episodes, "gripper": how, "notes": notes}
    with _writing(source, cache):
        array = io.BytesIO()
        np.save(array, convert_gripper(together, how))
        (folder / "actions.npy").write_bytes(array.getvalue())
        folder.chmod(0o755)
        (folder / "store.json").write_text(json.dumps(content))


@contextlib.contextmanager
def _writing(source: Path, cache: Path) -> Iterator[None]:
    """Turns an OSError of the block, which writes to the cache, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"The decoded demos of {source} cannot be written to {cache} ({error.strerror}): make space or set "
            "config.cache."
        ) from None


def _read_index(folder: Path, image_sizes: Mapping[str, int]) -> dict[str, Any] | None:
    """What store.json says; None if there is no whole store in `folder`."""
    try:
        content = json.loads((folder / "store.json").read_bytes())
        steps = sum(episode["length"] for episode in content["episodes"])
        sizes = {f"{camera}.u8": steps * size * size * 3 for camera, size in image_sizes.items()}
        whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
        return (
            content
            if whole and len(np.load(folder / "actions.npy")) == steps and {"gripper", "notes"} <= set(content)
            else None
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _open(folder: Path, content: Mapping[str, Any], image_sizes: Mapping[str, int]) -> list[Demo]:
    actions = np.load(folder / "actions.npy")
    converted = content["gripper"] != "as_is"
    demos, start = [], 0
    for episode in content["episodes"]:
        length = episode["length"]
        images = {
            camera: StoredFrames(str(folder / f"{camera}.u8"), size, start, length)
            for camera, size in image_sizes.items()
        }
        demos.append(Demo(images, actions[start : start + length], episode["instruction"], converted))
        start += length
    return demos
