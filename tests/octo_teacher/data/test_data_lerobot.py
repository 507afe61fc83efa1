"""LeRobot datasets of both layouts, written here with pyarrow and ffmpeg as LeRobot's documentation describes them.

Episode e, step t: v = 100 e + 20 t; frames are filled with grey v, actions with v / 100.
"""

import io
import json
import re

import imageio.v2 as imageio
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from octo_teacher.data.lerobot import read_lerobot
from octo_teacher.data.readers import format_of
from rpd_jax.errors import UserError

TOP, HAND = "observation.images.top", "observation.images.hand"
LENGTHS = (3, 2)
TASKS = ("push the cube", "pull the cube")


def value(episode: int, step: int) -> int:
    return 100 * episode + 20 * step


def write_video(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [np.full((16, 32, 3), v, np.uint8) for v in values]
    imageio.mimwrite(path, frames, fps=10, codec="libx264", macro_block_size=1, output_params=["-qp", "0"])


def rows(episode: int) -> dict:
    def png(v: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 4, 3), v, np.uint8)).save(buffer, "png")
        return buffer.getvalue()

    values = [value(episode, step) for step in range(LENGTHS[episode])]
    return {
        "action": pa.array([[v / 100] * 7 for v in values], pa.list_(pa.float32())),
        "episode_index": [episode] * len(values),
        "frame_index": list(range(len(values))),
        "task_index": [1 - episode] * len(values),
        HAND: [{"bytes": png(v), "path": None} for v in values],
    }


def write_table(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_info(folder, **changes):
    info = {
        "codebase_version": "v2.1",
        "fps": 10,
        "chunks_size": 1000,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            TOP: {"dtype": "video", "shape": [16, 32, 3]},
            HAND: {"dtype": "image", "shape": [4, 4, 3]},
            "action": {"dtype": "float32", "shape": [7]},
        },
    }
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info | changes))


