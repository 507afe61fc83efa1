"""Recording of demonstrations by parallel worker processes, in ManiSkill's h5 + json layout.

Beside ManiSkill's datasets a trajectory holds `executed_actions`: what was sent to the simulator. `actions` is what the
expert wanted in each visited state. They differ only with action noise, which widens the set of visited states while
the labels stay clean (Laskey et al. 2017, "DART: Noise Injection for Robust Imitation Learning").
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from octo_teacher.demos.episode_files import DemoFile, Episode
from octo_teacher.demos.experts import find_expert, read_poses
from octo_teacher.demos.parallel import in_order
from rpd_jax.errors import UserError
from rpd_jax.run.stop import Interrupted, StopRequest
from rpd_jax.tasks import find_task

SOURCE = {
    "source_type": "scripted",
    "source_desc": "closed-loop experts on privileged poses; actions are labels, executed_actions were played",
}


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
    find_task(recording.task, "--task")
    find_expert(recording.task)
    if recording.episodes < 1:
        raise UserError(f"--episodes={recording.episodes} is not a positive number of episodes.")
    if recording.noise < 0:
        raise UserError(f"--noise={recording.noise} is negative: it is a standard deviation in action units.")
    demos = DemoFile.open_for_append(recording.output, _env_info(recording), _camera_info(recording), SOURCE)
    with merged_at_the_end(demos) as check_stop:
        stored = len(demos)
        if stored < recording.episodes:
            first_seed = max(recording.seed, demos.last_seed() + 1)
            # seeds first_seed, first_seed + 1, ... until there are enough
            played = in_order(partial(_player, recording), first_seed, workers=recording.workers, check=check_stop)
            for tried, episode in enumerate(played, start=1):
                if episode.success or recording.keep_failures:
                    demos.add(episode)
                    stored += 1
                if on_episode:
                    on_episode(stored, tried, episode)
                if stored == recording.episodes:
                    break
    return demos


@contextmanager
def merged_at_the_end(demos: DemoFile) -> Iterator[Callable[[], None]]:
    """Merges the parts of `demos` after the block, however it ends.

    Ctrl-C and SIGTERM are remembered, since what h5py is doing may swallow an exception: the block is to call, now and
    then, the function that it is given. The block ends in KeyboardInterrupt after one of them; a second acts as usual.
    """
    try:
        with StopRequest() as stop:
            try:
                yield stop.check
            finally:
                demos.merge()
    except Interrupted:
        raise KeyboardInterrupt from None


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


def _player(recording: Recording) -> Callable[[int], Episode]:
    """Makes the environment and returns seed -> episode; called in a worker process."""
    from rpd_jax.envs.camera_task import make_task_env

    env = make_task_env(
        recording.task, recording.image_size, "sparse", mesh_detail=recording.mesh_detail, with_state=False
    )
    return lambda seed: play_episode(env, recording.task, seed, recording.noise)


def play_episode(env, task: str, seed: int, noise: float = 0.0) -> Episode:
    """Plays one episode with the task's expert in an environment of `make_task_env` (num_envs=1)."""
    from rpd_jax.envs.camera_task import frames

    expert = find_expert(task)
    rng = np.random.default_rng([seed, 1])
    strength = float(rng.uniform(0.0, noise)) if noise else 0.0
    started = time.perf_counter()
    # PhysX carries solver state from one episode into the next; a rebuilt scene makes the seed alone decide.
    obs, _ = env.reset(seed=seed, options={"reconfigure": True})
    rgb, states = [to_rgb(frames(obs))], [_to_numpy(env.unwrapped.get_state_dict())]
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
        rgb.append(to_rgb(frames(obs)))
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


def to_rgb(frame) -> np.ndarray:
    """A copy of the frame uint8 [1, H, W, 4] of one environment, without alpha: uint8 [H, W, 3]."""
    return frame[0, ..., :3].cpu().numpy().copy()


def _to_numpy(tree):
    if isinstance(tree, dict):
        return {name: _to_numpy(value) for name, value in tree.items()}
    return tree[0].cpu().numpy().copy()


def _stack(trees: list):
    if isinstance(trees[0], dict):
        return {name: _stack([tree[name] for tree in trees]) for name in trees[0]}
    return np.stack(trees)
