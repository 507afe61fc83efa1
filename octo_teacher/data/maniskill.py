"""Reads demos in ManiSkill's own h5 + json layout."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from octo_teacher.data.actions import ActionMeaning, checked_actions
from octo_teacher.data.episodes import Demo
from octo_teacher.data.left_out import Reason, Tally, kept
from octo_teacher.data.maniskill_files import (
    CAMERA,
    Header,
    check_belonging,
    check_storage,
    damage_named,
    number_of,
    open_h5,
    read_header,
    trajectory_names,
)
from octo_teacher.data.splits import chosen, select
from rpd_jax.action_convention import ACTION_DIM, CONTROL_MODE
from rpd_jax.errors import UserError
from rpd_jax.tasks import find_task, task_names

# Translations alone, in the same units and bounds: the target of pd_ee_delta_pose without a rotation
# (mani_skill/agents/controllers/pd_ee_pose.py, compute_target_pose).
TRANSLATIONS_MODE = "pd_ee_delta_pos"


def read_maniskill(
    path: Path,
    cameras: Mapping[str, str] | None = None,
    *,
    instruction: str = "",
    split: str = "train",
    only_successful: bool = True,
    tally: Tally | None = None,
) -> Iterator[Demo]:
    """Yields the episodes of an h5 + json demo file, with pd_ee_delta_pose's actions.

    Args:
        path: the h5 file.
        cameras: model camera -> camera under obs/sensor_data; "" is the human camera.
        instruction: said to the robot where the task is none that we know.
        split: all episodes are of the split "train"; see `splits.select`.
        only_successful: leave out failed episodes and those longer than the task's limit.
        tally: counts what is left out, and says it at the end.

    Raises:
        UserError: a missing or malformed file, with its name and the key, or another control mode.
    """
    path = Path(path)
    tally = tally or Tally(keep=kept(only_successful))
    header = read_header(path)
    with open_h5(path) as file:
        with damage_named(path):
            header = check_belonging(path, header, file)
            names = trajectory_names(file)
            told = _instruction(header, instruction, tally)
        spans = select(split, {"train": [len(names)]}, path, tally)
        for number in chosen(spans, {"train": [len(names)]}):
            with damage_named(path, names[number]):
                demo = _read(file, names[number], header, cameras or {"primary": ""}, told, path, tally)
            if demo is not None:
                tally.reads()
                yield demo
    tally.close(path)


def maniskill_meaning(path: Path) -> ActionMeaning:
    """What the json of an h5 file says of its actions."""
    header = read_header(path)
    modes = {header.control_mode_of(number) for number in header.entries} or {header.control_mode}
    if modes == {None}:
        return ActionMeaning(f"control mode not stored: read as {CONTROL_MODE}", ACTION_DIM, stated=True)
    if modes == {TRANSLATIONS_MODE}:
        return ActionMeaning(
            f"control mode {TRANSLATIONS_MODE}, converted to {CONTROL_MODE}: no rotation", ACTION_DIM, True
        )
    found = f"control mode {', '.join(sorted(str(mode) for mode in modes))}"
    return ActionMeaning(found, ACTION_DIM, stated=modes == {CONTROL_MODE})


def convert_control_mode(actions: np.ndarray, mode: str | None, where: str) -> np.ndarray:
    """Returns the actions [T, A] of a control mode as pd_ee_delta_pose's, [T, 7].

    Args:
        actions: finite.
        mode: None if the file does not say it; they are pd_ee_delta_pose's then, if they lie in its bounds.
        where: the file and the episode, for messages.

    Raises:
        UserError: the control mode cannot be converted exactly.
    """
    if mode == TRANSLATIONS_MODE and actions.shape[1] == 4:
        still = np.zeros((len(actions), 3), actions.dtype)
        return np.concatenate([actions[:, :3], still, actions[:, 3:]], axis=1)
    if mode not in (None, CONTROL_MODE):
        raise UserError(
            f"{where} has control_mode {mode!r}; Octo is trained on {CONTROL_MODE!r}: convert it with "
            "mani_skill.trajectory.replay_trajectory first."
        )
    if actions.shape[1] != ACTION_DIM:
        raise UserError(f"{where}/actions has shape {actions.shape}, not [steps, {ACTION_DIM}].")
    if mode is None and np.abs(actions).max() > 1.0:
        raise UserError(
            f"{where} has no control_mode, and its actions go from {actions.min():.3g} to {actions.max():.3g}, which "
            f"{CONTROL_MODE}'s do not, from -1 to 1: write the control mode into the json's env_info.env_kwargs."
        )
    return actions


def _instruction(header: Header, given: str, tally: Tally) -> str:
    if header.env_id in task_names():
        return find_task(header.env_id).instruction
    if given.strip() or tally.looking:
        return given
    raise UserError(
        f"{header.path}: its task {header.env_id!r} has no instruction here, only {', '.join(task_names())}: say what "
        "the robot was told with config.instruction."
    )


def _read(
    file: h5py.File,
    name: str,
    header: Header,
    cameras: Mapping[str, str],
    instruction: str,
    path: Path,
    tally: Tally,
) -> Demo | None:
    """The episode `name`, None if it is left out."""
    group, where = file.get(name), f"{path}: {name}"
    if not isinstance(group, h5py.Group):
        raise UserError(f"{where} is no group of datasets: it is not a ManiSkill demo file.")
    dataset = _dataset(group, "actions", path)
    if dataset.ndim != 2 or dataset.dtype.kind not in "fiu":
        raise UserError(f"{where}/actions has shape {dataset.shape}, not [steps, {ACTION_DIM}].")
    if not len(dataset):
        tally.leaves_out(Reason.EMPTY, name)
        return None
    check_storage(dataset, f"{where}/actions")
    actions = checked_actions(dataset[:], where)
    actions = convert_control_mode(actions, header.control_mode_of(number_of(name)), where)
    frames = {camera: _frames(group, key or CAMERA, path, len(actions)) for camera, key in cameras.items()}
    if not header.entries[number_of(name)].get("success", True) and tally.leaves_out(Reason.FAILED, name):
        return None
    limit = header.limit
    if limit and len(actions) > limit and tally.leaves_out(Reason.OVERLONG, name, f" of {limit} steps"):
        return None
    if not instruction.strip() and tally.leaves_out(Reason.UNTOLD, name):
        return None
    return Demo(
        {camera: dataset[: len(actions)] for camera, dataset in frames.items()},
        actions,
        instruction,
    )


def _frames(group: h5py.Group, camera: str, path: Path, steps: int) -> h5py.Dataset:
    key = f"obs/sensor_data/{camera}/rgb"
    where = f"{path}: {group.name.lstrip('/')}/{key}"
    frames = group.get(key)
    if not isinstance(frames, h5py.Dataset):
        cameras = group.get("obs/sensor_data")
        have = [name for name in cameras if f"{name}/rgb" in cameras] if isinstance(cameras, h5py.Group) else []
        mend = (
            f"choose with config.cameras among its cameras ({', '.join(have)})"
            if have
            else "it holds no frames, which 'python -m octo_teacher.demos render' draws"
        )
        raise UserError(
            f"{path} lacks {group.name.lstrip('/')}/{key}: it is not a ManiSkill demo file with that camera; {mend}."
        )
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise UserError(f"{where} is {frames.dtype} {frames.shape}, not uint8 [steps + 1, H, W, 3].")
    if len(frames) not in (steps, steps + 1):
        raise UserError(f"{where} has {len(frames)} frames for {steps} actions.")
    check_storage(frames, where)
    return frames


def _dataset(group: h5py.Group, key: str, path: Path) -> h5py.Dataset:
    dataset = group.get(key)
    if not isinstance(dataset, h5py.Dataset):
        raise UserError(
            f"{path} lacks {group.name.lstrip('/')}/{key}: it is not a ManiSkill demo file (it has {', '.join(group)})."
        )
    return dataset
