"""What a TFDS features.json declares of the steps of an RLDS dataset, and how their values are decoded.

Tensors are stored as numbers, or each as its raw or zlib-compressed little-endian bytes (tensorflow_datasets,
core/features/tensor_feature.py).
"""

import dataclasses
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from octo_teacher.data.images import decode_images
from rpd_jax.errors import UserError
from rpd_jax.run.json_file import field, read_object

ACTION = "steps/action"
OBSERVATION = "steps/observation/"
INSTRUCTIONS = (
    "steps/language_instruction",
    "steps/observation/natural_language_instruction",
    "steps/observation/language_instruction",
)
_ENCODINGS = ("none", "bytes", "zlib")
_DTYPES = (
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
)
_MOST_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One feature.

    Attributes:
        kind: "tensor", "image", "text" or what else the file calls it.
        shape: of one step's value; -1 where it varies.
        dtype: numpy's name of it.
        encoding: of a tensor: none, bytes, zlib.
        description: what the dataset's author says of it.
        sequences: how many sequences it lies in; 1 for what each step has once.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str
    encoding: str
    description: str
    sequences: int


@dataclasses.dataclass(frozen=True)
class Features:
    """The leaves of a features.json by flattened name."""

    path: Path
    leaves: Mapping[str, Leaf]

    def image_key(self, camera: str) -> str:
        """The feature of a camera, or the only one if `camera` is ""; raises UserError with those that there are."""
        images = [name for name, leaf in self.leaves.items() if name.startswith(OBSERVATION) and _is_image(leaf)]
        wanted = OBSERVATION + camera if camera else images[0] if len(images) == 1 else None
        if wanted not in images:
            have = ", ".join(name.removeprefix(OBSERVATION) for name in images) or "none"
            asked = f"no image {OBSERVATION}{camera}" if camera else f"{len(images)} images under {OBSERVATION}"
            raise UserError(f"{self.path} has {asked}: choose with config.cameras among its images ({have}).")
        self._once(wanted)
        return wanted

    def action(self) -> Leaf:
        """What is declared of the actions; raises UserError if they are not one vector of numbers in each step."""
        leaf = self.leaves.get(ACTION)
        if leaf is None:
            have = ", ".join(name.removeprefix("steps/") for name in self.leaves if name.startswith("steps/"))
            raise UserError(
                f"{self.path} lacks {ACTION}: it is not an RLDS dataset with one action vector (its steps have {have})."
            )
        self._once(ACTION)
        dimensions = [str(size) for size in leaf.shape]
        if leaf.kind != "tensor" or len(leaf.shape) > 1 or any(size < 1 for size in leaf.shape):
            raise UserError(f"{self.path}: {ACTION} has the shape {dimensions}, not that of one vector.")
        if leaf.dtype not in _DTYPES:
            raise UserError(
                f"{self.path}: {ACTION} has numbers of type {leaf.dtype!r}; allowed are {', '.join(_DTYPES)}."
            )
        return leaf

    def instruction(self) -> str | None:
        """The feature that holds what the robot was told, None if there is none."""
        name = next((key for key in INSTRUCTIONS if key in self.leaves), None)
        if name is not None:
            leaf = self.leaves[name]
            if not (leaf.kind == "text" or (leaf.kind == "tensor" and leaf.dtype in ("string", "object"))):
                raise UserError(f"{self.path}: {name} is no text but {leaf.kind} of {leaf.dtype}: it cannot be read.")
        return name

    def flag(self, camera_key: str) -> str | None:
        """The feature that says whether an episode has a camera's frames at all (as Bridge's has_image_1)."""
        name = f"episode_metadata/has_{camera_key.removeprefix(OBSERVATION)}"
        return name if name in self.leaves else None

    def _once(self, name: str) -> None:
        if self.leaves[name].sequences != 1:
            raise UserError(f"{self.path}: {name} is a sequence within each step, which cannot be read.")


def read_features(path: Path) -> Features:
    """Reads a features.json; raises UserError if it is missing, malformed, or not of an RLDS dataset."""
    tree = read_object(path, "it is not an RLDS dataset")
    leaves: dict[str, Leaf] = {}
    _walk(tree, "", 0, leaves, path)
    if not any(name.startswith("steps/") for name in leaves):
        raise UserError(f"{path} lacks the key steps: it is not an RLDS dataset.")
    return Features(path, leaves)


