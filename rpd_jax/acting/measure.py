"""A policy measured on one task, in environments of its own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from rpd_jax.acting.episodes import Act, Episodes, run_episodes
from rpd_jax.acting.video import write_video
from rpd_jax.envs.factory import make_vector_env
from rpd_jax.tasks import Task


def measure_policy(
    act: Act,
    task: Task,
    num_episodes: int,
    seed: int,
    env_config: ConfigDict,
    *,
    sees_frames: bool = True,
    video: Path | None = None,
    on_step: Callable[[int], None] = lambda finished: None,
    on_actions: Callable[[np.ndarray], None] = lambda actions: None,
) -> dict[str, float | str | bool]:
    """Runs a policy on one task.

    Args:
        act: the policy.
        task: that it is to do.
        num_episodes: rounded up to a multiple of the environments.
        seed: of the initial states and of the samples.
        env_config: `num_envs, image_size, mesh_detail` and whatever else `make_vector_env` reads; task and rewards are
            filled in.
        sees_frames: False where the policy looks at the state alone; nothing is drawn then but for a video.
        video: mp4 to write, a grid of the first episodes.
        on_step: called after each step with the number of episodes that have ended.
        on_actions: called with the actions of each step.

    Returns:
        A JSON-ready row: "task", "instruction", "held_out", what `Episodes.summary` holds, and "reward" with bounds of
        its 95% interval, the normalised dense reward per step in [0, 1], averaged over each episode.
    """
    env_config = env_config.copy_and_resolve_references()
    env_config.task = task.env_id
    env_config.reward_mode = "normalized_dense"
    env_config.num_envs = min(env_config.num_envs, num_episodes)
    with make_vector_env(env_config) as envs:
        episodes = run_episodes(
            envs,
            act,
            num_episodes,
            seed,
            video_episodes=8 if video else 0,
            on_step=on_step,
            sees_frames=sees_frames,
            on_actions=on_actions,
        )
    if video:
        write_video(video, episodes.videos)
    return {
        "task": task.env_id,
        "instruction": task.instruction,
        "held_out": task.held_out,
        **episodes.summary(),
        **_reward(episodes),
    }


def _reward(episodes: Episodes) -> dict[str, float]:
    reward = episodes.episode_return / episodes.length
    half = 1.959964 * float(reward.std(ddof=1)) / np.sqrt(len(reward)) if len(reward) > 1 else 0.0
    mean = float(reward.mean())
    return {"reward": mean, "reward_low": mean - float(half), "reward_high": mean + float(half)}
