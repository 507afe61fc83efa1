"""Draws demos that hold simulator states but no frames, such as ManiSkill's own, through the human camera.

Nothing is simulated: every stored state is put into the scene and looked at, so that demos from any simulation backend
can be drawn, from any camera.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from octo_teacher.data.actions import checked_actions
from octo_teacher.data.maniskill import convert_control_mode
from octo_teacher.data.maniskill_files import (
    Header,
    check_belonging,
    check_storage,
    damage_named,
    number_of,
    open_h5,
    read_header,
    trajectory_names,
)
from octo_teacher.demos.episode_files import DemoFile, Episode
from octo_teacher.demos.parallel import in_order
from octo_teacher.demos.record import merged_at_the_end, to_rgb
from rpd_jax.action_convention import CONTROL_MODE
from rpd_jax.errors import UserError
from rpd_jax.run.json_file import field
from rpd_jax.tasks import task_names

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Rendering:
    """What to draw.

    Attributes:
        input: h5 file with env_states and its json beside it, as ManiSkill writes them.
        output: h5 file in the same layout with frames; extended if it exists.
        episodes: greatest number of episodes that the file shall hold in the end; None for all.
        image_size: width and height of the frames, pixels.
        mesh_detail: fraction of the robot's triangles that is drawn.
        eye_offset, target_offset: metres added to the camera's position and to the point it looks at, world axes.
        fov: vertical field of view in radians; None keeps the task's.
        keep_failures: draw failed episodes and those longer than the task's limit too.
        workers: processes; None for one per core.
    """

    input: Path
    output: Path
    episodes: int | None = None
    image_size: int = 128
    mesh_detail: float = 1.0
    eye_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    target_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    fov: float | None = None
    keep_failures: bool = False
    workers: int | None = None


def render(
    rendering: Rendering,
    on_episode: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] = _LOG.warning,
) -> DemoFile:
    """Draws the episodes that `rendering.output` lacks, and returns it; a rendering that was killed continues.

    Args:
        rendering: what to draw.
        on_episode: called after each episode with (stored in the file, wanted).
        on_note: called with each line on what is not drawn.

    Raises:
        UserError: missing or malformed input, another control mode, values out of range, or an output that was made
            with other options or from other demos.
    """
    if rendering.episodes is not None and rendering.episodes < 1:
        raise UserError(f"--episodes={rendering.episodes} is not a positive number of episodes.")
    if Path(rendering.input).absolute() == Path(rendering.output).absolute():
        raise UserError("--output is the input: choose another file.")
    env_info, names, header = _find_episodes(rendering, on_note)
    camera_info = {"image_size": rendering.image_size, "mesh_detail": rendering.mesh_detail}
    changes = {name: getattr(rendering, name) for name in ("eye_offset", "target_offset", "fov")}
    camera_info |= {name: value for name, value in changes.items() if value not in (None, (0.0, 0.0, 0.0))}
    camera_info = {name: list(value) if isinstance(value, tuple) else value for name, value in camera_info.items()}
    source = {"source_type": "rendered", "source_desc": f"env_states of {Path(rendering.input).name}"}
    demos = DemoFile.open_for_append(rendering.output, env_info, camera_info, source)
    _check_drawn(rendering, demos, names, header)
    wanted = names[: rendering.episodes]
    with merged_at_the_end(demos) as check_stop:
        first = len(demos)
        if first < len(wanted):
            drawn = in_order(
                partial(_renderer, rendering, wanted, header),
                first,
                len(wanted) - 1,
                rendering.workers,
                check_stop,
            )
            for episode in drawn:
                demos.add(episode)
                if on_episode:
                    on_episode(len(demos), len(wanted))
    return demos


def _find_episodes(rendering: Rendering, on_note: Callable[[str], None]) -> tuple[dict, list[str], Header]:
    """The json's env_info as it will be written, names of the trajectories to draw, and all that the json says."""
    path = Path(rendering.input)
    header = read_header(path)
    if header.env_id not in task_names():
        raise UserError(f"{header.path}: its task {header.env_id!r} is not one of {', '.join(task_names())}.")
    env_info = json.loads(json.dumps(header.env_info))
    limit = env_info["max_episode_steps"] = header.limit
    env_info["env_kwargs"] = (env_info.get("env_kwargs") or {}) | {"control_mode": CONTROL_MODE}
    chosen, failed, overlong, empty = [], [], [], []
    with open_h5(path) as file:
        with damage_named(path):
            header = check_belonging(path, header, file)
            names = trajectory_names(file)
        for name in names:
            with damage_named(path, name):
                actions = _dataset(file[name], "actions", path)
                if actions.ndim != 2:
                    raise UserError(f"{path}: {name}/actions has shape {actions.shape}, not [steps, numbers].")
                if not len(actions):
                    empty.append(name)
                    continue
                convert_control_mode(actions[:1], header.control_mode_of(number_of(name)), f"{path}: {name}")
            if not header.entries[number_of(name)].get("success", True):
                failed.append(name)
            elif len(actions) > limit:
                overlong.append(name)
            chosen.append(name)
    left_out = set() if rendering.keep_failures else {*failed, *overlong}
    chosen = [name for name in chosen if name not in left_out]
    if not chosen:
        raise UserError(f"{path} holds no successful episode within {limit} steps: see --keep-failures.")
    if left_out:
        on_note(
            f"{path}: {len(left_out)} of {len(names)} episodes are not drawn, {len(failed)} failed and {len(overlong)} "
            f"longer than {limit} steps ({', '.join(sorted(left_out, key=number_of)[:5])}): --keep-failures draws them."
        )
    if empty:
        on_note(
            f"{path}: {len(empty)} of {len(names)} episodes have no step, so are not drawn ({', '.join(empty[:5])})."
        )
    return env_info, chosen, header


