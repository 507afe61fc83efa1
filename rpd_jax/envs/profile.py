"""Where the time of an environment step goes: `python -m rpd_jax.envs.profile --help`.

First, in one process, the CPU milliseconds that one step of one environment takes: physics (controller and simulation),
reward and state, drawing, and the transfer into shared memory; by mesh detail and image size. Then frames per second of
CpuVectorEnv by number of environments and workers. Environments of one size with different numbers of workers are
stepped in turns, so that what else runs on the machine falls on all of them alike.

Not drawn/s: steps of environments per second where nobody looks at frames. Speedup: over the least number of workers.
Bound: frames/s as a share of what the milliseconds and the workers (at most the cores) allow. CPU ms: what workers and
trainer together spend on a frame. CPU bound: the milliseconds as a share of that, which holds on a crowded machine too.
MiB: of one worker.
"""

from rpd_jax.command.start import start

if __name__ == "__main__":
    start()

import itertools
import json
import os
import statistics
import time

# As in the workers: a frame is drawn by one thread.
os.environ.setdefault("LP_NUM_THREADS", "0")

import numpy as np
from absl import flags
from rich import box
from rich.table import Table

from rpd_jax.command.flag_kinds import define_numbers
from rpd_jax.command.line import run_command
from rpd_jax.cores import usable_cores
from rpd_jax.envs.cpu_env import CpuVectorEnv
from rpd_jax.envs.task_arguments import check_task_arguments
from rpd_jax.run.console import plain_console
from rpd_jax.workers.cost import cpu_seconds, proportional_mib

# Steps of one number of workers before the next one's turn.
_TURN = 4

# How the tables call what the JSON calls otherwise; other names are the same in both.
_HEADINGS = {
    "image_size": "px",
    "mesh_detail": "detail",
    "reward_state_ms": "reward+state",
    "num_envs": "envs",
    "frames_per_s": "frames/s",
    "undrawn_steps_per_s": "not drawn/s",
    "of_bound": "bound",
    "cpu_ms_per_frame": "CPU ms",
    "of_cpu_bound": "CPU bound",
    "mib_per_worker": "MiB",
}


def run(values: flags.FlagValues) -> None:
    """Measures what the flags of `define_flags` ask for, and prints it; raises UserError for what the task refuses."""
    steps, rates = [], []
    for size, detail in itertools.product(values.image_size, values.mesh_detail):
        task_args = _task_args(values.task, size, detail)
        limit = check_task_arguments(values.task, size, "sparse", detail).max_episode_steps
        steps.append({"image_size": size, "mesh_detail": detail} | step_cost(task_args, values.seconds))
        for num_envs in values.num_envs:
            counts = sorted({min(count, num_envs) for count in values.workers})
            rates += [
                {"image_size": size, "mesh_detail": detail, "num_envs": num_envs} | row
                for row in throughput(task_args, num_envs, limit, counts, values.seconds, steps[-1]["step_ms"])
            ]
    if values.json:
        print(json.dumps({"task": values.task, "steps": steps, "throughput": rates}, indent=2))
        return
    console = plain_console(width=100)  # in a file too
    console.print(_table(f"{values.task}: one environment, one process, CPU ms per step", steps))
    console.print(_table(f"{values.task}: worker processes", rates))


def step_cost(task_args: dict, seconds: float) -> dict[str, float]:
    """Returns CPU milliseconds of a step and of its parts, measured inside the same steps; resets are left out."""
    import torch

    torch.set_num_threads(1)
    with torch.inference_mode():  # as in a worker
        return _step_cost(task_args, seconds)


def _step_cost(task_args: dict, seconds: float) -> dict[str, float]:
    from rpd_jax.envs.camera_task import frames, make_task_env, states

    env = make_task_env(**{**task_args, "camera": None})
    obs, _ = env.reset(seed=0)
    spent = dict.fromkeys(("draw", "physics", "transfer", "step"), 0.0)

    def timed(part, work):
        def run(*args, **kwargs):
            start = time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                spent[part] += time.process_time() - start

        return run

    task = env.unwrapped
    task._get_obs_sensor_data = timed("draw", task._get_obs_sensor_data)
    task._step_action = timed("physics", task._step_action)
    step = timed("step", env.step)
    rgb = np.empty((*frames(obs).shape[1:3], 3), np.uint8)
    state = np.empty(states(obs).shape[1], np.float32)

    def transfer():
        rgb[:] = frames(obs)[0, ..., :3].numpy()
        state[:] = states(obs)[0].numpy()

    transfer = timed("transfer", transfer)
    rng = np.random.default_rng(0)
    end, count = time.monotonic() + seconds, -1
    while count < 1 or time.monotonic() < end:
        if count == 0:
            spent.update(dict.fromkeys(spent, 0.0))  # the first step builds what later ones reuse
        count += 1
        obs, *_, truncated, _ = step(rng.uniform(-1, 1, 7).astype(np.float32))
        transfer()
        if truncated:
            before = dict(spent)
            env.reset()
            spent.update(before)
    env.close()
    ms = {part: value / count * 1e3 for part, value in spent.items()}
    return {
        "physics_ms": ms["physics"],
        "reward_state_ms": ms["step"] - ms["physics"] - ms["draw"],
        "draw_ms": ms["draw"],
        "transfer_ms": ms["transfer"],
        "step_ms": ms["step"] + ms["transfer"],
    }


