"""The metadata of a LeRobot dataset, v2.x and v3: which episodes it has, where they lie, and what they are told."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rpd_jax.errors import UserError
from rpd_jax.run.json_file import field, objects, parse_object, read_bytes, read_object

_PLACE = re.compile(r"\{(\w+)(?::0?(\d{0,2})d)?\}")
# What pyarrow raises where a file is damaged.
_DAMAGE = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError)
_MOST_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Info:
    """What meta/info.json says.

    Attributes:
        folder: of the dataset.
        path: of info.json.
        version: "v2.1", "v3.0" or the like.
        fps: frames per second of the videos.
        features: what is declared of each column.
        data_path, video_path: templates of file names.
        chunk_size: episodes per folder in v2.
        total_episodes, total_frames: None where they are not said.
        splits: first and last episode of each split.
    """

    folder: Path
    path: Path
    version: str
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    data_path: str
    video_path: str
    chunk_size: int
    total_episodes: int | None
    total_frames: int | None
    splits: Mapping[str, tuple[int, int]]

    def image_key(self, key: str) -> str:
        """The image feature `key`, or the only one if it is ""; raises UserError with those that there are."""
        images = [name for name, feature in self.features.items() if feature.get("dtype") in ("image", "video")]
        wanted = key or (images[0] if len(images) == 1 else None)
        if wanted not in images:
            asked = f"no image feature {key}" if key else f"{len(images)} image features"
            raise UserError(
                f"{self.path} has {asked}: choose with config.cameras among its images ({', '.join(images) or 'none'})."
            )
        return wanted

    def action_size(self) -> int | None:
        """Numbers in an action; None if it is not said, or they are not one vector."""
        shape = self.features["action"].get("shape")
        one = isinstance(shape, list) and len(shape) == 1 and isinstance(shape[0], int)
        return shape[0] if one else None


@dataclasses.dataclass(frozen=True)
class VideoPlace:
    """Where the frames of an episode are.

    Attributes:
        file: the video, which other episodes may share.
        start: the second in which they begin.
        end: the second in which they end, None where that is not said.
    """

    file: Path
    start: float = 0.0
    end: float | None = None


@dataclasses.dataclass(frozen=True)
class EpisodePlace:
    """Where an episode lies.

    Attributes:
        index: its number.
        length: its steps, None where that is not said.
        data: its parquet file, which other episodes may share.
        videos: feature -> where its frames are.
    """

    index: int
    length: int | None
    data: Path
    videos: Mapping[str, VideoPlace]


def read_info(folder: Path) -> Info:
    """Reads meta/info.json; raises UserError if it is missing or malformed."""
    path = folder / "meta" / "info.json"
    content = read_object(path, "it is not a LeRobot dataset")
    for key in ("codebase_version", "features", "fps", "data_path"):
        if key not in content:
            raise UserError(f"{path} lacks the key {key}: it is not a LeRobot dataset.")
    for key in ("data_path", "video_path"):
        if ".." in str(content.get(key)) or str(content.get(key)).startswith("/"):
            raise UserError(f"{path}: {key} points outside the dataset.")
    version = field(content, "codebase_version", str, path)
    if not version.startswith(("v2.", "v3.")):
        raise UserError(f"{path} has codebase_version {version}; v2.x and v3.x can be read.")
    features = field(content, "features", dict, path)
    if "action" not in features:
        raise UserError(
            f"{path} lacks features.action: there is nothing to learn (it has {', '.join(features) or 'none'})."
        )
    objects(list(features.values()), f"{path}: features")
    fps = field(content, "fps", float, path)
    if not 0 < fps < 1e6:
        raise UserError(f"{path} has fps {fps}, which is no frame rate: the file is damaged.")
    chunk_size = field(content, "chunks_size", int, path, 1000)
    if chunk_size < 1:
        raise UserError(f"{path} has chunks_size {chunk_size}: the file is damaged.")
    total = field(content, "total_episodes", int, path, None)
    return Info(
        folder,
        path,
        version,
        float(fps),
        features,
        field(content, "data_path", str, path),
        field(content, "video_path", str, path, ""),
        chunk_size,
        total,
        field(content, "total_frames", int, path, None),
        _splits(field(content, "splits", dict, path, {}), path),
    )


def read_episodes(info: Info, videos: list[str]) -> list[EpisodePlace]:
    """Returns the episodes in the order of the metadata.

    Args:
        info: of the dataset.
        videos: features whose video files are wanted.

    Raises:
        UserError: missing or malformed metadata, or another number of episodes than info.json says.
    """
    if videos and not info.video_path:
        raise UserError(f"{info.path} lacks the key video_path, where {videos[0]} is a video.")
    places = list(_places_v2(info, videos) if info.version.startswith("v2.") else _places_v3(info, videos))
    indices = [place.index for place in places]
    if len(set(indices)) != len(indices) or min(indices, default=0) < 0:
        raise UserError(f"{info.folder / 'meta'}: the episodes are not numbered one by one: the file is damaged.")
    if info.total_episodes not in (None, len(places)):
        raise UserError(
            f"{info.folder / 'meta'} lists {len(places)} episodes, where info.json says total_episodes "
            f"{info.total_episodes}: the dataset was not fully copied."
        )
    steps = sum(place.length or 0 for place in places)
    if (
        info.total_frames is not None
        and all(place.length is not None for place in places)
        and steps != info.total_frames
    ):
        raise UserError(
            f"{info.folder / 'meta'} lists {steps} steps, where info.json says total_frames {info.total_frames}: the "
            "dataset was not fully copied."
        )
    return places


def read_tasks(info: Info) -> dict[int, str]:
    """Returns the instructions by task_index, "" where one is empty."""
    meta = info.folder / "meta"
    if info.version.startswith("v2."):
        path = meta / "tasks.jsonl"
        lines = _read_lines(path)
        if any("task_index" not in line or "task" not in line for line in lines):
            raise UserError(f"{meta}/tasks lacks the key task: it is not a LeRobot {info.version} dataset.")
        return {field(line, "task_index", int, path): field(line, "task", str, path, "") for line in lines}
    # pandas wrote the sentences as the table's index: a column "task", or one without a name of its own.
    path = meta / "tasks.parquet"
    table = read_parquet(path, ["task_index"], rest=True)
    texts = next((name for name in table.column_names if name != "task_index"), None)
    if texts is None:
        raise UserError(f"{meta}/tasks lacks the key task: it is not a LeRobot {info.version} dataset.")
    tasks = dict(zip(table["task_index"].to_pylist(), table[texts].to_pylist(), strict=True))
    if not all(isinstance(index, int) and isinstance(text, str | None) for index, text in tasks.items()):
        raise UserError(
            f"{path} does not hold a sentence for each task_index: it is not a LeRobot {info.version} dataset."
        )
    return {index: text or "" for index, text in tasks.items()}


def read_parquet(path: Path, columns: list[str], *, optional: tuple[str, ...] = (), rest: bool = False) -> pa.Table:
    """Reads columns of a parquet file.

    Args:
        path: the file.
        columns: those that must be there.
        optional: those that are read if they are there.
        rest: read all others too.

    Raises:
        UserError: the file is missing or damaged, or lacks a column; it is named.
    """
    try:
        with pq.ParquetFile(path) as file:
            have = file.schema_arrow.names
            for name in columns:
                if name not in have:
                    raise UserError(
                        f"{path} lacks the column {name}: it does not fit the dataset's meta/info.json (it has "
                        f"{', '.join(have)})."
                    )
            _check_size(file.metadata, path)
            table = file.read(have if rest else [*columns, *(name for name in optional if name in have)])
            table.validate(full=True)
            return table
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the dataset was not fully copied.") from None
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not a readable parquet file ({reason}): copy it again.") from None


def _check_size(metadata: pq.FileMetaData, path: Path) -> None:
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if sum(group.total_byte_size for group in groups) > _MOST_BYTES * max(1, metadata.num_row_groups):
        raise UserError(f"{path} says it has row groups of more than a GB: the file is damaged.")


def _places_v2(info: Info, videos: list[str]) -> Iterator[EpisodePlace]:
    path = info.folder / "meta" / "episodes.jsonl"
    for line in _read_lines(path):
        index = field(line, "episode_index", int, path)
        place = {"episode_chunk": index // info.chunk_size, "episode_index": index}
        files = {name: VideoPlace(_fill(info, "video_path", {**place, "video_key": name})) for name in videos}
        yield EpisodePlace(index, field(line, "length", int, path, None), _fill(info, "data_path", place), files)


def _places_v3(info: Info, videos: list[str]) -> Iterator[EpisodePlace]:
    folder = info.folder / "meta" / "episodes"
    files = sorted(folder.glob("*/*.parquet"))
    if not files:
        raise UserError(f"{folder} holds no parquet file: the dataset was not fully copied.")
    columns = ["episode_index", "data/chunk_index", "data/file_index"]
    for name in videos:
        columns += [f"videos/{name}/{part}" for part in ("chunk_index", "file_index", "from_timestamp")]
    ends = tuple(f"videos/{name}/to_timestamp" for name in videos)
    for path in files:
        for row in read_parquet(path, columns, optional=("length", *ends)).to_pylist():
            place = {key: field(row, f"data/{key}", int, path) for key in ("chunk_index", "file_index")}
            yield EpisodePlace(
                field(row, "episode_index", int, path),
                field(row, "length", int, path, None),
                _fill(info, "data_path", place),
                {name: _video_place_v3(info, row, name, path) for name in videos},
            )


def _video_place_v3(info: Info, row: Mapping[str, Any], name: str, path: Path) -> VideoPlace:
    at = {key: field(row, f"videos/{name}/{key}", int, path) for key in ("chunk_index", "file_index")}
    start = float(field(row, f"videos/{name}/from_timestamp", float, path))
    end = field(row, f"videos/{name}/to_timestamp", float, path, None)
    return VideoPlace(_fill(info, "video_path", {**at, "video_key": name}), start, end)


def _fill(info: Info, template: str, values: Mapping[str, Any]) -> Path:
    """The file that a template means, inside the dataset."""
    text = getattr(info, template)

    def value(match: re.Match) -> str:
        if match[1] not in values:
            raise UserError(
                f"{info.path}: {template} names {{{match[1]}}}, which episodes do not have: the file is damaged."
            )
        found = values[match[1]]
        return f"{found:0{match[2]}d}" if match[2] and isinstance(found, int) else str(found)

    name = _PLACE.sub(value, text)
    if "{" in name or "\0" in name or name.startswith("/") or ".." in Path(name).parts:
        raise UserError(f"{info.path}: {template} is {text!r}, which names no file inside the dataset.")
    return info.folder / name


def _splits(splits: Mapping[str, Any], path: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for name, text in splits.items():
        match = re.fullmatch(r"(\d{1,12}):(\d{1,12})", text) if isinstance(text, str) else None
        if match is None or int(match[1]) > int(match[2]):
            raise UserError(f"{path}: the split {name!r} is {text!r}, not two numbers of episodes as '0:100'.")
        found[name] = int(match[1]), int(match[2])
    return found


def _read_lines(path: Path) -> list[dict[str, Any]]:
    text = read_bytes(path, "the dataset was not fully copied")
    return [parse_object(line, path) for line in text.splitlines() if line.strip()]
