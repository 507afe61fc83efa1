"""RLDS datasets: tests/data/rlds was written by tensorflow_datasets 4.9.10 with tests/data/rlds/make_tiny_push.py.

Episode e, step t: v = 10 e + t; image filled with (v, 2 v, 100), wrist image with 8 v, action (v / 100, ..., 1).
"""

import json
import shutil
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from octo_teacher.data.readers import format_of
from octo_teacher.data.rlds import read_rlds
from octo_teacher.data.tfrecord import masked_crc, parse_example, read_records
from rpd_jax.errors import UserError

DATASET = Path(__file__).parents[2] / "data" / "rlds" / "tiny_push"
SHARD = "tiny_push-train.tfrecord-00000-of-00001"


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(DATASET / "1.0.0", tmp_path / "copy"))


def test_everything_that_tfds_wrote_is_read():
    assert format_of(DATASET) == "rlds"
    demos = list(read_rlds(DATASET, {"primary": "image", "wrist": "wrist_image"}))
    assert [demo.instruction for demo in demos] == ["push cube 0", "push cube 1"]
    for episode, (demo, length) in enumerate(zip(demos, (3, 2), strict=True)):
        v = 10 * episode + np.arange(length)
        np.testing.assert_allclose(demo.actions, np.stack([*[v / 100] * 6, v * 0 + 1.0], axis=1), rtol=1e-6)
        colors = np.stack([v, 2 * v, v * 0 + 100], axis=1)
        np.testing.assert_array_equal(
            demo.images["primary"], np.broadcast_to(colors[:, None, None], (length, 16, 16, 3))
        )
        assert demo.images["wrist"].shape == (length, 8, 8, 3)
        assert np.abs(demo.images["wrist"] - 8.0 * v[:, None, None, None]).max() <= 2  # JPEG


def test_the_checksum_is_that_of_the_format():
    # CRC-32C of "123456789" is 0xe3069283 (RFC 3720, B.4); masked as in TensorFlow's crc32c.h
    assert google_crc32c.value(b"123456789") == 0xE3069283
    rotated = (0xE3069283 >> 15 | 0xE3069283 << 17) & 0xFFFFFFFF
    assert masked_crc(b"123456789") == (rotated + 0xA282EAD8) % 2**32


def frame(record: bytes) -> bytes:
    length = struct.pack("<Q", len(record))
    return length + struct.pack("<I", masked_crc(length)) + record + struct.pack("<I", masked_crc(record))


def test_a_missing_choice_is_told_with_what_there_is(copy):
    with pytest.raises(UserError, match=r"has 2 images under .*\(image, wrist_image\)"):
        next(read_rlds(copy))
    with pytest.raises(UserError, match="has no image steps/observation/top"):
        next(read_rlds(copy, {"primary": "top"}))
    with pytest.raises(UserError, match=r"has no split 'test'.*its splits are train \(2\)"):
        next(read_rlds(copy, {"primary": "image"}, split="test"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-3], "is cut off in record 1"),
        (lambda data: data + b"1234", "is cut off in the header of record 2"),
        (lambda data: data[:200] + b"!!" + data[202:], "the checksum of record 0 is wrong"),
        (lambda data: b"\x89" + data[1:], "the checksum of record 0's length is wrong"),
        (lambda data: frame(b"no message") * 2, "record 0 is not a tf.train.Example"),
        (lambda data: frame(b"") * 2, "record 0 lacks steps/action"),
    ],
)
def test_a_damaged_shard_is_named_with_the_record(copy, damage, message):
    shard = copy / SHARD
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        list(read_rlds(copy, {"primary": "image"}))
    assert str(shard) in str(error.value)


def test_a_broken_image_is_named_with_its_key(copy):
    shard = copy / SHARD
    records = list(read_records(shard))
    image = parse_example(records[1])["steps/observation/image"][1]
    shard.write_bytes(frame(records[0]) + frame(records[1].replace(image, b"x" * len(image))))
    with pytest.raises(UserError, match="record 1: steps/observation/image holds something else"):
        list(read_rlds(copy, {"primary": "image"}))


def edit_features(folder, edit):
    path = folder / "features.json"
    tree = json.loads(path.read_text())
    edit(tree["featuresDict"]["features"])
    path.write_text(json.dumps(tree))


def test_a_malformed_features_json_is_named_with_the_key(copy):
    def step(tree):
        return tree["steps"]["sequence"]["feature"]["featuresDict"]["features"]

    edit_features(copy, lambda tree: step(tree)["action"]["tensor"]["shape"].update(dimensions=["4", "4"]))
    with pytest.raises(UserError, match=r"steps/action has the shape \['4', '4'\]"):
        next(read_rlds(copy, {"primary": "image"}))
    edit_features(copy, lambda tree: step(tree)["action"]["tensor"]["shape"].update(dimensions=["4"]))
    with pytest.raises(UserError, match="steps/action has 21 numbers, which is no number of 4-D actions"):
        next(read_rlds(copy, {"primary": "image"}))
    edit_features(copy, lambda tree: step(tree).pop("action"))
    with pytest.raises(UserError, match=r"features.json lacks steps/action"):
        next(read_rlds(copy, {"primary": "image"}))
    edit_features(copy, lambda tree: tree.pop("steps"))
    with pytest.raises(UserError, match=r"features.json lacks the key steps"):
        next(read_rlds(copy, {"primary": "image"}))
    (copy / "features.json").write_text("{")
    with pytest.raises(UserError, match=r"features.json is not valid json"):
        next(read_rlds(copy, {"primary": "image"}))


def test_without_an_instruction_one_must_be_given(copy):
    def without(tree):
        tree["steps"]["sequence"]["feature"]["featuresDict"]["features"].pop("language_instruction")

    edit_features(copy, without)
    with pytest.raises(UserError, match=r"lacks steps/language_instruction.*config.instruction"):
        next(read_rlds(copy, {"primary": "image"}))
    assert next(read_rlds(copy, {"primary": "image"}, instruction="push")).instruction == "push"
