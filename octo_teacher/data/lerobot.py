"""Reads LeRobot datasets, v2.x (one file per episode) and v3 (many episodes per file): parquet tables and videos."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from octo_teacher.data.actions import ActionMeaning, checked_actions, meaning_of_names
from octo_teacher.data.episodes import Demo
from octo_teacher.data.images import decode_images
from octo_teacher.data.left_out import Reason, Tally
from octo_teacher.data.lerobot_files import EpisodePlace, Info, read_episodes, read_info, read_parquet, read_tasks
from octo_teacher.data.splits import chosen, select
from octo_teacher.data.video import FrameReader
from rpd_jax.errors import UserError


def read_lerobot(
    path: Path,
    cameras: Mapping[str, str] | None = None,
    *,
    instruction: str = "",
    split: str = "train",
    tally: Tally | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Iterator[Demo]:
    """Yields the episodes of a dataset.

    Args:
        path: the folder with meta/info.json.
        cameras: model camera -> feature, for example "observation.images.top"; "" is its only image.
        instruction: said to the robot where the dataset names no task, or an empty one.
        split: of info.json's; see `splits.select`.
        tally: counts what is left out, and says it at the end.
        sizes: model camera -> height and width to which its encoded frames are resized; None leaves them.

    Raises:
        UserError: a missing or malformed file, with its name and the key.
    """
    tally = tally or Tally()
    info = read_info(Path(path))
    names = {camera: info.image_key(key) for camera, key in (cameras or {"primary": ""}).items()}
    filmed = sorted({name for name in names.values() if info.features[name]["dtype"] == "video"})
    tasks = read_tasks(info)
    places = read_episodes(info, filmed)
    videos = {name: _Video(name, info, places) for name in filmed}
    shards = _shards(info, places)
    tables = _Tables(places)
    try:
        for number in chosen(select(split, shards, info.folder, tally), shards):
            demo = _read(places[number], info, tables, names, videos, tasks, instruction, tally, sizes or {})
            if demo is not None:
                tally.reads()
                yield demo
    finally:
        for video in videos.values():
            video.close()
    tally.close(info.folder)


def lerobot_meaning(path: Path) -> ActionMeaning:
    """What the info.json of a dataset says of its actions."""
    info = read_info(Path(path))
    size = info.action_size()
    return meaning_of_names(info.features["action"].get("names"), size if size is not None else 0)


class _Tables:
    """Keeps the last table that was read: v3 has many episodes in one file."""

    def __init__(self, places: list[EpisodePlace]):
        self._last: tuple[Path, pa.Table] | None = None
        self._indices: dict[Path, set[int]] = {}
        for place in places:
            self._indices.setdefault(place.data, set()).add(place.index)

    def read(self, place: EpisodePlace, columns: list[str]) -> pa.Table:
        """The rows of an episode; raises UserError if the file holds others than the metadata says."""
        path = place.data
        if self._last is None or self._last[0] != path:
            self._last = None  # two tables at once would be too much
            table = read_parquet(path, ["action", "episode_index", "task_index", *columns], optional=("frame_index",))
            found = set(table["episode_index"].unique().to_pylist())
            unknown = sorted(map(str, found - self._indices[path]))
            if unknown:
                raise UserError(f"{path} holds rows of episode {unknown[0]}, which meta/episodes does not list there.")
            self._last = path, table
        return self._last[1].filter(pc.equal(self._last[1]["episode_index"], place.index))


class _Video:
    """The frames of an image feature that is stored as videos."""

    def __init__(self, name: str, info: Info, places: list[EpisodePlace]):
        self._name, self._fps = name, info.fps
        self._reader = FrameReader(info.fps)
        self._last_starts: dict[Path, float] = {}
        for place in (place.videos[name] for place in places):
            self._last_starts[place.file] = max(place.start, self._last_starts.get(place.file, place.start))

    def read(self, episode: EpisodePlace, count: int, size: int | None) -> np.ndarray:
        """The frames of an episode of `count` rows, resized to `size`; raises UserError if there are fewer, or more."""
        place = episode.videos[self._name]
        if place.end is not None and abs((place.end - place.start) * self._fps - count) >= 0.5:
            raise UserError(
                f"{place.file}: episode {episode.index} is said to last from second {place.start:g} to {place.end:g}, "
                f"which is not the {count} frames at {self._fps:g} per second of its {count} rows: copy the dataset "
                "again."
            )
        frames = self._reader.read(place.file, place.start, count, size)
        if place.start == self._last_starts[place.file]:
            self._reader.expect_end()
        return frames

    def close(self) -> None:
        """Ends the reader's ffmpeg."""
        self._reader.close()


