"""Reads RLDS datasets as TFDS writes them: a folder with features.json and shards of records, one episode per record.

Inside a record each step feature is flattened to steps/<path>, all steps behind each other (tensorflow_datasets,
core/example_serializer.py).
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from octo_teacher.data.actions import ActionMeaning, checked_actions, meaning_of_names
from octo_teacher.data.episodes import Demo
from octo_teacher.data.features import (
    ACTION,
    INSTRUCTIONS,
    Features,
    Leaf,
    decode_frames,
    decode_tensors,
    read_features,
)
from octo_teacher.data.left_out import Reason, Tally
from octo_teacher.data.shards import Shard, check_whole, find_shards
from octo_teacher.data.splits import Span, select
from octo_teacher.data.tfrecord import parse_example
from rpd_jax.errors import UserError

_DEPTH = 3


def find_rlds(path: Path) -> Path | None:
    """`path` if it holds features.json, else the latest version of the one dataset below it, None if there is none.

    Raises:
        UserError: there are several datasets below it.
    """
    if (path / "features.json").is_file():
        return path
    versions = versions_below(path)
    if len(versions) > 1:
        raise several(path, versions)
    folders = next(iter(versions.values()), [])
    return max(folders, key=lambda folder: [int(part) for part in re.findall(r"\d+", folder.name)], default=None)


def versions_below(path: Path) -> dict[Path, list[Path]]:
    """The folders with features.json below `path` by dataset: a dataset, or its configuration, is a folder of them."""
    versions: dict[Path, list[Path]] = {}
    for depth in range(1, _DEPTH + 1):
        for file in path.glob("/".join(["*"] * depth + ["features.json"])):
            versioned = re.fullmatch(r"\d{1,9}\.\d{1,9}\.\d{1,9}", file.parent.name)
            versions.setdefault(file.parents[1] if versioned else file.parent, []).append(file.parent)
    return versions


def several(path: Path, datasets: Iterable[Path]) -> UserError:
    """The refusal of a folder that holds several datasets."""
    names = sorted(repr(str(dataset.relative_to(path))) for dataset in datasets)
    return UserError(
        f"{path} holds {len(names)} datasets: name one of {', '.join(names)}, or several, separated by commas."
    )


def read_rlds(
    path: Path,
    cameras: Mapping[str, str] | None = None,
    *,
    instruction: str = "",
    split: str = "train",
    tally: Tally | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Iterator[Demo]:
    """Yields the episodes of one split.

    Args:
        path: the folder with features.json, or one above it.
        cameras: model camera -> image feature under steps/observation; "" is its only image.
        instruction: said to the robot where the dataset holds no instruction.
        split: in TFDS's own notation; see `splits.select`.
        tally: counts what is left out, and says it at the end.
        sizes: model camera -> height and width to which its encoded frames are resized; None leaves them.

    Raises:
        UserError: a missing or malformed file, with its name and the key.
    """
    tally = tally or Tally()
    folder = _folder(path)
    features = read_features(folder / "features.json")
    names = {camera: features.image_key(key) for camera, key in (cameras or {"primary": ""}).items()}
    action, told = features.action(), features.instruction()
    if told is None and not instruction.strip() and not tally.looking:
        raise UserError(
            f"{features.path} lacks {INSTRUCTIONS[0]}: say what the robot was told with config.instruction."
        )
    shards = find_shards(folder)
    if not shards:
        raise UserError(f"{folder} holds no file *-{split}.tfrecord-*: the dataset was not fully copied.")
    spans = select(split, {name: [shard.count for shard in of] for name, of in shards.items()}, folder, tally)
    for name in dict.fromkeys(span.split for span in spans):
        check_whole(name, shards[name], folder)
    record = _Record(features, action, names, told, instruction, tally, sizes or {})
    for span in spans:
        for shard, index, data in _records(shards[span.split], span):
            demo = record.read(data, f"{shard.path}, record {index}", f"record {index} of {shard.path.name}")
            if demo is not None:
                tally.reads()
                yield demo
    tally.close(folder)


def rlds_meaning(path: Path) -> ActionMeaning:
    """What the features.json of a dataset says of its actions."""
    leaf = read_features(_folder(path) / "features.json").action()
    return meaning_of_names(None, leaf.shape[0] if leaf.shape else 1, leaf.description)


def _folder(path: Path) -> Path:
    folder = find_rlds(Path(path))
    if folder is None:
        raise UserError(f"{path} has no features.json: it is not a folder of an RLDS dataset.")
    return folder


def _records(shards: Sequence[Shard], span: Span) -> Iterator[tuple[Shard, int, bytes]]:
    """The records of a span with their shards and their numbers there."""
    start = 0
    for shard in shards:
        if start < span.last and span.first < start + shard.count:
            for index, data in enumerate(shard.records()):
                if span.first <= start + index < span.last:
                    yield shard, index, data
        start += shard.count


@dataclasses.dataclass(frozen=True)
class _Record:
    """Turns records of one dataset into demos.

    Attributes:
        features: what the dataset declares.
        action: what it declares of the actions.
        names: model camera -> feature.
        told: the feature with the instruction, if there is one.
        instruction: said where that is missing.
        tally: counts what is left out.
        sizes: model camera -> height and width of its frames.
    """

    features: Features
    action: Leaf
    names: Mapping[str, str]
    told: str | None
    instruction: str
    tally: Tally
    sizes: Mapping[str, int]

    def read(self, record: bytes, where: str, name: str) -> Demo | None:
        """The demo of one record, None if it is left out; `where` is for messages about it, `name` to be counted."""
        try:
            values = parse_example(record)
        except ValueError:
            raise UserError(f"{where} is not a tf.train.Example: the file is no RLDS dataset.") from None
        for key in (ACTION, *self.names.values(), *((self.told,) if self.told else ())):
            if key not in values:
                have = ", ".join(sorted(values)) or "nothing"
                raise UserError(f"{where} lacks {key}, which features.json promises (it has {have}).")
        actions = decode_tensors(self.action, values[ACTION], f"{where}: {ACTION}")
        if not len(actions):
            self.tally.leaves_out(Reason.EMPTY, name)
            return None
        actions = checked_actions(actions.reshape(len(actions), -1), where)
        if self._has_padding(values) and self.tally.leaves_out(Reason.PADDING, name):
            return None
        instruction = self._instruction(values, where, name)
        if not instruction.strip() and self.tally.leaves_out(Reason.UNTOLD, name):
            return None
        images = {}
        for camera, key in self.names.items():
            if len(actions) != _steps(values[key], self.features.leaves[key]):
                raise UserError(f"{where}: {key} has {len(values[key])} images for {len(actions)} actions.")
            leaf = self.features.leaves[key]
            images[camera] = decode_frames(leaf, values[key], f"{where}: {key}", self.sizes.get(camera))
        return Demo(images, actions, instruction)

    def _has_padding(self, values: Mapping[str, Any]) -> bool:
        for key in self.names.values():
            flag = self.features.flag(key)
            if flag in values and not np.any(np.asarray(values[flag]) != 0):
                return True
            if self.features.leaves[key].kind == "image" and any(image == b"" for image in values[key]):
                return True
        return False

    def _instruction(self, values: Mapping[str, Any], where: str, name: str) -> str:
        if not self.told:
            return self.instruction
        texts = values[self.told]
        if not isinstance(texts, list):
            raise UserError(f"{where}: {self.told} holds numbers, where features.json declares text.")
        said = list(dict.fromkeys(text for text in texts if text.strip()))
        if len(said) > 1:
            self.tally.notes("have several instructions, of which the first is told", name)
        return said[0].decode(errors="replace") if said else self.instruction


def _steps(values: Any, leaf: Leaf) -> int:
    """How many steps the values of a camera belong to."""
    if leaf.kind == "tensor" and leaf.encoding == "none":
        return len(values) // int(np.prod(leaf.shape))
    return len(values)