def _check_drawn(rendering: Rendering, demos: DemoFile, names: list[str], header: Header) -> None:
    """Raises UserError unless the output begins with the episodes `names` of the input, told by seeds and actions."""
    path = Path(rendering.input)
    with open_h5(path) as file:
        for index, (entry, labels) in enumerate(zip(demos.entries, demos.labels(), strict=True)):
            name = names[index] if index < len(names) else None
            same = name is not None and entry["episode_seed"] == _seed(header, name)
            if not same or not np.array_equal(labels, _labels(file[name], header, path)):
                demos.leave()
                raise UserError(
                    f"{rendering.output}: traj_{index} was not drawn from what would be drawn there, "
                    f"{name or 'nothing'} of {path}: use the same input and --keep-failures, or another --output."
                )


def _renderer(rendering: Rendering, names: list[str], header: Header) -> Callable[[int], Episode]:
    """Makes the environment and returns number in `names` -> drawn episode; called in a worker process."""
    from rpd_jax.envs.camera_task import CameraChange, make_task_env

    env = make_task_env(
        header.env_id,
        rendering.image_size,
        mesh_detail=rendering.mesh_detail,
        camera=CameraChange(rendering.eye_offset, rendering.target_offset, rendering.fov),
        with_state=False,
    )

    def draw(number: int) -> Episode:
        with open_h5(rendering.input) as file, damage_named(Path(rendering.input), names[number]):
            return draw_episode(env, file[names[number]], header, Path(rendering.input))

    return draw


def draw_episode(env, group: h5py.Group, header: Header, path: Path) -> Episode:
    """Looks at every state of a trajectory in an environment of `make_task_env` (num_envs=1).

    Args:
        group: a trajectory of T actions with env_states of T + 1 states.
        header: what its json says of its reset seed and control mode.
        path: its file, for messages.
    """
    import torch

    from rpd_jax.envs.camera_task import frames

    started = time.perf_counter()
    name = group.name.lstrip("/")
    entry, seed, actions = header.entries[number_of(name)], _seed(header, name), _labels(group, header, path)
    # The seed decides what is no state, such as sizes and colours of objects.
    env.reset(seed=seed, options={"reconfigure": True})
    states = _read_states(env.unwrapped.get_state_dict(), group, len(actions) + 1, path)
    images = []
    for step in range(len(actions) + 1):
        env.unwrapped.set_state_dict(_map(lambda values, at=step: torch.from_numpy(values[at : at + 1]), states))
        images.append(to_rgb(frames(env.unwrapped.get_obs())))
    steps: dict[str, np.ndarray] = {"actions": actions}
    for name in ("rewards", "success", "terminated", "truncated", "executed_actions"):
        if name in group:
            steps[name] = group[name][:]
    return Episode(
        seed=seed,
        success=bool(entry.get("success", True)),
        action_noise=float(field(entry, "action_noise", float, header.path, 0.0)),
        seconds=time.perf_counter() - started,
        rgb=np.stack(images),
        env_states=states,
        steps=steps,
    )


def _seed(header: Header, name: str) -> int:
    return header.entries[number_of(name)].get("episode_seed") or 0


def _labels(group: h5py.Group, header: Header, path: Path) -> np.ndarray:
    """The actions of a trajectory in the tasks' control mode, float32 [T, 7]."""
    name = group.name.lstrip("/")
    actions = checked_actions(_dataset(group, "actions", path)[:], f"{path}: {name}")
    return convert_control_mode(actions, header.control_mode_of(number_of(name)), f"{path}: {name}")


def _read_states(wanted: dict, group: h5py.Group, count: int, path: Path) -> dict:
    """The stored states of everything that the scene holds, float32 [count, D] each."""
    states: dict[str, Any] = {}
    for kind, things in wanted.items():
        states[kind] = {}
        for name, now in things.items():
            key = f"env_states/{kind}/{name}"
            values = _dataset(group, key, path)[:].astype(np.float32)
            if not np.isfinite(values).all():
                step, number = np.argwhere(~np.isfinite(values.reshape(len(values), -1)))[0]
                raise UserError(
                    f"{path}: {group.name.lstrip('/')}/{key} is not finite at step {step}, number {number}: mend this "
                    "episode or leave it out."
                )
            if values.shape != (count, now.shape[-1]):
                raise UserError(
                    f"{path}: {group.name.lstrip('/')}/{key} has shape {values.shape}, not {(count, now.shape[-1])}."
                )
            states[kind][name] = values
    return states


def _map(function: Callable, tree: dict) -> dict:
    return {name: _map(function, value) if isinstance(value, dict) else function(value) for name, value in tree.items()}


def _dataset(group: h5py.Group, key: str, path: Path) -> h5py.Dataset:
    dataset = group.get(key)
    if not isinstance(dataset, h5py.Dataset):
        raise UserError(f"{path} lacks {group.name.lstrip('/')}/{key}: it holds no demos with simulator states.")
    check_storage(dataset, f"{path}: {group.name.lstrip('/')}/{key}")
    return dataset
