"""Reads RLDS datasets as TFDS writes them: a folder with features.json and TFRecord shards, one episode per record.

Inside a record each step feature is flattened to steps/<path>, all steps behind each other (tensorflow_datasets,
core/example_serializer.py).
"""

import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from octo_teacher.data.episodes import Demo
from octo_teacher.data.tfrecord import parse_example, read_records
from rpd_jax.errors import UserError

ACTION = "steps/action"
INSTRUCTIONS = (
    "steps/language_instruction",
    "steps/observation/natural_language_instruction",
    "steps/observation/language_instruction",
)
OBSERVATION = "steps/observation/"


def find_rlds(path: Path) -> Path | None:
    """`path` if it holds features.json, else the latest version below it, else None."""
    if (path / "features.json").is_file():
        return path
    found = [file.parent for pattern in ("*", "*/*") for file in path.glob(f"{pattern}/features.json")]
    return max(found, key=lambda folder: [int(part) for part in re.findall(r"\d+", folder.name)], default=None)


def read_rlds(
    path: Path, cameras: Mapping[str, str] | None = None, *, instruction: str = "", split: str = "train"
) -> Iterator[Demo]:
    """Yields the episodes of one split.

    Args:
        path: the folder with features.json, or one above it.
        cameras: model camera -> image feature under steps/observation; "" is its only image.
        instruction: said to the robot where the dataset holds no instruction.
        split: the part of the file names before ".tfrecord".

    Raises:
        UserError: a missing or malformed file, with its name and the key.
    """
    folder = find_rlds(Path(path))
    if folder is None:
        raise UserError(f"{path} has no features.json: it is not a folder of an RLDS dataset.")
    features = _read_features(folder / "features.json")
    names = {camera: _image_key(features, key, folder) for camera, key in (cameras or {"primary": ""}).items()}
    action_dim = _action_dim(features, folder)
    told = next((key for key in INSTRUCTIONS if key in features), None)
    if told is None and not instruction:
        raise UserError(
            f"{folder / 'features.json'} lacks {INSTRUCTIONS[0]}: say what the robot was told with config.instruction."
        )
    shards = sorted(folder.glob(f"*-{split}.tfrecord*"))
    if not shards:
        raise UserError(f"{folder} holds no file *-{split}.tfrecord-*: the dataset was not fully copied.")
    for shard in shards:
        for index, record in enumerate(read_records(shard)):
            yield _episode(record, f"{shard}, record {index}", names, action_dim, told, instruction)


def _episode(
    record: bytes, where: str, names: Mapping[str, str], action_dim: int, told: str | None, instruction: str
) -> Demo:
    try:
        values = parse_example(record)
    except ValueError:
        raise UserError(f"{where} is not a tf.train.Example: the file is no RLDS dataset.") from None
    for key in (ACTION, *names.values(), *((told,) if told else ())):
        if key not in values:
            raise UserError(f"{where} lacks {key}, which features.json promises.")
    actions = np.asarray(values[ACTION], np.float32)
    if actions.size == 0 or actions.size % action_dim:
        raise UserError(f"{where}: {ACTION} has {actions.size} numbers, which is no number of {action_dim}-D actions.")
    actions = actions.reshape(-1, action_dim)
    images = {}
    for camera, key in names.items():
        if len(values[key]) != len(actions):
            raise UserError(f"{where}: {key} has {len(values[key])} images for {len(actions)} actions.")
        images[camera] = np.stack([decode_image(image, f"{where}: {key}") for image in values[key]])
    if told:
        instruction = values[told][0].decode(errors="replace")
    return Demo(images, actions, instruction)


def decode_image(encoded: bytes, where: str) -> np.ndarray:
    """Decodes a PNG or JPEG to uint8 [H, W, 3]; raises UserError that starts with `where`."""
    try:
        return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for broken files
        raise UserError(f"{where} holds something else than a PNG or JPEG image: the file is damaged.") from None


def _read_features(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the leaves of a features.json by flattened name."""
    try:
        tree = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid json ({error}): copy it again.") from None
    leaves: dict[str, dict[str, Any]] = {}

    def walk(node: Any, name: str) -> None:
        if not isinstance(node, dict):
            raise UserError(f"{path} describes no feature at {name or 'its top'}: it is not a TFDS features.json.")
        if "featuresDict" in node:
            for key, child in node["featuresDict"].get("features", {}).items():
                walk(child, f"{name}/{key}" if name else key)
        elif "sequence" in node:
            walk(node["sequence"].get("feature"), name)
        else:
            leaves[name] = node

    walk(tree, "")
    if not any(name.startswith("steps/") for name in leaves):
        raise UserError(f"{path} lacks the key steps: it is not an RLDS dataset.")
    return leaves


def _image_key(features: Mapping[str, dict[str, Any]], key: str, folder: Path) -> str:
    images = [name for name, leaf in features.items() if name.startswith(OBSERVATION) and "image" in leaf]
    wanted = OBSERVATION + key if key else images[0] if len(images) == 1 else None
    if wanted not in images:
        have = ", ".join(name.removeprefix(OBSERVATION) for name in images) or "none"
        asked = f"no image {OBSERVATION}{key}" if key else f"{len(images)} images under {OBSERVATION}"
        raise UserError(
            f"{folder / 'features.json'} has {asked}: choose with config.cameras among its images ({have})."
        )
    return wanted


def _action_dim(features: Mapping[str, dict[str, Any]], folder: Path) -> int:
    leaf = features.get(ACTION)
    if leaf is None:
        raise UserError(f"{folder / 'features.json'} lacks {ACTION}: it is not an RLDS dataset with one action vector.")
    dimensions = leaf.get("tensor", {}).get("shape", {}).get("dimensions", [])
    if len(dimensions) != 1 or not str(dimensions[0]).isdigit() or not int(dimensions[0]):
        raise UserError(f"{folder / 'features.json'}: {ACTION} has the shape {dimensions}, not that of one vector.")
    return int(dimensions[0])
