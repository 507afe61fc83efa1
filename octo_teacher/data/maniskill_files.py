"""The two files of ManiSkill's demos: trajectories in an h5, and what is known of them in a json beside it."""

import json
from pathlib import Path

import h5py

from rpd_jax.errors import UserError

CAMERA = "human_camera"


def read_json(path: Path) -> dict:
    """Returns the json beside a demo file; raises UserError if it is missing or malformed."""
    json_path = Path(path).with_suffix(".json")
    try:
        return json.loads(json_path.read_text())
    except FileNotFoundError:
        raise UserError(f"{json_path} is missing: a demo file needs its json beside it.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{json_path} is not valid json ({error}): record or download it again.") from None


def open_h5(path: Path) -> h5py.File:
    """Opens an h5 file for reading; raises UserError if it is missing or broken."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"The demo file {path} does not exist: record one with 'python -m octo_teacher.demos record'.")
    try:
        return h5py.File(path, "r")
    except OSError:
        raise UserError(f"{path} is not a readable h5 file: record or download it again.") from None


def trajectory_names(file: h5py.File) -> list[str]:
    """Returns the names traj_0, traj_1, ... that the file holds, in the order of their numbers."""
    names = [name for name in file if name.startswith("traj_")]
    return sorted(names, key=lambda name: int(name.removeprefix("traj_")))
