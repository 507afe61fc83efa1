"""A policy on many tasks: the numbers of the paper's Table I, as a console table, Markdown and JSON."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.table import Column, Table

from rpd_jax.acting.episodes import Act, Episodes, run_episodes
from rpd_jax.acting.video import write_video
from rpd_jax.envs.factory import make_vector_env
from rpd_jax.markdown import markdown_table
from rpd_jax.tasks import Task

COLUMNS = ("task", "trained on in the paper", "success", "95% interval", "mean reward", "mean length", "episodes")


def measure_policy(
    act: Act,
    task: Task,
    num_episodes: int,
    seed: int,
    env_config: ConfigDict,
    *,
    video: Path | None = None,
    on_step: Callable[[int], None] = lambda finished: None,
) -> dict[str, float | str | bool]:
    """Runs a policy on one task.

    Args:
        act: the policy.
        task: that it is to do.
        num_episodes: rounded up to a multiple of the environments.
        seed: of the initial states and of the samples.
        env_config: `num_envs, image_size, mesh_detail` and whatever else `make_vector_env` reads; task and rewards are
            filled in.
        video: mp4 to write, a grid of the first episodes.
        on_step: called after each step with the number of episodes that have ended.

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


def _cells(row: dict) -> tuple[str, ...]:
    return (
        row["task"],
        "held out" if row["held_out"] else "yes",
        f"{row['success']:.1%}",
        f"{row['success_low']:.1%} to {row['success_high']:.1%}",
        f"{row['reward']:.3f} ± {row['reward_high'] - row['reward']:.3f}",
        f"{row['length']:.1f}",
        f"{row['episodes']:.0f}",
    )


def console_table(name: str, rows: Sequence[dict]) -> Table:
    """The rows of `measure_policy` for a terminal."""
    columns = [Column(name, no_wrap=name == "task") for name in COLUMNS]
    table = Table(*columns, title=name)
    for row in rows:
        table.add_row(*_cells(row))
    return table


def write_tables(folder: Path, name: str, settings: dict, rows: Sequence[dict], actions: str = "") -> None:
    """Writes the rows of `measure_policy` to table.md and results.json in `folder`.

    Args:
        folder: made if missing.
        name: of the policy.
        settings: that were the same on all tasks.
        rows: one per task.
        actions: a sentence on which actions were executed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = markdown_table(COLUMNS, map(_cells, rows))
    note = (
        f"{actions} Reward: normalised dense reward per step, mean over episodes; ± and brackets: 95% intervals.\n"
    ).lstrip()
    named = ", ".join(f"{name} {value}" for name, value in settings.items())
    (folder / "table.md").write_text(f"# {name}\n\n{note}{named}.\n\n{table}\n")
    content = {"policy": name, "settings": settings, "tasks": list(rows)}
    (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n")