def decode_tensors(leaf: Leaf, values: Any, where: str) -> np.ndarray:
    """Decodes the values of a tensor feature in all steps.

    Args:
        leaf: its declaration, of a fixed shape.
        values: numbers of all steps behind each other, or a list of bytes, one of each step.
        where: the record and the feature, for messages.

    Returns:
        An array [T, *leaf.shape].

    Raises:
        UserError: the values are not what is declared.
    """
    size = math.prod(leaf.shape)
    if leaf.encoding == "none":
        if isinstance(values, list):
            if values:
                raise UserError(f"{where} holds bytes, where features.json declares numbers: the file is damaged.")
            values = np.zeros(0, leaf.dtype)
        if values.size % size:
            raise UserError(
                f"{where} has {values.size} numbers, which is no number of "
                f"{'x'.join(map(str, leaf.shape)) or '1'}-D {'actions' if where.endswith(ACTION) else 'values'}."
            )
        return values.reshape(-1, *leaf.shape)
    if not isinstance(values, list):
        raise UserError(f"{where} holds numbers, where features.json declares bytes: the file is damaged.")
    dtype = np.dtype(leaf.dtype).newbyteorder("<")
    if size * dtype.itemsize * len(values) > _MOST_BYTES:
        raise UserError(f"{where} has {len(values)} values of {size * dtype.itemsize} bytes: the file is damaged.")
    steps = [_raw(value, leaf.encoding, size * dtype.itemsize, where) for value in values]
    return np.frombuffer(b"".join(steps), dtype).reshape(-1, *leaf.shape)


def decode_frames(leaf: Leaf, values: Any, where: str, size: int | None = None) -> np.ndarray:
    """Decodes the frames of a camera, an image feature or a tensor, to uint8 [T, H, W, 3].

    Encoded images are resized to `size`, if there is one. Raises UserError as `decode_tensors` does.
    """
    if leaf.kind == "tensor":
        numbers = decode_tensors(leaf, values, where)
        with np.errstate(invalid="ignore"):
            frames = numbers.astype(np.uint8)  # a tf.train.Example holds them as int64
        if not np.array_equal(frames, numbers):
            raise UserError(
                f"{where} holds other numbers than 0 to 255, as features.json declares: the file is damaged."
            )
        return frames
    if not isinstance(values, list):
        raise UserError(f"{where} holds numbers, where features.json declares images: the file is damaged.")
    return decode_images(values, where, size)


def _raw(value: bytes, encoding: str, size: int, where: str) -> bytes:
    if encoding == "zlib":
        try:
            value = zlib.decompressobj().decompress(value, size + 1)
        except zlib.error:
            raise UserError(f"{where} is not compressed as features.json declares: the file is damaged.") from None
    if len(value) != size:
        raise UserError(f"{where} has values of {len(value)} bytes, where features.json declares {size}.")
    return value


def _is_image(leaf: Leaf) -> bool:
    if leaf.dtype != "uint8":
        return False
    return leaf.kind == "image" or (
        leaf.kind == "tensor" and len(leaf.shape) == 3 and leaf.shape[-1] == 3 and min(leaf.shape) > 0
    )


def _walk(node: Any, name: str, sequences: int, leaves: dict[str, Leaf], path: Path) -> None:
    if not isinstance(node, dict):
        raise UserError(f"{path} describes no feature at {name or 'its top'}: it is not a TFDS features.json.")
    where = f"{path}: {name or 'top'}"
    if "featuresDict" in node:
        children = field(field(node, "featuresDict", dict, where), "features", dict, where, {})
        for key, child in children.items():
            _walk(child, f"{name}/{key}" if name else key, sequences, leaves, path)
    elif "sequence" in node:
        _walk(field(node, "sequence", dict, where).get("feature"), name, sequences + 1, leaves, path)
    else:
        leaves[name] = _leaf(node, sequences, where)


def _leaf(node: Mapping[str, Any], sequences: int, where: str) -> Leaf:
    kind = next((key for key in ("tensor", "image", "text") if key in node), "")
    kind = kind or next((key for key in node if key not in ("pythonClassName", "description")), "unknown")
    content = node[kind] if isinstance(node.get(kind), dict) else {}
    shape = field(field(content, "shape", dict, where, {}), "dimensions", list, where, [])
    if not all(str(size).lstrip("-").isdecimal() and len(str(size)) < 12 for size in shape):
        raise UserError(f"{where} has the shape {shape}, which are no numbers: the file is damaged.")
    encoding = field(content, "encoding", str, where, "none").lower() or "none"
    if kind == "tensor" and encoding not in _ENCODINGS:
        raise UserError(f"{where} has the encoding {encoding!r}; those that can be read are {', '.join(_ENCODINGS)}.")
    return Leaf(
        kind,
        tuple(int(size) for size in shape),
        field(content, "dtype", str, where, "uint8" if kind == "image" else ""),
        encoding,
        _description(node),
        sequences,
    )


def _description(node: Mapping[str, Any]) -> str:
    text = node.get("description")
    return " ".join(text.split()) if isinstance(text, str) else ""
