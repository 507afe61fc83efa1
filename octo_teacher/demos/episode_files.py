"""A demo file on disk: ManiSkill's h5 + json layout, written so that a kill at any moment loses at most one episode.

Each new episode is first a complete small file of its own in `<name>.parts/`. `merge` copies the parts into a new h5
file and renames it over the old one. The json is derived from the h5 (every group carries its json entry as an
attribute), so the two cannot disagree for good.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

import h5py
import numpy as np

from octo_teacher.data.maniskill_files import (
    CAMERA,
    damage_named,
    open_h5,
    read_header,
    read_json,
    trajectory_names,
)
from octo_teacher.demos.room_on_disk import h5_in_memory, reserve, room_needed
from rpd_jax.errors import UserError
from rpd_jax.run.whole_file import sync, write_whole

_HEADER = "header"  # what the json will say of all episodes, in each part


@dataclasses.dataclass(frozen=True)
class Episode:
    """One recorded episode of T control steps.

    Attributes:
        seed: reset seed.
        success: whether its last step is a success.
        action_noise: standard deviation of the noise on its executed translations.
        seconds: wall time that playing it took.
        rgb: uint8 [T + 1, H, W, 3] frames.
        env_states: nested dict of float32 [T + 1, ...] simulator states, as ManiSkill's get_state_dict gives them.
        steps: arrays of length T by dataset name.
    """

    seed: int
    success: bool
    action_noise: float
    seconds: float
    rgb: np.ndarray
    env_states: dict
    steps: dict[str, np.ndarray]


class DemoFile:
    """An h5 file of demos with its json beside it and its not yet merged parts."""

    def __init__(self, path: Path, header: dict, entries: list[dict]):
        self.path = path
        self._header = header
        self._entries = entries

    @classmethod
    def open_for_append(cls, path: Path, env_info: dict, camera_info: dict, source: dict) -> "DemoFile":
        """Opens a demo file, or starts one; takes over the parts that a killed recording has left.

        Args:
            path: the h5 file.
            env_info: "env_id", "env_kwargs", "max_episode_steps", as in ManiSkill's json.
            camera_info: how the frames are drawn.
            source: "source_type" and "source_desc", as in ManiSkill's json.

        Raises:
            UserError: the file is broken, or it or its parts were recorded with other options.
        """
        path = Path(path)
        if path.suffix != ".h5":
            raise UserError(f"The demo file {path} must be named *.h5 (the json goes beside it).")
        header = {
            "env_info": env_info,
            CAMERA: camera_info,
            **source,
        }
        with room_needed(path, "nothing was recorded"):
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _finish_merge(path)
            _check_options(path, read_json(path), header, "use the same options or another --output")
        demos = cls(path, header, _read_entries(path) if path.exists() else [])
        with room_needed(demos._parts, "nothing was changed"):
            demos._parts.mkdir(exist_ok=True)
            demos._adopt_parts()
        return demos

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> list[dict]:
        """The json entries of all episodes, merged or not."""
        return list(self._entries)

    @property
    def _parts(self) -> Path:
        return self.path.with_suffix(".parts")

    def last_seed(self) -> int:
        """Returns the greatest reset seed in the file, -1 if it is empty."""
        return max((entry["episode_seed"] for entry in self._entries), default=-1)

    def labels(self) -> Iterator[np.ndarray]:
        """Yields the actions of all episodes, merged or not."""
        with ExitStack() as stack:
            merged = stack.enter_context(open_h5(self.path)) if self.path.exists() else {}
            for index in range(len(self._entries)):
                name, part = f"traj_{index}", self._parts / f"{index}.h5"
                if name in merged:
                    with damage_named(self.path, name):
                        actions = merged[name]["actions"][:]
                else:
                    with open_h5(part) as file, damage_named(part, name):
                        actions = file[name]["actions"][:]
                yield actions

    def leave(self) -> None:
        """Leaves all as it was found, if nothing was added."""
        with suppress(OSError):
            self._parts.rmdir()

    def add(self, episode: Episode) -> None:
        """Stores one episode durably, as a part."""
        index = len(self._entries)
        entry = {
            "episode_id": index,
            "episode_seed": episode.seed,
            "control_mode": self._header["env_info"]["env_kwargs"]["control_mode"],
            "elapsed_steps": len(episode.steps["actions"]),
            "reset_kwargs": {"seed": episode.seed, "options": {}},
            "success": episode.success,
            "action_noise": episode.action_noise,
        }
        part = self._parts / f"{index}.h5"
        with h5_in_memory() as (file, memory):
            file.attrs[_HEADER] = json.dumps(self._header)
            group = file.create_group(f"traj_{index}", track_order=True)
            group.attrs["episode"] = json.dumps(entry)
            _write_tree(group, {"obs": {"sensor_data": {CAMERA: {"rgb": episode.rgb}}}})
            _write_tree(group, episode.steps)
            _write_tree(group, {"env_states": episode.env_states})
        with self._room_needed(part):
            write_whole(part, memory.getvalue())
        self._entries.append(entry)

    def merge(self) -> None:
        """Moves the parts into the h5 file and writes the json.

        The json is ready on the disk before the h5 file gets its name, and gets its own right after it.

        Raises:
            UserError: there is no room; the parts stay then.
        """
        parts = [part for part in self._part_files() if int(part.stem) < len(self._entries)]
        temporary, json_temporary = self.path.with_suffix(".h5.tmp"), self.path.with_suffix(".json.tmp")
        try:
            with self._room_needed(self.path):
                if parts:
                    self._merge_parts(parts, temporary)
                if self._entries:
                    text = json.dumps({**self._header, "commit_info": None, "episodes": self._entries}, indent=2)
                    json_temporary.write_text(text)
                    sync(json_temporary)
                if parts:
                    os.replace(temporary, self.path)
                if self._entries:
                    os.replace(json_temporary, self.path.with_suffix(".json"))
        finally:
            temporary.unlink(missing_ok=True)
            json_temporary.unlink(missing_ok=True)
        shutil.rmtree(self._parts, ignore_errors=True)

    def _merge_parts(self, parts: list[Path], temporary: Path) -> None:
        """Writes the h5 file with the parts to `temporary`."""
        if self.path.exists():
            shutil.copyfile(self.path, temporary)
        else:
            with h5_in_memory() as (_, memory):
                pass
            temporary.write_bytes(memory.getvalue())
        size = temporary.stat().st_size
        reserve(temporary, size + sum(part.stat().st_size + 2**14 for part in parts) + 2**20)
        with damage_named(temporary), h5py.File(temporary, "r+") as merged:
            for part in parts:
                name = f"traj_{part.stem}"
                if name not in merged:
                    with h5py.File(part, "r") as file:
                        file.copy(name, merged)
        sync(temporary)

    def _room_needed(self, path: Path) -> AbstractContextManager[None]:
        return room_needed(path, f"the {len(self._entries)} episodes so far are whole")

    def _part_files(self) -> list[Path]:
        return sorted(self._parts.glob("[0-9]*.h5"), key=lambda part: int(part.stem))

    def _adopt_parts(self) -> None:
        for part in self._part_files():
            index, header = int(part.stem), None
            if index == len(self._entries):
                with suppress(UserError), open_h5(part) as file, damage_named(part):
                    entry = json.loads(file[f"traj_{index}"].attrs["episode"])
                    header = json.loads(file.attrs.get(_HEADER, "{}"))
            if header is not None:
                mend = f"use the same options or another --output, or remove {self._parts}"
                _check_options(part, header, self._header, mend)
                self._entries.append(entry)
            if index >= len(self._entries):  # after one that is missing or broken
                part.unlink()


def _check_options(path: Path, recorded: dict, header: dict, mend: str) -> None:
    """Raises UserError unless what is in `path` was recorded as `header` says."""
    for key in ("env_info", CAMERA, "source_type"):
        if recorded.get(key) != header[key]:
            found = recorded.get(key, "unknown")
            raise UserError(f"{path} was recorded with {key} = {found}, not {header[key]}: {mend}.")


def _finish_merge(path: Path) -> None:
    """Gives the json of a first merge its name if a kill came just before that."""
    waiting = path.with_suffix(".json.tmp")
    if waiting.exists() and not path.with_suffix(".json").exists():
        os.replace(waiting, path.with_suffix(".json"))


def _read_entries(path: Path) -> list[dict]:
    with open_h5(path) as file, damage_named(path):
        names = trajectory_names(file)
        if all("episode" in file[name].attrs for name in names):
            return [json.loads(file[name].attrs["episode"]) for name in names]
    return list(read_header(path).entries.values())


def _write_tree(group: h5py.Group, tree: dict) -> None:
    for name, value in tree.items():
        if isinstance(value, dict):
            _write_tree(group.require_group(name), value)
        elif name == "rgb":
            # One chunk per frame: random access reads no other frame.
            group.create_dataset(name, data=value, chunks=(1, *value.shape[1:]), compression="gzip", compression_opts=4)
        else:
            group.create_dataset(name, data=value)
