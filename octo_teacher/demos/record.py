"""Recording of demonstrations by parallel worker processes, in ManiSkill's h5 + json layout.

Beside ManiSkill's datasets a trajectory holds `executed_actions`: what was sent to the simulator. `actions` is what the
expert wanted in each visited state. They differ only with action noise, which widens the set of visited states while
the labels stay clean (Laskey et al. 2017, "DART: Noise Injection for Robust Imitation Learning").
"""

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from octo_teacher.demos.episode_files import DemoFile, Episode
from octo_teacher.demos.experts import find_expert, read_poses
from rpd_jax.errors import UserError
from rpd_jax.tasks import find_task


@dataclasses.dataclass(frozen=True)
class Recording:
    """What to record.

    Attributes:
        task: one of the tasks with a scripted expert.
        episodes: number of episodes that the file shall hold in the end.
        output: path of the h5 file; the json goes beside it.
        seed: seed of the first episode tried; the following ones count up.
        image_size: width and height of the frames, pixels.
        mesh_detail: fraction of the robot's triangles that is rendered.
        noise: each episode draws a strength from [0, noise] and adds normal noise of that standard deviation to the
            executed translations (action units); 0 executes the expert's actions.
        keep_failures: store episodes that fail within the task's limit too.
        workers: processes; None for one per core.
    """

    task: str
    episodes: int
    output: Path
    seed: int = 0
    image_size: int = 128
    mesh_detail: float = 1.0
    noise: float = 0.0
    keep_failures: bool = False
    workers: int | None = None


def record(recording: Recording, on_episode: Callable[[int, int, Episode], None] | None = None) -> DemoFile:
    """Records until the file holds `recording.episodes` episodes, and returns it.

    The same options and seed give the same episodes, whatever the number of workers. A recording that was killed
    continues where it stopped; an existing file is extended.

    Args:
        recording: what to record.
        on_episode: called after each episode tried with (stored in the file, tried in this call, the episode).

    Raises:
        UserError: unknown task, values out of range, or a file that was recorded with other options.
    """
    find_task(recording.task)
    find_expert(recording.task)
    if recording.episodes < 1:
        raise UserError(f"--episodes={recording.episodes} is not a positive number of episodes.")
    if recording.noise < 0:
        raise UserError(f"--noise={recording.noise} is negative: it is a standard deviation in action units.")
    demos = DemoFile.open_for_append(recording.output, _env_info(recording), _camera_info(recording))
    try:
        stored = len(demos)
        if stored < recording.episodes:
            first_seed = max(recording.seed, demos.last_seed() + 1)
            for tried, episode in enumerate(_play_in_order(recording, first_seed), start=1):
                if episode.success or recording.keep_failures:
                    demos.add(episode)
                    stored += 1
                if on_episode:
                    on_episode(stored, tried, episode)
                if stored == recording.episodes:
                    break
    finally:
        demos.merge()
    return demos


def _env_info(recording: Recording) -> dict:
    return {
        "env_id": recording.task,
        "env_kwargs": {
            "obs_mode": "rgb",
            "control_mode": "pd_ee_delta_pose",
            "reward_mode": "sparse",
            "sim_backend": "physx_cpu",
            "render_backend": "cpu",
        },
        "max_episode_steps": find_task(recording.task).max_episode_steps,
    }


def _camera_info(recording: Recording) -> dict:
    return {"image_size": recording.image_size, "mesh_detail": recording.mesh_detail}


def _play_in_order(recording: Recording, first_seed: int) -> Iterator[Episode]:
    """Yields the episodes of seeds first_seed, first_seed + 1, ... in this order, played by worker processes."""
    context = multiprocessing.get_context("spawn")
    count = recording.workers or os.cpu_count() or 1
    seeds, results = context.Queue(), context.Queue()
    workers = [context.Process(target=_work, args=(recording, seeds, results), daemon=True) for _ in range(count)]
    for worker in workers:
        worker.start()
    try:
        next_seed, wanted, early = first_seed, first_seed, {}
        while True:
            while next_seed < wanted + 2 * count + len(early):
                seeds.put(next_seed)
                next_seed += 1
            while wanted not in early:
                seed, result = _wait_for(results, workers)
                early[seed] = result
            yield early.pop(wanted)
            wanted += 1
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _wait_for(results, workers) -> tuple[int, Episode]:
    while True:
        try:
            seed, result = results.get(timeout=1.0)
        except multiprocessing.queues.Empty:
            for worker in workers:
                if worker.exitcode not in (None, 0):
                    raise UserError(
                        f"A recording process died with exit code {worker.exitcode} (its own message is above): "
                        "run the same command again to continue."
                    ) from None
            continue
        if isinstance(result, UserError):
            raise result
        return seed, result


def _work(recording: Recording, seeds, results) -> None:
    import torch

    from rpd_jax.envs.camera_task import make_task_env

    torch.set_num_threads(1)
    try:
        env = make_task_env(
            recording.task, recording.image_size, "sparse", mesh_detail=recording.mesh_detail, with_state=False
        )
    except UserError as error:
        results.put((-1, error))
        return
    while True:
        seed = seeds.get()
        results.put((seed, play_episode(env, recording.task, seed, recording.noise)))


def play_episode(env, task: str, seed: int, noise: float = 0.0) -> Episode:
    """Plays one episode with the task's expert in an environment of `make_task_env` (num_envs=1)."""
    from rpd_jax.envs.camera_task import frames

    expert = find_expert(task)
    rng = np.random.default_rng([seed, 1])
    strength = float(rng.uniform(0.0, noise)) if noise else 0.0
    started = time.perf_counter()
    # PhysX carries solver state from one episode into the next; a rebuilt scene makes the seed alone decide.
    obs, _ = env.reset(seed=seed, options={"reconfigure": True})
    rgb, states = [_to_rgb(frames(obs))], [_to_numpy(env.unwrapped.get_state_dict())]
    actions, executed, rewards, success, terminated, truncated = [], [], [], [], [], []
    while True:
        action = expert.act(read_poses(env, expert))
        noisy = action.copy()
        if strength:
            noisy[:3] = np.clip(noisy[:3] + strength * rng.normal(size=3), -1.0, 1.0)
        obs, reward, term, trunc, info = env.step(noisy)
        actions.append(action)
        executed.append(noisy)
        rewards.append(float(reward))
        success.append(bool(info["success"]))
        terminated.append(bool(term))
        truncated.append(bool(trunc))
        rgb.append(_to_rgb(frames(obs)))
        states.append(_to_numpy(env.unwrapped.get_state_dict()))
        if terminated[-1] or truncated[-1]:
            break
    return Episode(
        seed=seed,
        success=success[-1],
        action_noise=strength,
        seconds=time.perf_counter() - started,
        rgb=np.stack(rgb),
        env_states=_stack(states),
        steps={
            "actions": np.stack(actions),
            "executed_actions": np.stack(executed),
            "rewards": np.asarray(rewards, np.float32),
            "success": np.asarray(success),
            "terminated": np.asarray(terminated),
            "truncated": np.asarray(truncated),
        },
    )


def _to_rgb(frame) -> np.ndarray:
    return frame[0, ..., :3].cpu().numpy().copy()


def _to_numpy(tree):
    if isinstance(tree, dict):
        return {name: _to_numpy(value) for name, value in tree.items()}
    return tree[0].cpu().numpy().copy()


def _stack(trees: list):
    if isinstance(trees[0], dict):
        return {name: _stack([tree[name] for tree in trees]) for name in trees[0]}
    return np.stack(trees)
