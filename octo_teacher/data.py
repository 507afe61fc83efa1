"""Reads demos and serves training batches: ManiSkill h5 files through Grain."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from PIL import Image

from octo_teacher.demos.episode_files import CAMERA, open_h5, read_json, trajectory_names
from rpd_jax.errors import UserError
from rpd_jax.tasks import find_task

ACTION_DIM = 7


@dataclasses.dataclass(frozen=True)
class Demo:
    """One episode of T steps, whatever file format it came from.

    Attributes:
        images: uint8 [T, H, W, 3], the frame in which each action was chosen.
        actions: float32 [T, 7], labels in the environment's convention.
        instruction: what the robot was told.
    """

    images: np.ndarray
    actions: np.ndarray
    instruction: str


def read_maniskill(
    path: Path, *, image_size: int | None = None, camera: str = CAMERA, only_successful: bool = True
) -> list[Demo]:
    """Reads a ManiSkill h5 + json demo file into memory.

    Args:
        path: the h5 file.
        image_size: frames of another size are resized (Lanczos); None keeps them.
        camera: name of the camera under obs/sensor_data.
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
    demos = []
    with open_h5(path) as file:
        for name in trajectory_names(file):
            group = file[name]
            actions = _read(group, "actions", path)
            key = f"obs/sensor_data/{camera}/rgb"
            frames = _read(group, key, path, load=False)
            if actions.ndim != 2 or actions.shape[1] != ACTION_DIM:
                raise UserError(f"{path}: {name}/actions has shape {actions.shape}, not [steps, {ACTION_DIM}].")
            if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
                raise UserError(
                    f"{path}: {name}/{key} is {frames.dtype} {frames.shape}, not uint8 [steps + 1, H, W, 3]."
                )
            if len(frames) not in (len(actions), len(actions) + 1):
                raise UserError(f"{path}: {name}/{key} has {len(frames)} frames for {len(actions)} actions.")
            entry = entries.get(int(name.removeprefix("traj_")), {})
            if only_successful and (not entry.get("success", True) or len(actions) > limit):
                continue
            try:
                images = frames[: len(actions)]
            except OSError:
                raise UserError(f"{path}: {name}/{key} cannot be read: the file is damaged.") from None
            demos.append(Demo(_resize(images, image_size), actions.astype(np.float32), task.instruction))
    if not demos:
        raise UserError(f"{path} holds no usable episode: record with 'python -m octo_teacher.demos record'.")
    return demos


def _read(group, key: str, path: Path, load: bool = True):
    import h5py

    dataset = group.get(key)
    if not isinstance(dataset, h5py.Dataset):
        raise UserError(
            f"{path} lacks {group.name.lstrip('/')}/{key}: it is not a ManiSkill demo file with that camera."
        )
    return dataset[:] if load else dataset


def _resize(images: np.ndarray, size: int | None) -> np.ndarray:
    if size is None or images.shape[1:3] == (size, size):
        return images
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)) for image in images]
    )


def split_demos(demos: Sequence[Demo], held_out: float, seed: int) -> tuple[list[Demo], list[Demo]]:
    """Splits whole episodes into training and held-out ones; at least one of each if `held_out` > 0."""
    count = max(1, round(held_out * len(demos))) if held_out else 0
    if count >= len(demos):
        raise UserError(f"{len(demos)} episodes are too few to hold out {held_out:.0%} of them: record more.")
    order = np.random.default_rng(seed).permutation(len(demos))
    return [demos[i] for i in sorted(order[count:])], [demos[i] for i in sorted(order[:count])]


def action_statistics(demos: Sequence[Demo]) -> dict[str, Any]:
    """Returns statistics of one dataset in the form of a published dataset_statistics.json (lists of float).

    {"action": {mean, std, max, min, p99, p01, mask}, "num_transitions", "num_trajectories"}; the mask is False for the
    gripper, which is not normalised.
    """
    actions = np.concatenate([demo.actions for demo in demos]).astype(np.float64)
    statistics = {
        "mean": actions.mean(axis=0),
        "std": actions.std(axis=0),
        "max": actions.max(axis=0),
        "min": actions.min(axis=0),
        "p99": np.quantile(actions, 0.99, axis=0),
        "p01": np.quantile(actions, 0.01, axis=0),
        "mask": np.arange(actions.shape[1]) < actions.shape[1] - 1,
    }
    return {
        "action": {name: value.tolist() for name, value in statistics.items()},
        "num_transitions": len(actions),
        "num_trajectories": len(demos),
    }


def normalize_actions(actions: np.ndarray, statistics: dict[str, Any]) -> np.ndarray:
    """(a - mean) / (std + 1e-8) where the mask is True, for actions float32 [..., 7] and their "action" statistics."""
    mean, std, mask = (np.asarray(statistics[name]) for name in ("mean", "std", "mask"))
    return np.where(mask, (actions - mean) / (std + 1e-8), actions).astype(np.float32)


class ChunkSource:
    """Random access to training examples, one per step of every demo.

    Example i: observation of a window that ends at its step, and at each step of the window the chunk of the following
    actions. Steps before the first repeat the first frame with `timestep_pad_mask` False; actions after the last repeat
    the last with `action_pad_mask` False.
    """

    def __init__(self, demos: Sequence[Demo], statistics: dict[str, Any], *, window: int, horizon: int):
        lengths = [len(demo.actions) for demo in demos]
        self._demos = demos
        self._actions = [normalize_actions(demo.actions, statistics) for demo in demos]
        self._episode = np.repeat(np.arange(len(demos)), lengths)
        self._step = np.concatenate([np.arange(length) for length in lengths])
        self._window, self._horizon = window, horizon

    def __len__(self) -> int:
        return len(self._step)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example (no batch axis).

        {"observation": {"image_primary" uint8 [W, H, W, 3], "timestep" int32 [W], "timestep_pad_mask" bool [W]},
        "action" float32 [W, horizon, 7] normalised, "action_pad_mask" bool like it, "instruction" str}.
        """
        episode, step = self._episode[index], self._step[index]
        demo, actions = self._demos[episode], self._actions[episode]
        window = step + np.arange(1 - self._window, 1)
        at = np.maximum(window, 0)
        chunk = at[:, None] + np.arange(self._horizon)
        inside = chunk < len(actions)
        return {
            "observation": {
                "image_primary": demo.images[at],
                "timestep": at.astype(np.int32),
                "timestep_pad_mask": window >= 0,
            },
            "action": actions[np.minimum(chunk, len(actions) - 1)],
            "action_pad_mask": np.repeat(inside[..., None], actions.shape[1], axis=-1),
            "instruction": demo.instruction,
        }


def training_batches(source: ChunkSource, batch_size: int, seed: int, *, threads: int = 2) -> Iterator[dict[str, Any]]:
    """Returns an endless Grain iterator of shuffled batches, reshuffled each epoch.

    Its `get_state()` and `set_state(state)` continue exactly where another one with the same arguments stopped.
    Entries are those of `ChunkSource` with a leading batch axis; "instruction" is an array of str.
    """
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat().batch(batch_size)
    return iter(
        dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * max(threads, 1)))
    )


def ordered_batches(source: ChunkSource, batch_size: int) -> Iterator[dict[str, Any]]:
    """Yields every example once, in order; the last batch wraps around so that all have one shape."""
    dataset = grain.MapDataset.source(source).repeat().batch(batch_size)
    for index in range(-(-len(source) // batch_size)):
        yield dataset[index]
