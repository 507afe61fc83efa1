"""Writes small datasets of every format, byte by byte where the format is simple enough, for the tests beside it."""

import io
import json
import struct
from pathlib import Path

import h5py
import imageio.v2 as imageio
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from octo_teacher.data.tfrecord import masked_crc

IMAGE = {"image": {"shape": {"dimensions": ["8", "8", "3"]}, "dtype": "uint8", "encodingFormat": "png"}}
TEXT = {"text": {}}


def png(value, size=8):
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def write_maniskill(path, actions, *, task="PushCube-v1", mode="pd_ee_delta_pose", entries=(), size=8, limit=50):
    """`actions`: those of each episode; `entries`: what is said of some of them beyond the usual."""
    entries = dict(enumerate(entries))
    with h5py.File(path, "w") as file:
        for index, values in enumerate(actions):
            file[f"traj_{index}/actions"] = np.asarray(values, np.float32)
            frames = np.full((len(values) + 1, size, size, 3), index, np.uint8)
            key = f"traj_{index}/obs/sensor_data/human_camera/rgb"
            file.create_dataset(key, data=frames, chunks=(1, size, size, 3), compression="gzip")
    kwargs = {} if mode is None else {"control_mode": mode}
    episodes = [{"episode_id": i, "success": True, **entries.get(i, {})} for i in range(len(actions))]
    info = {"env_id": task, "env_kwargs": kwargs, "max_episode_steps": limit}
    Path(path).with_suffix(".json").write_text(json.dumps({"env_info": info, "episodes": episodes}))
    return path


def tensor(*dimensions, dtype="float32", encoding="none"):
    shape = {"dimensions": [str(size) for size in dimensions]} if dimensions else {}
    return {"tensor": {"shape": shape, "dtype": dtype, "encoding": encoding}}


def episode(actions, *, text="push the cube", more=None):
    """The features of one record: T steps of a grey image."""
    actions = np.asarray(actions, np.float32)
    features = {
        "steps/observation/image": [png(10 * step % 256) for step in range(len(actions))],
        "steps/action": actions,
        "steps/language_instruction": [text.encode()] * len(actions),
    }
    return features | (more or {})


