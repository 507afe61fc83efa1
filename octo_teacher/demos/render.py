"""Draws demos that hold simulator states but no frames, such as ManiSkill's own, through the human camera.

Nothing is simulated: every stored state is put into the scene and looked at, so that demos from any simulation backend
can be drawn, from any camera.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from octo_teacher.data.maniskill_files import open_h5, read_json, trajectory_names
from octo_teacher.demos.episode_files import DemoFile, Episode
from octo_teacher.demos.parallel import in_order
from octo_teacher.demos.record import merged_at_the_end, to_rgb
from rpd_jax.errors import UserError
from rpd_jax.tasks import find_task

CONTROL_MODE = "pd_ee_delta_pose"


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


def render(rendering: Rendering, on_episode: Callable[[int, int], None] | None = None) -> DemoFile:
    """Draws the episodes that `rendering.output` lacks, and returns it; a rendering that was killed continues.

    Args:
        rendering: what to draw.
        on_episode: called after each episode with (stored in the file, wanted).

    Raises:
        UserError: missing or malformed input, another control mode, values out of range, or an output that was made
            with other options.
    """
    if rendering.episodes is not None and rendering.episodes < 1:
        raise UserError(f"--episodes={rendering.episodes} is not a positive number of episodes.")
    if Path(rendering.input).absolute() == Path(rendering.output).absolute():
        raise UserError("--output is the input: choose another file.")
    env_info, names, entries = _find_episodes(rendering)
    camera_info = {"image_size": rendering.image_size, "mesh_detail": rendering.mesh_detail}
    changes = {name: getattr(rendering, name) for name in ("eye_offset", "target_offset", "fov")}
    camera_info |= {name: value for name, value in changes.items() if value not in (None, (0.0, 0.0, 0.0))}
    camera_info = {name: list(value) if isinstance(value, tuple) else value for name, value in camera_info.items()}
    source = {"source_type": "rendered", "source_desc": f"env_states of {Path(rendering.input).name}"}
    demos = DemoFile.open_for_append(rendering.output, env_info, camera_info, source)
    wanted = names[: rendering.episodes]
    with merged_at_the_end(demos):
        first = len(demos)
        if first < len(wanted):
            drawn = in_order(
                partial(_renderer, rendering, env_info["env_id"], wanted, entries),
                first,
                len(wanted) - 1,
                rendering.workers,
            )
            for episode in drawn:
                demos.add(episode)
                if on_episode:
                    on_episode(len(demos), len(wanted))
    return demos


def _find_episodes(rendering: Rendering) -> tuple[dict, list[str], dict[str, dict]]:
    """The json's env_info, names of the trajectories to draw, and the json's entry of each."""
    path = Path(rendering.input)
    header = read_json(path)
    json_path = path.with_suffix(".json")
    try:
        env_info = dict(header["env_info"])
        task = find_task(env_info["env_id"])
        entries = {f"traj_{entry['episode_id']}": entry for entry in header["episodes"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{json_path} lacks the key {error}: it is not a ManiSkill demo file.") from None
    limit = env_info.setdefault("max_episode_steps", task.max_episode_steps)
    env_info.setdefault("env_kwargs", {}).setdefault("control_mode", CONTROL_MODE)
    chosen = []
    with open_h5(path) as file:
        for name in trajectory_names(file):
            if name not in entries:
                raise UserError(f"{json_path} has no entry for {name}: it does not belong to {path.name}.")
            mode = entries[name].get("control_mode", env_info["env_kwargs"]["control_mode"])
            if mode != CONTROL_MODE:
                raise UserError(
                    f"{path}: {name} has control_mode {mode!r}; Octo is trained on {CONTROL_MODE!r}: convert it with "
                    "mani_skill.trajectory.replay_trajectory first."
                )
            steps = len(_dataset(file[name], "actions", path))
            if rendering.keep_failures or (entries[name].get("success", True) and steps <= limit):
                chosen.append(name)
    if not chosen:
        raise UserError(f"{path} holds no successful episode within {limit} steps: see --keep-failures.")
    return env_info, chosen, entries


def _renderer(
    rendering: Rendering, env_id: str, names: list[str], entries: dict[str, dict]
) -> Callable[[int], Episode]:
    """Makes the environment and returns number in `names` -> drawn episode; called in a worker process."""
    from rpd_jax.envs.camera_task import CameraChange, make_task_env

    env = make_task_env(
        env_id,
        rendering.image_size,
        mesh_detail=rendering.mesh_detail,
        camera=CameraChange(rendering.eye_offset, rendering.target_offset, rendering.fov),
        with_state=False,
    )

    def draw(number: int) -> Episode:
        with open_h5(rendering.input) as file:
            return draw_episode(env, file[names[number]], entries[names[number]], Path(rendering.input))

    return draw


def draw_episode(env, group: h5py.Group, entry: dict, path: Path) -> Episode:
    """Looks at every state of a trajectory in an environment of `make_task_env` (num_envs=1).

    Args:
        group: a trajectory of T actions with env_states of T + 1 states.
        entry: its entry in the json, for the reset seed.
        path: its file, for messages.
    """
    import torch

    from rpd_jax.envs.camera_task import frames

    started = time.perf_counter()
    seed = int(entry.get("episode_seed") or 0)
    actions = _dataset(group, "actions", path)[:].astype(np.float32)
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
        action_noise=float(entry.get("action_noise", 0.0)),
        seconds=time.perf_counter() - started,
        rgb=np.stack(images),
        env_states=states,
        steps=steps,
    )


def _read_states(wanted: dict, group: h5py.Group, count: int, path: Path) -> dict:
    """The stored states of everything that the scene holds, float32 [count, D] each."""
    states: dict[str, Any] = {}
    for kind, things in wanted.items():
        states[kind] = {}
        for name, now in things.items():
            key = f"env_states/{kind}/{name}"
            values = _dataset(group, key, path)[:].astype(np.float32)
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
    return dataset
