"""Which files hold the episodes of a TFDS dataset, and that all of them are there with all of their records."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from octo_teacher.data.array_record import count_array_records, read_array_records
from octo_teacher.data.tfrecord import count_records, read_records
from rpd_jax.errors import UserError
from rpd_jax.run.json_file import field, objects, read_object

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
# How each format is read and its records are counted.
_FORMATS = {
    "tfrecord": (read_records, count_records),
    "array_record": (read_array_records, count_array_records),
}
_NAME = re.compile(
    r"(?P<start>.*-)?(?P<split>[^-]+)\.(?P<format>tfrecord|array_record)(?:-(?P<index>\d{5,9})-of-(?P<count>\d{5,9}))?"
)


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file and the number of its records."""

    path: Path
    format: str
    count: int

    def records(self) -> Iterator[bytes]:
        """Yields the records; raises UserError where the file is damaged."""
        return _FORMATS[self.format][0](self.path)


def find_shards(folder: Path) -> dict[str, list[Shard]]:
    """Returns the shards of each split, in order.

    Without a dataset_info.json they are found by their names.

    Raises:
        UserError: dataset_info.json is malformed, or files are missing by their names.
    """
    info_path = folder / "dataset_info.json"
    if not info_path.is_file():
        return _by_name(folder)
    info = read_object(info_path, "it is not an RLDS dataset")
    name = field(info, "name", str, info_path, "")
    # The default of TFDS before it wrote the format down.
    format = field(info, "fileFormat", str, info_path, "tfrecord")
    if format not in _FORMATS:
        raise UserError(f"{info_path}: the file format {format!r} cannot be read; {' and '.join(_FORMATS)} can.")
    splits = objects(field(info, "splits", list, info_path, []), f"{info_path}: splits")
    if not splits:
        return _by_name(folder)
    return {
        field(split, "name", str, f"{info_path}: splits"): _of_split(folder, info_path, name, format, split)
        for split in splits
    }


def _of_split(folder: Path, info_path: Path, dataset: str, format: str, split: Mapping[str, Any]) -> list[Shard]:
    name = field(split, "name", str, f"{info_path}: splits")
    where = f"{info_path}: split {name!r}"
    lengths = field(split, "shardLengths", list, where, [])
    if not all(str(length).isdecimal() and len(str(length)) < 12 for length in lengths):
        raise UserError(f"{where} has shardLengths {lengths}, which are no counts: the file is damaged.")
    template = field(split, "filepathTemplate", str, where, _TEMPLATE) or _TEMPLATE
    paths = [
        folder / _file_name(template, dataset, name, format, index, len(lengths), where)
        for index in range(len(lengths))
    ]
    return [Shard(path, format, int(length)) for path, length in zip(paths, lengths, strict=True)]


def check_whole(split: str, shards: list[Shard], folder: Path) -> None:
    """Checks that the files of a split are those that the metadata tells, with as many records.

    Raises:
        UserError: one is missing, too much, or holds another number of records.
    """
    if not shards:
        raise UserError(f"{folder / 'dataset_info.json'} lists no file of split {split!r}: the file is damaged.")
    paths = {shard.path for shard in shards}
    missing = [shard.path for shard in shards if not shard.path.is_file()]
    if missing:
        raise UserError(
            f"{missing[0]} is missing, one of {len(missing)} missing files of the {len(paths)} of split {split!r} that "
            "dataset_info.json lists: the dataset was not fully copied."
        )
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match and (match["split"], match["format"]) == (split, shards[0].format) and path not in paths:
            raise UserError(
                f"{path} is none of the {len(paths)} files of split {split!r} that dataset_info.json lists."
            )
    for shard in shards:
        found = _FORMATS[shard.format][1](shard.path)
        if found != shard.count:
            raise UserError(
                f"{shard.path} holds {found} records, where dataset_info.json says {shard.count}: copy both again."
            )


def _file_name(template: str, dataset: str, split: str, format: str, index: int, count: int, where: str) -> str:
    digits = max(5, len(str(count)))
    values = {
        "DATASET": dataset,
        "SPLIT": split,
        "FILEFORMAT": format,
        "SHARD_INDEX": f"{index:0{digits}d}",
        "NUM_SHARDS": f"{count:0{digits}d}",
        "SHARD_X_OF_Y": f"{index:0{digits}d}-of-{count:0{digits}d}",
    }
    name = re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)
    if "{" in name or "\0" in name or name.startswith("/") or ".." in Path(name).parts:
        raise UserError(f"{where} has the filepathTemplate {template!r}, which cannot be filled in.")
    return name


def _by_name(folder: Path) -> dict[str, list[Shard]]:
    found: dict[str, dict[int, Shard]] = {}
    counts: dict[str, set[int]] = {}
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        split, index, count = match["split"], int(match["index"] or 0), int(match["count"] or 1)
        counts.setdefault(split, set()).add(count)
        shards = found.setdefault(split, {})
        if index in shards or len(counts[split]) > 1:
            raise UserError(f"{folder} holds files of split {split!r} of several datasets, as {path.name}: keep one.")
        shards[index] = Shard(path, match["format"], _FORMATS[match["format"]][1](path))
    for split, shards in found.items():
        (count,) = counts[split]
        missing = [index for index in range(count) if index not in shards]
        if missing:
            raise UserError(
                f"{folder} lacks {len(missing)} of the {count} files of split {split!r}, the first with number "
                f"{missing[0]:05d}: the dataset was not fully copied."
            )
    return {split: [shards[index] for index in sorted(shards)] for split, shards in found.items()}
