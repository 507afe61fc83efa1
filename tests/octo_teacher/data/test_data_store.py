"""Stored demos are those of the source, are made once, and made again when the source changes."""

import pickle
import resource
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from octo_teacher.data.readers import read_demos
from octo_teacher.data.store import load_demos
from rpd_jax.errors import UserError

DATASET = Path(__file__).parents[2] / "data" / "rlds" / "tiny_push" / "1.0.0"
CAMERAS = {"primary": "image", "wrist": "wrist_image"}
load = partial(load_demos, gripper="as_is")  # it is always 1 there, which nobody says the meaning of


def test_frames_of_each_camera_at_their_size_at_random(tmp_path):
    read = []
    demos = load(DATASET, {"primary": 16, "wrist": 4}, CAMERAS, cache=tmp_path, on_episode=read.append)
    assert read == [1, 2]
    for demo, source in zip(demos, read_demos(DATASET, CAMERAS), strict=True):
        assert demo.instruction == source.instruction
        np.testing.assert_array_equal(demo.actions, source.actions)
        frames = demo.images["primary"]
        assert len(frames) == len(source.actions) and frames.shape == source.images["primary"].shape
        np.testing.assert_array_equal(frames[[1, 0]], source.images["primary"][[1, 0]])
        assert demo.images["wrist"].shape == (len(source.actions), 4, 4, 3)
        # one colour stays itself through resizing
        np.testing.assert_array_equal(demo.images["wrist"][:][:, 0, 0], source.images["wrist"][:, 0, 0])
    assert len(pickle.dumps(demos[0].images["primary"])) < 1000  # workers get the place, not the frames


def test_a_store_is_found_again_and_a_changed_source_is_read_again(tmp_path):
    source = Path(shutil.copytree(DATASET, tmp_path / "source"))

    def episodes_read(**options):
        read = []
        load(source, {"primary": 16}, CAMERAS, cache=tmp_path / "cache", on_episode=read.append, **options)
        return len(read)

    assert [episodes_read(), episodes_read()] == [2, 0]
    assert episodes_read(instruction="other") == 2
    shard = next(source.glob("*.tfrecord*"))
    shard.write_bytes(shard.read_bytes() * 2)
    info = source / "dataset_info.json"
    info.write_text(info.read_text().replace('"2"', '"4"'))
    assert episodes_read() == 4


def test_a_broken_source_leaves_no_store(tmp_path):
    source = Path(shutil.copytree(DATASET, tmp_path / "source"))
    shard = next(source.glob("*.tfrecord*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    for _ in range(2):
        with pytest.raises(UserError, match="cut off in record 1"):
            load(source, {"primary": 16}, CAMERAS, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_room_nothing_is_left_and_the_same_call_goes_on(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # as if the disk was full
    try:
        with pytest.raises(UserError, match=r"cannot be written to .*: make space or set config.cache"):
            load(DATASET, {"primary": 16}, CAMERAS, cache=tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(load(DATASET, {"primary": 16}, CAMERAS, cache=tmp_path / "cache")) == 2
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written to .*file/cache \(Not a directory\)"):
        load(DATASET, {"primary": 16}, CAMERAS, cache=tmp_path / "file" / "cache")


def test_a_damaged_store_is_made_again(tmp_path):
    load(DATASET, {"primary": 16}, CAMERAS, cache=tmp_path)
    (store,) = tmp_path.iterdir()
    for name, size in {"primary.u8": 100, "actions.npy": 40, "store.json": 9}.items():
        whole = (store / name).read_bytes()
        (store / name).write_bytes(whole[:size])
        demos = load(DATASET, {"primary": 16}, CAMERAS, cache=tmp_path)
        assert (store / name).read_bytes() == whole and len(demos) == 2


def test_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere do not exist"):
        load(tmp_path / "nowhere", {"primary": 16}, cache=tmp_path)
    with pytest.raises(UserError, match="none of the known kinds of demos"):
        load(tmp_path, {"primary": 16}, cache=tmp_path)
