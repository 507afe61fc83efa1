"""The two files of ManiSkill's demos: trajectories in an h5, and what is known of them in a json beside it."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rpd_jax.errors import UserError
from rpd_jax.run.json_file import field, objects, parse_object, read_object
from rpd_jax.tasks import find_task, task_names

CAMERA = "human_camera"
_MEND = "it is not a ManiSkill demo file"
# gzip, which ManiSkill and we use, shrinks nothing to less than about a thousandth.
_SHRINKS = 1100
# What h5py raises where a file is damaged.
_DAMAGE = (
    OSError,
    KeyError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    MemoryError,
)


@dataclasses.dataclass(frozen=True)
class Header:
    """What the json says.

    Attributes:
        path: the json.
        env_id: the task's registered id.
        env_info: all of the task's description.
        limit: control steps of an episode, None if it is not known.
        control_mode: of all episodes, None if it is not said.
        entries: what is said of each episode, by its number.
    """

    path: Path
    env_id: str
    env_info: Mapping[str, Any]
    limit: int | None
    control_mode: str | None
    entries: Mapping[int, Mapping[str, Any]]

    def control_mode_of(self, number: int) -> str | None:
        """The control mode of an episode, None if it is not said; raises UserError if two are."""
        own = self.entries[number].get("control_mode")
        if own and self.control_mode and own != self.control_mode:
            raise UserError(
                f"{self.path}: traj_{number} has control_mode {own!r}, env_info.env_kwargs has {self.control_mode!r}: "
                "the file is damaged."
            )
        return own or self.control_mode


def read_json(path: Path) -> dict:
    """Returns the json beside a demo file; raises UserError if it is missing or malformed."""
    return read_object(
        Path(path).with_suffix(".json"), "a demo file needs its json beside it", "record or download it again"
    )


def read_header(path: Path) -> Header:
    """Returns what the json beside the demo file `path` says; raises UserError if it is missing or malformed."""
    json_path = Path(path).with_suffix(".json")
    content = read_json(path)
    env_info = field(content, "env_info", dict, json_path, mend=_MEND)
    env_id = field(env_info, "env_id", str, json_path, mend=_MEND)
    limit = field(env_info, "max_episode_steps", int, json_path, None, _MEND)
    if limit is None and env_id in task_names():
        limit = find_task(env_id).max_episode_steps
    kwargs = field(env_info, "env_kwargs", dict, json_path, {}, _MEND)
    entries = {}
    for entry in objects(field(content, "episodes", list, json_path, mend=_MEND), f"{json_path}: episodes"):
        number = _check_entry(entry, json_path)
        if number in entries:
            raise UserError(f"{json_path}: episode {number} is listed twice: {_MEND}.")
        entries[number] = entry
    return Header(json_path, env_id, env_info, limit, field(kwargs, "control_mode", str, json_path, None), entries)


def open_h5(path: Path) -> h5py.File:
    """Opens an h5 file for reading; raises UserError if it is missing or broken."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"The demo file {path} does not exist: record one with 'python -m octo_teacher.demos record'.")
    try:
        return h5py.File(path, "r")
    except _DAMAGE:
        raise UserError(f"{path} is not a readable h5 file: record or download it again.") from None


@contextmanager
def damage_named(path: Path, name: str = "") -> Iterator[None]:
    """Turns what h5py raises inside the block, where a file is damaged, into a UserError naming the file and place."""
    try:
        yield
    except _DAMAGE as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{path}{name and f': {name}'} cannot be read: the file is damaged ({text}).") from None


def trajectory_names(file: h5py.File) -> list[str]:
    """Returns the names traj_0, traj_1, ... that the file holds, in the order of their numbers."""
    names = [name for name in file if name.startswith("traj_")]
    for name in names:
        if not re.fullmatch(r"traj_(0|[1-9][0-9]{0,8})", name):
            raise UserError(f"{file.filename} holds {name!r}, which is not the name of an episode: {_MEND}.")
    return sorted(names, key=number_of)


def number_of(name: str) -> int:
    """The number of an episode: 3 of "traj_3"."""
    return int(name.removeprefix("traj_"))


def check_belonging(path: Path, header: Header, file: h5py.File) -> Header:
    """Returns the header with an entry for each trajectory of the h5 file.

    Our own files carry the entry in the trajectory too, which counts where a kill came between the two files.

    Raises:
        UserError: the json has no entry for a trajectory, or entries for trajectories that the h5 file lacks.
    """
    names = trajectory_names(file)
    entries = dict(header.entries)
    for name in names:
        if number_of(name) in entries:
            continue
        attribute = file[name].attrs.get("episode")
        if attribute is None:
            raise UserError(f"{header.path} has no entry for {name}: it does not belong to {path.name}.")
        entries[number_of(name)] = parse_object(attribute, path)
        _check_entry(entries[number_of(name)], path)
    missing = sorted(set(entries) - {number_of(name) for name in names})
    if missing:
        raise UserError(
            f"{path} lacks traj_{missing[0]}, one of {len(missing)} episodes that {header.path.name} lists and it does "
            f"not hold (it holds {len(names)}): copy both files again."
        )
    return dataclasses.replace(header, entries=entries)


def _check_entry(entry: Mapping[str, Any], path: Path) -> int:
    """The number of an episode, once what is said of it has the right types."""
    number = field(entry, "episode_id", int, path, mend=_MEND)
    where = f"{path}: episode {number}"
    field(entry, "control_mode", str, where, None)
    field(entry, "episode_seed", int, where, None)
    if not isinstance(entry.get("success", True), (bool, int, float)):
        raise UserError(f"{where}: 'success' is {entry['success']!r}, not true or false: the file is damaged.")
    return number


def check_storage(dataset: h5py.Dataset, where: str) -> None:
    """Raises UserError if a dataset claims more numbers than its bytes in the file can be, which would fill memory."""
    bound = _SHRINKS * dataset.id.get_storage_size() + 4096
    chunk = np.prod(dataset.chunks, dtype=np.float64) * dataset.dtype.itemsize if dataset.chunks else 0
    if dataset.nbytes > bound or chunk > max(bound, 2**20):
        raise UserError(f"{where} says it has {dataset.nbytes} bytes, more than the file holds: the file is damaged.")
