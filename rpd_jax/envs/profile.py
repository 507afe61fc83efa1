"""Where the time of an environment step goes: `python -m rpd_jax.envs.profile --help`.

First, in one process, the CPU milliseconds that one environment spends on simulating (controller, physics, reward,
state) and on drawing, by mesh detail and image size. Then frames per second of CpuVectorEnv by number of environments
and workers, with the bound that those milliseconds and the cores allow, and the memory of a worker.
"""

import argparse
import itertools
import time

import numpy as np

from rpd_jax.envs.cpu_env import CpuVectorEnv
from rpd_jax.tasks import find_task


def _numbers(kind):
    return lambda text: [kind(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="PushCube-v1")
    parser.add_argument("--image_size", type=_numbers(int), default=[128], help="comma-separated (default: 128)")
    parser.add_argument("--mesh_detail", type=_numbers(float), default=[1.0, 0.15], help="default: 1.0,0.15")
    parser.add_argument("--num_envs", type=_numbers(int), default=[4, 8], help="default: 4,8")
    parser.add_argument("--workers", type=_numbers(int), default=[1, 2], help="default: 1,2")
    parser.add_argument("--seconds", type=float, default=3.0, help="of stepping per row (default: 3)")
    args = parser.parse_args()
    find_task(args.task)

    print("one environment in one process, CPU ms per step (all threads)")
    print("   px  detail  simulate   draw    sum")
    cost = {}
    for size, detail in itertools.product(args.image_size, args.mesh_detail):
        draw, whole = _step_cost(_task_args(args.task, size, detail), args.seconds)
        cost[size, detail] = whole
        print(f"{size:5d} {detail:7.2f} {whole - draw:9.1f} {draw:6.1f} {whole:6.1f}", flush=True)

    print("\nworker processes: frames/s, share of the bound workers / (ms per step), parent's copy per step, memory")
    print("   px  detail  envs  workers  frames/s  of bound  copy ms  MiB/worker")
    for size, num_envs, workers in itertools.product(args.image_size, args.num_envs, args.workers):
        detail = min(args.mesh_detail)
        rate, copy, memory = _throughput(_task_args(args.task, size, detail), num_envs, workers, args.seconds)
        bound = min(workers, num_envs) * 1e3 / cost[size, detail]
        print(
            f"{size:5d} {detail:7.2f} {num_envs:5d} {workers:8d} {rate:9.1f} {rate / bound:9.0%} {copy:8.2f}"
            f" {memory:10.0f}",
            flush=True,
        )


def _task_args(task: str, image_size: int, mesh_detail: float) -> dict:
    return {
        "env_id": task,
        "image_size": image_size,
        "reward_mode": "sparse",
        "mesh_detail": mesh_detail,
        "camera": {},
    }


def _step_cost(task_args: dict, seconds: float) -> tuple[float, float]:
    """Returns CPU ms of drawing a frame and of a whole step, drawing included."""
    import torch

    from rpd_jax.envs.camera_task import make_task_env

    torch.set_num_threads(1)
    env = make_task_env(**{**task_args, "camera": None})
    env.reset(seed=0)
    scene = env.unwrapped.scene
    (camera,) = scene.sensors.values()
    rng = np.random.default_rng(0)

    def draw():
        scene.update_render()
        camera.capture()
        camera.get_obs()

    def step():
        *_, truncated, _ = env.step(rng.uniform(-1, 1, 7).astype(np.float32))
        if truncated:
            env.reset()

    costs = _cpu_ms(draw, seconds / 2), _cpu_ms(step, seconds / 2)
    env.close()
    return costs


def _cpu_ms(work, seconds: float) -> float:
    work()
    start, end, count = time.process_time(), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        work()
        count += 1
    return (time.process_time() - start) / count * 1e3


def _throughput(task_args: dict, num_envs: int, workers: int, seconds: float) -> tuple[float, float, float]:
    """Returns frames per second, ms per step that the parent copies, and the proportional MiB of a worker."""
    limit = find_task(task_args["env_id"]).max_episode_steps
    actions = np.random.default_rng(0).uniform(-1, 1, (num_envs, 7)).astype(np.float32)
    with CpuVectorEnv(task_args, num_envs, max_episode_steps=limit, workers=workers) as env:
        env.reset(0)
        env.step(actions)
        start, count, copying = time.monotonic(), 0, 0.0
        while time.monotonic() - start < seconds:
            env.step_async(actions)
            env.wait_for_workers()
            before = time.monotonic()
            env.collect()
            copying += time.monotonic() - before
            count += 1
        rate = count * num_envs / (time.monotonic() - start)
        memory = [_proportional_memory(pid) for pid in env.worker_pids]
    return rate, copying / count * 1e3, float(np.mean(memory))


def _proportional_memory(pid: int) -> float:
    """Returns MiB, pages shared with other processes divided among them; nan where /proc does not tell."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) / 1024
    except (OSError, StopIteration):
        return float("nan")


if __name__ == "__main__":
    main()