def _read(
    place: EpisodePlace,
    info: Info,
    tables: _Tables,
    names: Mapping[str, str],
    videos: Mapping[str, "_Video"],
    tasks: Mapping[int, str],
    instruction: str,
    tally: Tally,
    sizes: Mapping[str, int],
) -> Demo | None:
    """One episode, None if it is left out."""
    table = tables.read(place, sorted(set(names.values()) - set(videos)))
    where, name = f"{place.data}, episode {place.index}", f"episode {place.index}"
    if place.length not in (None, len(table)):
        raise UserError(f"{where} has {len(table)} rows, where meta/episodes says {place.length}: copy it again.")
    if not len(table):
        tally.leaves_out(Reason.EMPTY, name)
        return None
    if "frame_index" in table.column_names and table["frame_index"].to_pylist() != list(range(len(table))):
        raise UserError(f"{where}: frame_index does not count from 0 to {len(table) - 1}: the file is damaged.")
    actions = checked_actions(_actions(table, info, where), where)
    told = _instruction(table, tasks, instruction, where, name, tally)
    if not told.strip() and tally.leaves_out(Reason.UNTOLD, name):
        return None
    images = {}
    for camera, key in names.items():
        if key in videos:
            images[camera] = videos[key].read(place, len(actions), sizes.get(camera))
        else:
            encoded = _encoded(table[key], f"{where}: {key}")
            if any(not frame for frame in encoded) and tally.leaves_out(Reason.PADDING, name):
                return None
            images[camera] = decode_images(encoded, f"{where}: {key}", sizes.get(camera))
    return Demo(images, actions, told)


def _actions(table: pa.Table, info: Info, where: str) -> np.ndarray:
    rows = table["action"].to_pylist()
    try:
        actions = np.asarray(rows, np.float64)
    except (TypeError, ValueError, OverflowError):
        actions = np.zeros(0)
    # LeRobot stores vectors of one number as that number.
    if actions.ndim == 1 and actions.size and info.action_size() in (1, None):
        actions = actions[:, None]
    if actions.ndim != 2 or not actions.size:
        raise UserError(f"{where}: action is not one vector of numbers per row.")
    if info.action_size() not in (None, actions.shape[1]):
        raise UserError(
            f"{where}: action has {actions.shape[1]} numbers, where info.json says {info.action_size()}: copy it again."
        )
    return actions


def _encoded(column: pa.ChunkedArray, where: str) -> list[bytes]:
    rows = column.to_pylist()
    if not all(row is None or (isinstance(row, dict) and isinstance(row.get("bytes"), bytes)) for row in rows):
        raise UserError(f"{where} holds no encoded images.")
    return [b"" if row is None else row["bytes"] for row in rows]


def _instruction(
    table: pa.Table, tasks: Mapping[int, str], instruction: str, where: str, name: str, tally: Tally
) -> str:
    indices = list(dict.fromkeys(table["task_index"].to_pylist()))
    unknown = [index for index in indices if index not in tasks]
    if unknown and not instruction.strip() and not tally.looking:
        raise UserError(f"{where}: task_index {unknown[0]} has no entry in meta/tasks: give config.instruction.")
    said = list(dict.fromkeys(text for index in indices if (text := tasks.get(index, "")).strip()))
    if len(said) > 1:
        tally.notes("have several instructions, of which the first is told", name)
    return said[0] if said else instruction


def _shards(info: Info, places: list[EpisodePlace]) -> dict[str, list[int]]:
    """Episodes in each split, in the order of the metadata."""
    if not info.splits:
        return {"train": [len(places)]}
    spans = sorted(info.splits.values())
    at = 0
    for first, last in spans:
        if first != at:
            break
        at = last
    if at != len(places):
        listed = ", ".join(f"{name} {first}:{last}" for name, (first, last) in info.splits.items())
        raise UserError(f"{info.path}: the splits ({listed}) do not divide its {len(places)} episodes.")
    return {name: [last - first] for name, (first, last) in sorted(info.splits.items(), key=lambda item: item[1])}
