"""Random actions for a long time: python -m rpd_jax.envs.soak --steps=10000 --tasks=all

Steps each task's environments in worker processes with uniformly random actions and sparse rewards, and checks that
frames change, that all numbers are finite, that episode metrics say what the rewards and flags said, and that the
workers' memory does not grow. Prints a table; exits with status 1 if anything is wrong.
"""

from rpd_jax.command.start import start

if __name__ == "__main__":
    start()

import sys

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from rich import box
from rich.table import Table

from rpd_jax.command.line import run_command
from rpd_jax.envs.cpu_env import CpuVectorEnv
from rpd_jax.envs.factory import make_vector_env
from rpd_jax.envs.vector_env import Step
from rpd_jax.run.console import plain_console
from rpd_jax.tasks import TASKS, find_task
from rpd_jax.workers.cost import anonymous_mib

_TASKS = flags.DEFINE_list("tasks", ["all"], "Tasks, separated by commas, or 'all'.")
_STEPS = flags.DEFINE_integer("steps", 10_000, "Steps per task, all its environments together.", lower_bound=1)
_NUM_ENVS = flags.DEFINE_integer("num_envs", 16, "Environments of a task.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", None, "Worker processes; by default one per core.", lower_bound=1)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 64, "Width and height of the frames, pixels.", lower_bound=1)
_MESH_DETAIL = flags.DEFINE_float(
    "mesh_detail", 0.15, "Fraction of the robot's triangles that is drawn.", lower_bound=0.001, upper_bound=1.0
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the episodes and the actions.")
_GROWTH = flags.DEFINE_float("growth", 5.0, "MiB per 1,000 steps of a worker that count as a leak.")


def main() -> None:
    columns = ("task", "steps", "episodes", "success", "length", "MiB", "growth", "wrong")
    title = f"{_NUM_ENVS.value} environments, random actions; MiB of a worker, growth in 1,000 of its steps"
    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    faults = 0
    for task in [find_task(name, "--tasks") for name in (TASKS if _TASKS.value == ["all"] else _TASKS.value)]:
        config = ConfigDict(
            {
                "task": task.env_id,
                "num_envs": _NUM_ENVS.value,
                "workers": _WORKERS.value,
                "reward_mode": "sparse",
                "image_size": _IMAGE_SIZE.value,
                "mesh_detail": _MESH_DETAIL.value,
            }
        )
        with make_vector_env(config, backend="cpu") as env:
            soak = Soak(env, _STEPS.value, _SEED.value)
            soak.run()
        wrong = soak.wrong | ({"memory grows"} if growth(soak.memory) > _GROWTH.value else set())
        faults += len(wrong)
        table.add_row(task.env_id, *soak.cells(), ", ".join(sorted(wrong)) or "-")
        print(f"{task.env_id}: done", file=sys.stderr, flush=True)
    plain_console().print(table)
    if faults:
        sys.exit(1)


class Soak:
    """One task under random actions.

    Attributes:
        wrong: what was seen that must not be.
        memory: steps of a worker and the MiB it has allocated, from time to time.
    """

    def __init__(self, env: CpuVectorEnv, steps: int, seed: int):
        """Takes CPU environments that have not been reset yet; `steps` counts all of them together."""
        self.env = env
        self.wrong: set[str] = set()
        self._steps = -(-steps // env.num_envs)
        self._seed = seed
        self._episodes: list[tuple[float, int]] = []  # success, length
        self.memory: list[tuple[int, float]] = []

    def run(self) -> None:
        env, rng = self.env, np.random.default_rng(self._seed)
        rgb = env.reset(self._seed)
        paid, length = np.zeros(env.num_envs), np.zeros(env.num_envs, int)
        for t in range(self._steps):
            if t % max(1, self._steps // 20) == 0:
                self._measure_memory(t)
            step = env.step(rng.uniform(-1, 1, (env.num_envs, 7)).astype(np.float32))
            paid += step.reward
            length += 1
            done = step.terminated | step.truncated
            self._check(step, rgb, paid, length, done)
            for n in np.flatnonzero(done):
                self._episodes.append((float(step.episode.success[n]), int(step.episode.length[n])))
            paid[done], length[done] = 0.0, 0
            rgb = step.rgb
        self._measure_memory(self._steps)

    def cells(self) -> list[str]:
        """The table's numbers."""
        success, length = np.mean(self._episodes, axis=0) if self._episodes else (np.nan, np.nan)
        return [
            f"{self._steps * self.env.num_envs:,}",
            str(len(self._episodes)),
            f"{success:.1%}",
            f"{length:.1f}",
            f"{self.memory[-1][1]:.0f}",
            f"{growth(self.memory):+.2f}",
        ]

    def _measure_memory(self, step: int) -> None:
        pids = self.env.worker_pids
        per_worker = step * self.env.num_envs // len(pids)
        self.memory.append((per_worker, float(np.mean([anonymous_mib(pid) for pid in pids]))))

    def _check(self, step: Step, rgb, paid, length, done) -> None:
        env, episode = self.env, step.episode
        claims = {
            "a state is not finite": np.isfinite(step.state).all() and np.isfinite(step.final_state[done]).all(),
            "a reward is neither 0 nor 1": np.isin(step.reward, (0.0, 1.0)).all(),
            "a reward is not its success": np.array_equal(step.reward, step.terminated),
            "frames stand still": not np.array_equal(step.rgb, rgb),
            "a frame is black": step.rgb.max(axis=(1, 2, 3)).all(),
            "lengths differ": np.array_equal(episode.length[done], length[done]),
            "returns differ": np.array_equal(episode.episode_return[done], paid[done]),
            "success differs": np.array_equal(episode.success[done], paid[done] > 0),
            "a limit is not kept": np.array_equal(step.truncated, length == env.max_episode_steps),
            "a step was lost": step.valid.all(),
        }
        self.wrong |= {fault for fault, holds in claims.items() if not holds}


def growth(memory: list[tuple[int, float]]) -> float:
    """MiB that a worker gains in 1,000 of its steps, by a line through the second half: caches fill in the first."""
    late = memory[len(memory) // 2 :]
    return float(np.polyfit(*zip(*late, strict=True), 1)[0] * 1000) if len(late) > 1 else 0.0


if __name__ == "__main__":
    run_command(main)