def throughput(
    task_args: dict, num_envs: int, limit: int, worker_counts: list[int], seconds: float, step_ms: float
) -> list[dict[str, float]]:
    """Returns a row for each number of workers; they take turns, with and without drawing, `seconds` for each."""
    rng = np.random.default_rng(0)
    envs = {}
    try:
        for count in worker_counts:
            envs[count] = CpuVectorEnv(task_args, num_envs, max_episode_steps=limit, workers=count)
            envs[count].reset(0)
        turns, undrawn = ({count: [] for count in envs} for _ in range(2))
        cpu = dict.fromkeys(envs, 0.0)
        end = time.monotonic() + seconds * len(envs)
        while time.monotonic() < end or len(turns[worker_counts[-1]]) < 2:
            for count, env in envs.items():
                before = _cpu_total(env)
                turns[count].append(_seconds_per_step(env, rng))
                cpu[count] += _cpu_total(env) - before
                env.set_drawing(False)
                undrawn[count].append(_seconds_per_step(env, rng))
                env.set_drawing(True)
        rows = []
        for count, env in envs.items():
            # Of the turns with the environments before: the same seconds, the same other load.
            ratios = [one / this for one, this in zip(turns[worker_counts[0]], turns[count], strict=True)]
            rate = len(turns[count]) / sum(turns[count])
            cpu_ms = cpu[count] / (len(turns[count]) * _TURN * num_envs) * 1e3
            rows.append(
                {
                    "workers": count,
                    "frames_per_s": rate,
                    "undrawn_steps_per_s": len(undrawn[count]) / sum(undrawn[count]),
                    "speedup": statistics.median(ratios),
                    "of_bound": rate * step_ms / 1e3 / min(count, usable_cores()),
                    "cpu_ms_per_frame": cpu_ms,
                    "of_cpu_bound": step_ms / cpu_ms,
                    "mib_per_worker": statistics.mean(map(proportional_mib, env.worker_pids)),
                }
            )
        return rows
    finally:
        for env in envs.values():
            env.close()


def _seconds_per_step(env: CpuVectorEnv, rng: np.random.Generator) -> float:
    """Of one environment among those of a turn."""
    start = time.monotonic()
    for _ in range(_TURN):
        env.step(rng.uniform(-1, 1, (env.num_envs, 7)))
    return (time.monotonic() - start) / _TURN / env.num_envs


def _cpu_total(env: CpuVectorEnv) -> float:
    return time.process_time() + sum(map(cpu_seconds, env.worker_pids))


def _task_args(task: str, image_size: int, mesh_detail: float) -> dict:
    return {
        "env_id": task,
        "image_size": image_size,
        "reward_mode": "sparse",
        "mesh_detail": mesh_detail,
        "camera": {},
    }


def _table(title: str, rows: list[dict[str, float]]) -> Table:
    headings = [_HEADINGS.get(name, name.removesuffix("_ms")) for name in rows[0]]
    table = Table(*headings, title=title, title_justify="left", box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    for row in rows:
        table.add_row(*(_cell(name, value) for name, value in row.items()))
    return table


def _cell(name: str, value: float) -> str:
    if name.startswith("of_"):
        return f"{value:.0%}"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("task", "PushCube-v1", "The task.", values)
    define_numbers("image_size", (128,), "Width and height of the frames, pixels.", values=values)
    define_numbers(
        "mesh_detail", (1.0, 0.15), "Drawn fractions of the robot's triangles.", kind=float, values=values, least=0.001
    )
    define_numbers("num_envs", (4, 16), "Numbers of environments.", values=values)
    define_numbers("workers", (1, 2), "Numbers of worker processes.", values=values)
    flags.DEFINE_float("seconds", 5.0, "Of stepping per row.", 0.001, flag_values=values)
    flags.DEFINE_bool("json", False, "Print JSON instead of tables.", values)


if __name__ == "__main__":
    define_flags()
    run_command(lambda: run(flags.FLAGS))
