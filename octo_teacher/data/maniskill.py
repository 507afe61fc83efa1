"""Reads demos in ManiSkill's own h5 + json layout."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from octo_teacher.data.episodes import Demo
from octo_teacher.data.maniskill_files import CAMERA, open_h5, read_json, trajectory_names
from rpd_jax.errors import UserError
from rpd_jax.tasks import find_task

ACTION_DIM = 7


def read_maniskill(
    path: Path, cameras: Mapping[str, str] | None = None, *, only_successful: bool = True
) -> Iterator[Demo]:
    """Yields the episodes of an h5 + json demo file.

    Args:
        path: the h5 file.
        cameras: model camera -> camera under obs/sensor_data; "" is the human camera.
        only_successful: leave out failed episodes and those longer than the task's limit.

    Raises:
        UserError: a missing or malformed file, with its name and the key.
    """
    path = Path(path)
    header = read_json(path)
    try:
        env_info = header["env_info"]
        task = find_task(env_info["env_id"])
        limit = env_info.get("max_episode_steps") or task.max_episode_steps
        entries = {entry["episode_id"]: entry for entry in header["episodes"]}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path.with_suffix('.json')} lacks the key {error}: it is not a ManiSkill demo file."
        ) from None
    found = False
    with open_h5(path) as file:
        for name in trajectory_names(file):
            group = file[name]
            actions = _dataset(group, "actions", path)[:]
            if actions.ndim != 2 or actions.shape[1] != ACTION_DIM:
                raise UserError(f"{path}: {name}/actions has shape {actions.shape}, not [steps, {ACTION_DIM}].")
            frames = {
                camera: _frames(group, f"obs/sensor_data/{key or CAMERA}/rgb", path, len(actions))
                for camera, key in (cameras or {"primary": ""}).items()
            }
            entry = entries.get(int(name.removeprefix("traj_")), {})
            if only_successful and (not entry.get("success", True) or len(actions) > limit):
                continue
            found = True
            yield Demo(
                {camera: _load(dataset, len(actions), path) for camera, dataset in frames.items()},
                actions.astype(np.float32),
                task.instruction,
            )
    if not found:
        raise UserError(f"{path} holds no usable episode: record with 'python -m octo_teacher.demos record'.")


def _frames(group: h5py.Group, key: str, path: Path, steps: int) -> h5py.Dataset:
    frames = _dataset(group, key, path)
    where = f"{path}: {group.name.lstrip('/')}/{key}"
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise UserError(f"{where} is {frames.dtype} {frames.shape}, not uint8 [steps + 1, H, W, 3].")
    if len(frames) not in (steps, steps + 1):
        raise UserError(f"{where} has {len(frames)} frames for {steps} actions.")
    return frames


def _load(frames: h5py.Dataset, steps: int, path: Path) -> np.ndarray:
    try:
        return frames[:steps]
    except OSError:
        raise UserError(f"{path}: {frames.name.lstrip('/')} cannot be read: the file is damaged.") from None


def _dataset(group: h5py.Group, key: str, path: Path) -> h5py.Dataset:
    dataset = group.get(key)
    if not isinstance(dataset, h5py.Dataset):
        raise UserError(
            f"{path} lacks {group.name.lstrip('/')}/{key}: it is not a ManiSkill demo file with that camera."
        )
    return dataset