def write_v2(folder):
    write_info(folder)
    episodes = [{"episode_index": e, "tasks": [TASKS[1 - e]], "length": LENGTHS[e]} for e in range(2)]
    (folder / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, episodes)))
    tasks = [{"task_index": i, "task": task} for i, task in enumerate(TASKS)]
    (folder / "meta" / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    for e in range(2):
        write_table(folder / f"data/chunk-000/episode_{e:06d}.parquet", rows(e))
        write_video(folder / f"videos/chunk-000/{TOP}/episode_{e:06d}.mp4", [value(e, t) for t in range(LENGTHS[e])])


def write_v3(folder):
    write_info(
        folder,
        codebase_version="v3.0",
        data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        video_path="videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    )
    write_table(
        folder / "meta/episodes/chunk-000/file-000.parquet",
        {
            "episode_index": [0, 1],
            "data/chunk_index": [0, 0],
            "data/file_index": [0, 0],
            f"videos/{TOP}/chunk_index": [0, 0],
            f"videos/{TOP}/file_index": [0, 0],
            f"videos/{TOP}/from_timestamp": [0.0, 0.3],
            f"videos/{TOP}/to_timestamp": [0.3, 0.5],
        },
    )
    # pandas' name of an index without a name
    write_table(folder / "meta/tasks.parquet", {"task_index": [0, 1], "__index_level_0__": list(TASKS)})
    tables = [pa.table(rows(e)) for e in range(2)]
    (folder / "data/chunk-000").mkdir(parents=True)
    pq.write_table(pa.concat_tables(tables), folder / "data/chunk-000/file-000.parquet")
    write_video(
        folder / f"videos/{TOP}/chunk-000/file-000.mp4", [value(e, t) for e in range(2) for t in range(LENGTHS[e])]
    )


@pytest.mark.parametrize("write", [write_v2, write_v3])
def test_both_layouts_give_the_same_demos(tmp_path, write):
    write(tmp_path)
    assert format_of(tmp_path) == "lerobot"
    demos = list(read_lerobot(tmp_path, {"primary": TOP, "wrist": HAND}))
    assert [demo.instruction for demo in demos] == [TASKS[1], TASKS[0]]
    for episode, demo in enumerate(demos):
        v = np.array([value(episode, step) for step in range(LENGTHS[episode])])
        np.testing.assert_allclose(demo.actions, np.repeat(v[:, None] / 100, 7, axis=1), rtol=1e-6)
        assert demo.images["primary"].shape == (len(v), 16, 32, 3)
        # grey goes through video-range luma and back
        assert np.abs(demo.images["primary"] - 1.0 * v[:, None, None, None]).max() <= 2
        np.testing.assert_array_equal(demo.images["wrist"], np.broadcast_to(v[:, None, None, None], (len(v), 4, 4, 3)))


def test_a_video_of_another_length_than_its_rows_is_refused(tmp_path):
    """v3: the metadata says where each episode's frames end, and nobody's frames may follow."""
    write_v3(tmp_path)
    metadata = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    whole = pq.read_table(metadata)
    column = f"videos/{TOP}/to_timestamp"
    at = whole.column_names.index(column)
    for ends, message in (
        ([0.4, 0.5], "episode 0 is said to last from second 0 to 0.4, which is not the 3 frames"),
        ([0.3, 1e308], "episode 1 is said to last from second 0.3 to 1e+308"),
    ):
        pq.write_table(whole.set_column(at, column, [ends]), metadata)
        with pytest.raises(UserError, match=re.escape(message)):
            list(read_lerobot(tmp_path, {"primary": TOP}))
    pq.write_table(whole.drop_columns([column]), metadata)  # v3 without it
    assert len(list(read_lerobot(tmp_path, {"primary": TOP}))) == 2
    write_video(tmp_path / f"videos/{TOP}/chunk-000/file-000.mp4", [0] * 6)
    assert read_first(tmp_path, TOP).images["primary"].shape[0] == 3  # another episode than the last
    with pytest.raises(UserError, match=r"file-000\.mp4 has more frames than the 5 that its episodes have rows for"):
        list(read_lerobot(tmp_path, {"primary": TOP}))


def read_first(folder, key=HAND):
    return next(read_lerobot(folder, {"primary": key}))


def test_what_is_missing_or_malformed_is_named(tmp_path):
    def refused(message, key=HAND, cameras=None):
        with pytest.raises(UserError, match=message):
            list(read_lerobot(tmp_path, cameras or {"primary": key}))

    refused(r"meta/info.json is missing")
    write_v2(tmp_path)
    refused(rf"has 2 image features.*\({TOP}, {HAND}\)", key="")
    refused("no image feature observation.images.foot", key="observation.images.foot")

    video = tmp_path / f"videos/chunk-000/{TOP}/episode_000001.mp4"
    write_video(video, [0])
    refused("episode_000001.mp4 has 1 frames; 2 are needed", key=TOP)
    write_video(video, [0, 0, 0])
    refused("episode_000001.mp4 has more frames than the 2 that its episodes have rows for", key=TOP)
    video.write_bytes(b"no video")
    refused("episode_000001.mp4 is not a readable video", key=TOP)
    video.unlink()
    refused("episode_000001.mp4 is missing", key=TOP)

    table = tmp_path / "data/chunk-000/episode_000000.parquet"
    columns = rows(0)
    write_table(table, {name: column for name, column in columns.items() if name != "action"})
    refused("episode_000000.parquet lacks the column action")
    write_table(table, columns | {HAND: [{"bytes": b"no image", "path": None}] * 3})
    refused(rf"episode_000000.parquet, episode 0: {HAND} holds something else than a PNG")
    write_table(table, columns | {"task_index": [7] * 3})
    refused("task_index 7 has no entry in meta/tasks")
    table.write_bytes(table.read_bytes()[:100])
    refused("episode_000000.parquet is not a readable parquet file")

    (tmp_path / "meta" / "tasks.jsonl").write_text("{")
    refused("tasks.jsonl is not valid json")
    (tmp_path / "meta" / "tasks.jsonl").write_text('{"task_index": 0}')
    refused("meta/tasks lacks the key task")
    write_info(tmp_path, codebase_version="v1.6")
    refused("codebase_version v1.6; v2.x and v3.x can be read")
    write_info(tmp_path, data_path="../../{episode_index}.parquet")
    refused("data_path points outside the dataset")
    (tmp_path / "meta" / "info.json").write_text("{}")
    refused("info.json lacks the key codebase_version")
