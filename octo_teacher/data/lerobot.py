"""Reads LeRobot datasets, v2.x (one file per episode) and v3 (many episodes per file): parquet tables and videos."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from octo_teacher.data.episodes import Demo
from octo_teacher.data.rlds import decode_image
from octo_teacher.data.video import FrameReader
from rpd_jax.errors import UserError


def read_lerobot(path: Path, cameras: Mapping[str, str] | None = None, *, instruction: str = "") -> Iterator[Demo]:
    """Yields the episodes of a dataset.

    Args:
        path: the folder with meta/info.json.
        cameras: model camera -> feature, for example "observation.images.top"; "" is its only image.
        instruction: said to the robot where the dataset names no task.

    Raises:
        UserError: a missing or malformed file, with its name and the key.
    """
    path = Path(path)
    info_path = path / "meta" / "info.json"
    info = _read_json(info_path)
    for key in ("codebase_version", "features", "fps", "data_path"):
        if key not in info:
            raise UserError(f"{info_path} lacks the key {key}: it is not a LeRobot dataset.")
    for key in ("data_path", "video_path"):
        if ".." in str(info.get(key)) or str(info.get(key)).startswith("/"):
            raise UserError(f"{info_path}: {key} points outside the dataset.")
    version = str(info["codebase_version"])
    if not version.startswith(("v2.", "v3.")):
        raise UserError(f"{info_path} has codebase_version {version}; v2.x and v3.x can be read.")
    if "action" not in info["features"]:
        raise UserError(f"{info_path} lacks features.action: there is nothing to learn.")
    names = {camera: _image_key(info, key, info_path) for camera, key in (cameras or {"primary": ""}).items()}
    videos = {
        name: FrameReader(float(info["fps"])) for name in names.values() if info["features"][name]["dtype"] == "video"
    }
    tasks = _read_tasks(path, version)
    tables = _Tables()
    try:
        for episode in _read_episodes(path, info, version):
            table = tables.read(
                episode["data"], ["action", "episode_index", "task_index", *set(names.values()) - set(videos)]
            )
            where = f"{episode['data']}, episode {episode['index']}"
            table = table.filter(pc.equal(table["episode_index"], episode["index"]))
            actions = _actions(table, where)
            images = {}
            for camera, name in names.items():
                if name in videos:
                    file, start = episode["videos"][name]
                    images[camera] = videos[name].read(file, start, len(actions))
                else:
                    images[camera] = _stored_images(table[name], f"{where}: {name}")
            yield Demo(images, actions, _instruction(table, tasks, instruction, where))
    finally:
        for video in videos.values():
            video.close()


class _Tables:
    """Keeps the last table that was read: v3 has many episodes in one file."""

    def __init__(self):
        self._last: tuple[Path, pa.Table] | None = None

    def read(self, path: Path, columns: list[str]) -> pa.Table:
        if self._last is None or self._last[0] != path:
            self._last = path, read_parquet(path, columns)
        return self._last[1]


def read_parquet(path: Path, columns: list[str]) -> pa.Table:
    """Reads columns of a parquet file; raises UserError naming the file, and the column if one is missing."""
    try:
        file = pq.ParquetFile(path)
        for name in columns:
            if name not in file.schema_arrow.names:
                raise UserError(f"{path} lacks the column {name}: it does not fit the dataset's meta/info.json.")
        return file.read(columns)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the dataset was not fully copied.") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is not a readable parquet file ({str(error).splitlines()[0]}): copy it again."
        ) from None


def _actions(table: pa.Table, where: str) -> np.ndarray:
    rows = table["action"].to_pylist()
    try:
        actions = np.asarray(rows, np.float32)
    except (TypeError, ValueError):
        actions = np.zeros(0)
    if actions.ndim != 2 or not actions.size:
        raise UserError(f"{where}: action is not one vector of numbers per row.")
    return actions


def _stored_images(column: pa.ChunkedArray, where: str) -> np.ndarray:
    rows = column.to_pylist()
    if not all(isinstance(row, dict) and isinstance(row.get("bytes"), bytes) for row in rows):
        raise UserError(f"{where} holds no encoded images.")
    return np.stack([decode_image(row["bytes"], where) for row in rows])


def _instruction(table: pa.Table, tasks: Mapping[int, str], instruction: str, where: str) -> str:
    index = table["task_index"][0].as_py()
    text = tasks.get(index) or instruction
    if not text:
        raise UserError(f"{where}: task_index {index} has no entry in meta/tasks: give config.instruction.")
    return text


def _image_key(info: dict[str, Any], key: str, path: Path) -> str:
    images = [name for name, feature in info["features"].items() if feature.get("dtype") in ("image", "video")]
    wanted = key or (images[0] if len(images) == 1 else None)
    if wanted not in images:
        asked = f"no image feature {key}" if key else f"{len(images)} image features"
        raise UserError(
            f"{path} has {asked}: choose with config.cameras among its images ({', '.join(images) or 'none'})."
        )
    return wanted


def _read_episodes(path: Path, info: dict[str, Any], version: str) -> Iterator[dict[str, Any]]:
    """Yields per episode: its index, its data file, and for each video its file and the second where it starts."""
    videos = [name for name, feature in info["features"].items() if feature.get("dtype") == "video"]
    try:
        if version.startswith("v2."):
            for line in _read_lines(path / "meta" / "episodes.jsonl"):
                index = line["episode_index"]
                place = {"episode_chunk": index // info.get("chunks_size", 1000), "episode_index": index}
                yield {
                    "index": index,
                    "data": path / info["data_path"].format(**place),
                    "videos": {
                        name: (path / info["video_path"].format(**place, video_key=name), 0.0) for name in videos
                    },
                }
        else:
            files = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
            if not files:
                raise UserError(
                    f"{path / 'meta' / 'episodes'} holds no parquet file: the dataset was not fully copied."
                )
            columns = ["episode_index", "data/chunk_index", "data/file_index"]
            for name in videos:
                columns += [f"videos/{name}/{part}" for part in ("chunk_index", "file_index", "from_timestamp")]
            for row in (row for file in files for row in read_parquet(file, columns).to_pylist()):
                yield {
                    "index": row["episode_index"],
                    "data": path
                    / info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]),
                    "videos": {
                        name: (
                            path
                            / info["video_path"].format(
                                video_key=name,
                                chunk_index=row[f"videos/{name}/chunk_index"],
                                file_index=row[f"videos/{name}/file_index"],
                            ),
                            row[f"videos/{name}/from_timestamp"],
                        )
                        for name in videos
                    },
                }
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise UserError(f"{path / 'meta'} lacks the key {error}: it is not a LeRobot {version} dataset.") from None


def _read_tasks(path: Path, version: str) -> dict[int, str]:
    try:
        if version.startswith("v2."):
            return {line["task_index"]: line["task"] for line in _read_lines(path / "meta" / "tasks.jsonl")}
        # pandas wrote the sentences as the table's index: a column "task", or one without a name of its own.
        table = read_parquet(path / "meta" / "tasks.parquet", ["task_index"])
        names = pq.read_schema(path / "meta" / "tasks.parquet").names
        texts = next(name for name in names if name != "task_index")
        sentences = read_parquet(path / "meta" / "tasks.parquet", [texts])[texts].to_pylist()
        return dict(zip(table["task_index"].to_pylist(), sentences, strict=True))
    except (KeyError, StopIteration):
        raise UserError(f"{path / 'meta'}/tasks lacks the key task: it is not a LeRobot {version} dataset.") from None


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the dataset was not fully copied.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid json ({error}): copy it again.") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: it is not a LeRobot dataset.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid json ({error}): copy it again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a json object: it is not a LeRobot dataset.")
    return content