def write_rlds(folder, shards, *, action=None, image=IMAGE, split="train", name="toy", metadata=None, **info):
    """`shards`: lists of episodes; further splits are added to the folder's dataset_info.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    steps = {
        "observation": {"featuresDict": {"features": {"image": image}}},
        "action": action or tensor(7),
        "language_instruction": TEXT,
    }
    tree = {"steps": {"sequence": {"feature": {"featuresDict": {"features": steps}}}}}
    if metadata:
        tree["episode_metadata"] = {"featuresDict": {"features": metadata}}
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": tree}}))
    info_path = folder / "dataset_info.json"
    content = {"name": name, "fileFormat": "tfrecord", "splits": []} | info
    if info_path.exists():
        content = json.loads(info_path.read_text())
    content["splits"].append({"name": split, "shardLengths": [str(len(shard)) for shard in shards]})
    info_path.write_text(json.dumps(content))
    for index, shard in enumerate(shards):
        path = folder / f"{name}-{split}.{content['fileFormat']}-{index:05d}-of-{len(shards):05d}"
        write_records(path, [example(features) for features in shard])
    return folder


def write_records(path, records):
    if ".array_record" in path.name:
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(path), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        return
    framed = []
    for record in records:
        length = struct.pack("<Q", len(record))
        framed += [length, struct.pack("<I", masked_crc(length)), record, struct.pack("<I", masked_crc(record))]
    path.write_bytes(b"".join(framed))


def example(features):
    """A serialised tf.train.Example (protobuf's wire format) of floats, integers and lists of bytes."""

    def varint(number):
        out = b""
        while number > 127:
            out, number = out + bytes([number & 127 | 128]), number >> 7
        return out + bytes([number])

    def message(field, data):
        return varint(field << 3 | 2) + varint(len(data)) + data

    def feature(values):
        if isinstance(values, list):
            return message(1, b"".join(message(1, value) for value in values))
        values = np.asarray(values).ravel()
        if values.dtype.kind == "f":
            return message(2, message(1, values.astype("<f4").tobytes()))
        return message(3, message(1, b"".join(varint(int(value) & 2**64 - 1) for value in values)))

    entries = (message(1, name.encode()) + message(2, feature(values)) for name, values in features.items())
    return message(1, b"".join(message(1, entry) for entry in entries))


TOP, HAND = "observation.images.top", "observation.images.hand"


def lerobot_rows(index, actions, task, frames=True):
    rows = {
        "action": pa.array(np.asarray(actions).tolist()),
        "episode_index": [index] * len(actions),
        "frame_index": list(range(len(actions))),
        "task_index": [task] * len(actions),
    }
    if frames:
        rows[HAND] = [{"bytes": png(10 * step % 256), "path": None} for step in range(len(actions))]
    return rows


def write_lerobot(folder, actions, *, version="v2.1", tasks=("push the cube",), names=None, video=False, **changes):
    """`actions`: those of each episode; episode i is told task i modulo their number; `changes` of info.json."""
    folder, three = Path(folder), version.startswith("v3")
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    shape = list(np.shape(actions[0])[1:]) or [1]
    info = {
        "codebase_version": version,
        "fps": 10,
        "total_episodes": len(actions),
        "total_frames": sum(map(len, actions)),
        "splits": {"train": f"0:{len(actions)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        if three
        else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if three
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            HAND: {"dtype": "image", "shape": [8, 8, 3]},
            "action": {"dtype": "float32", "shape": shape, "names": names},
        },
    }
    if video:
        info["features"][TOP] = {"dtype": "video", "shape": [16, 16, 3]}
    (folder / "meta" / "info.json").write_text(json.dumps(info | changes))
    tables = [pa.table(lerobot_rows(i, values, i % len(tasks))) for i, values in enumerate(actions)]
    if three:
        _write_v3(folder, tables, tasks, actions, video)
    else:
        lines = [{"episode_index": i, "length": len(values)} for i, values in enumerate(actions)]
        (folder / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
        lines = [{"task_index": i, "task": task} for i, task in enumerate(tasks)]
        (folder / "meta" / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
        (folder / "data/chunk-000").mkdir(parents=True, exist_ok=True)
        for i, table in enumerate(tables):
            pq.write_table(table, folder / f"data/chunk-000/episode_{i:06d}.parquet")
            if video:
                write_video(folder / f"videos/chunk-000/{TOP}/episode_{i:06d}.mp4", len(table))
    return folder


def _write_v3(folder, tables, tasks, actions, video):
    starts = np.cumsum([0, *map(len, actions)]) / 10
    columns = {
        "episode_index": list(range(len(actions))),
        "length": [len(values) for values in actions],
        "data/chunk_index": [0] * len(actions),
        "data/file_index": [0] * len(actions),
    }
    if video:
        columns |= {f"videos/{TOP}/{key}": [0] * len(actions) for key in ("chunk_index", "file_index")}
        columns[f"videos/{TOP}/from_timestamp"] = starts[:-1].tolist()
        write_video(folder / f"videos/{TOP}/chunk-000/file-000.mp4", sum(map(len, actions)))
    for path, table in (
        ("meta/episodes/chunk-000/file-000.parquet", pa.table(columns)),
        ("meta/tasks.parquet", pa.table({"task_index": list(range(len(tasks))), "task": list(tasks)})),
        ("data/chunk-000/file-000.parquet", pa.concat_tables(tables)),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / path)


def write_video(path, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [np.full((16, 16, 3), 10 * step % 256, np.uint8) for step in range(count)]
    imageio.mimwrite(path, frames, fps=10, codec="libx264", macro_block_size=1, output_params=["-qp", "0"])
