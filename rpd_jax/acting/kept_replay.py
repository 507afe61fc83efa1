"""The way of a replay to the rows on disk that checkpoints share, and back.

Row r of those that came so far lies at r mod capacity of the ring. Of several devices each has such a ring, and the
rows of all of them, one device after the other, make the arrays on disk.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rpd_jax.learning.replay import Replay
from rpd_jax.run.branches import DAMAGE
from rpd_jax.run.checkpoints import ROWS, Checkpoints, read_part, read_progress, spans_of, unreadable
from rpd_jax.run.row_files import RowFiles, Rows, Span, check_complete


def kept(replay: Replay, came: int) -> tuple[dict[str, int], Rows]:
    """What a checkpoint keeps of a replay: its numbers, plain JSON values, and its rows.

    Args:
        replay: its arrays are read when the rows are.
        came: rows that each device's ring got so far.
    """
    saved = {"came": came, "count": int(replay.count), "ring": _shards(replay.labels)[0].data.shape[0]}
    return saved, Rows(*_needed(saved), partial(_read, _arrays(replay), saved["ring"]))


def refilled(replay: Replay, saved: dict[str, int], checkpoints: Checkpoints) -> Replay:
    """An empty replay with the rows of the newest checkpoint.

    Args:
        replay: gives shapes and devices.
        saved: what `kept` gave.
        checkpoints: the run's.

    Raises:
        UserError: they are damaged.
    """
    like = _arrays(replay)
    rings = {
        name: [np.zeros(shard.data.shape, array.dtype) for shard in _shards(array)] for name, array in like.items()
    }

    def put(span: Span, rows: dict[str, jax.Array]) -> None:
        slots = np.arange(span.start, span.end) % saved["ring"]
        for name, of_devices in rings.items():
            for ring, shard in zip(of_devices, _shards(rows[name]), strict=True):
                ring[slots] = shard.data

    checkpoints.read_rows(*_needed(saved), replay.labels.sharding, put)
    arrays = {}
    for name, array in like.items():
        pairs = zip(rings[name], _shards(array), strict=True)
        shards = [jax.device_put(ring, shard.device) for ring, shard in pairs]
        arrays[name] = jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)
    count = jax.device_put(np.int32(saved["count"]), replay.count.sharding)
    return replay.replace(count=count, **arrays)


def read_replay(checkpoint: Path, *names: str) -> dict[str, jax.Array]:
    """Arrays of the replay of a checkpoint, on this process's first device.

    Args:
        checkpoint: its folder, in the folder of a run's checkpoints.
        names: of the arrays of `Replay`; the others are not read.

    Raises:
        UserError: they cannot be read.
    """
    progress = read_progress(checkpoint)
    if "replay" not in progress:  # of a checkpoint that holds its replay itself
        return {name: read_part(checkpoint / "state", "replay", name) for name in names}
    files = RowFiles(checkpoint.parent / ROWS)
    try:
        rings, saved, spans = {}, progress["replay"], spans_of(progress)
        check_complete(spans, *_needed(saved))
        for span in spans:
            slots = np.arange(span.start, span.end) % saved["ring"]
            for name in set(names) - {"count"}:
                rows = np.asarray(files.read(span, name))
                rows = rows.reshape(-1, len(slots), *rows.shape[1:])  # of each device
                ring = rings.setdefault(name, np.zeros((len(rows), saved["ring"], *rows.shape[2:]), rows.dtype))
                ring[:, slots] = rows
        arrays = {name: ring.reshape(-1, *ring.shape[2:]) for name, ring in rings.items()}
        arrays["count"] = np.asarray(saved["count"], np.int32)
        return {name: jax.device_put(arrays[name]) for name in names}
    except DAMAGE as error:
        raise unreadable(checkpoint, error) from error


def read_labelled(checkpoint: Path, *names: str) -> dict[str, jax.Array]:
    """What the replay of a checkpoint holds, of one device after the other, without places that nothing came to.

    Arguments, errors as those of `read_replay`; "count" is none of the names.
    """
    rings = read_replay(checkpoint, *names, "count")
    filled, devices = int(rings.pop("count")), read_progress(checkpoint).get("devices", 1)
    return {
        name: rows.reshape(devices, -1, *rows.shape[1:])[:, :filled].reshape(-1, *rows.shape[1:])
        for name, rows in rings.items()
    }


def _read(arrays: dict[str, jax.Array], ring: int, start: int, end: int) -> dict[str, Any]:
    slots = np.arange(start, end) % ring

    def read(array: jax.Array) -> jax.Array:
        shards = [_rows(shard.data, slots) for shard in _shards(array)]
        shape = (array.shape[0] // ring * len(slots), *array.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, array.sharding, shards)

    return {name: read(array) for name, array in arrays.items()}


@jax.jit
def _rows(array: jax.Array, slots: jax.Array) -> jax.Array:
    return array[slots]


def _needed(saved: dict[str, int]) -> tuple[int, int]:
    """The first of the rows that are in the ring, and the number of those that came."""
    return max(0, saved["came"] - saved["ring"]), saved["came"]


def _shards(array: jax.Array) -> list:
    return array.addressable_shards


def _arrays(replay: Replay) -> dict[str, jax.Array]:
    arrays = {name: getattr(replay, name) for name in ("frames", "states", "labels")}
    return {name: array for name, array in arrays.items() if array is not None}
