"""Stored demos are those of the source, are made once, and made again when the source changes."""

import io
import pickle
import resource
import shutil
import tracemalloc
from functools import partial
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from demo_files import HAND, TOP, episode, write_lerobot, write_rlds
from PIL import Image

from octo_teacher.data.images import resize
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


@pytest.mark.parametrize("kind", ["video", "encoded", "rlds"])
def test_an_episode_is_never_whole_in_memory_before_it_is_resized(tmp_path, kind):
    actions = np.random.default_rng(0).uniform(-1, 1, (60, 7)).astype(np.float32)
    rows, columns = np.mgrid[:480, :640, :1][:2]
    frames = np.uint8([(rows // 2 + step * np.arange(1, 4) + columns // 3) % 256 for step in range(60)])
    buffers = [io.BytesIO() for _ in frames]
    for frame, buffer in zip(frames, buffers, strict=True):
        Image.fromarray(frame).save(buffer, "png")
    encoded, camera, name = [buffer.getvalue() for buffer in buffers], HAND, "set"
    if kind == "rlds":
        write_rlds(tmp_path / name, [[episode(actions, more={"steps/observation/image": encoded})]])
        camera = "image"
    else:
        write_lerobot(tmp_path / name, [actions], video=True)
        (table,) = (tmp_path / name / "data").rglob("*.parquet")
        columns = pq.read_table(table).to_pydict() | {HAND: [{"bytes": frame, "path": None} for frame in encoded]}
        pq.write_table(pa.table(columns), table)
    if kind == "video":
        (file,), camera = (tmp_path / name / "videos").rglob("*.mp4"), TOP
        imageio.mimwrite(file, frames, fps=10, codec="libx264", macro_block_size=1, output_params=["-qp", "0"])
    (whole,) = read_demos(tmp_path / name, {"primary": camera})
    assert whole.images["primary"].shape == frames.shape
    expected = resize(whole.images["primary"], 16)
    del whole
    tracemalloc.start()
    (demo,) = load_demos(tmp_path / name, {"primary": 16}, {"primary": camera}, cache=tmp_path / "cache")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(demo.images["primary"][:], expected)
    assert peak < frames.nbytes / 4


def test_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere do not exist"):
        load(tmp_path / "nowhere", {"primary": 16}, cache=tmp_path)
    with pytest.raises(UserError, match="none of the known kinds of demos"):
        load(tmp_path, {"primary": 16}, cache=tmp_path)
