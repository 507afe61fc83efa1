"""Time of one PPO minibatch (64 frames: forward, backward, Adam) here and in plain PyTorch, on the same data.

    python tests/benchmarks/ppo_update.py [--sizes 64 128] [--threads 1 2] [--encoders nature small] [--rounds 5]

Each cell is a process of its own, and the cells take turns, one update each, so that other load on the machine meets
all of them. Times are those of the best update, on the clock and of the processor (all threads); the ratio to PyTorch
is the median over the rounds. One thread of XLA is set by NPROC, the size of its pools: bound to a core by `taskset` it
takes 20 times as long, and flags of XLA do not reach all of its pools.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

# 64 minibatches: a run's updates have 256, and what an update does once is shared among them.
MINIBATCH, NUM_MINIBATCHES, EPOCHS, ROUNDS = 64, 16, 4, 5


def make_data(image_size: int) -> dict[str, np.ndarray]:
    """A rollout of 8 environments, all values random."""
    rng = np.random.default_rng(0)
    steps, envs = MINIBATCH * NUM_MINIBATCHES // 8, 8
    noise = {name: rng.normal(size=(steps, envs)).astype(np.float32) for name in ("advantages", "values", "rewards")}
    return noise | {
        "rgb": rng.integers(0, 256, (steps, envs, image_size, image_size, 3), dtype=np.uint8),
        "actions": rng.normal(size=(steps, envs, 7)).astype(np.float32),
        "logprobs": rng.normal(-6.0, 0.1, size=(steps, envs)).astype(np.float32),
        "labels": rng.normal(size=(steps, envs, 7)).astype(np.float32),
        "permutations": np.stack([rng.permutation(steps * envs) for _ in range(EPOCHS)]).astype(np.int32),
    }


def torch_updater(image_size: int, threads: int):
    """Returns a function that runs one update in PyTorch."""
    import torch
    from torch_update import TorchStudent, update

    torch.set_num_threads(threads)
    data = make_data(image_size)
    samples = {
        name: torch.tensor(data[name]).flatten(0, 1) for name in ("rgb", "actions", "logprobs", "advantages", "labels")
    }
    samples["returns"] = torch.tensor(data["values"]).flatten()
    order = torch.tensor(data["permutations"], dtype=torch.int64)
    student = TorchStudent(image_size)
    optimizer = torch.optim.Adam(student.parameters(), 3e-4, eps=1e-5)
    return lambda: update(student, optimizer, samples, order, NUM_MINIBATCHES)


def jax_updater(image_size: int, encoder: str):
    """Returns a function that runs one update in JAX."""
    import jax
    from ml_collections import ConfigDict

    from rpd_jax.learning.learner import Learner
    from rpd_jax.learning.rollout import Rollout
    from rpd_jax.learning.schedules import Coefficients
    from rpd_jax.student.networks import ActorCritic

    config = ConfigDict()
    config.algorithm = "rpd_mse"
    config.ppo = {
        "update_epochs": EPOCHS, "num_minibatches": NUM_MINIBATCHES, "learning_rate": 3e-4, "gamma": 0.8,
        "gae_lambda": 0.9, "finite_horizon": True, "clip": 0.2, "clip_value_loss": False, "entropy_coef": 0.0,
        "value_coef": 0.5, "max_grad_norm": 0.5, "adam_eps": 1e-5, "target_kl": 0.0, "normalize_advantages": True,
        "advantage_std_floor": 0.0, "critic_first": 0, "critic_continues": False,
    }  # fmt: skip
    config.distill = {
        "coef": 1.0, "num_samples": 10, "std_floor": 0.0, "replay": 0, "replay_batch": 0, "replay_coef": 0.0,
        "augment": 0, "augment_ppo": False, "replay_both": False,
    }  # fmt: skip
    learner = Learner(ActorCritic(encoder=encoder, image_size=image_size), config)
    data = {name: jax.numpy.asarray(array) for name, array in make_data(image_size).items()}
    zeros = jax.numpy.zeros_like(data["rewards"])
    rollout = Rollout(
        rgb=data["rgb"], state=None, actions=data["actions"], logprobs=data["logprobs"], values=data["values"],
        rewards=data["rewards"], dones=zeros, next_done=zeros[0], next_value=zeros[0], final_values=zeros,
        teacher_actions=data["labels"][None, None],
    )  # fmt: skip
    state = learner.init(jax.random.key(0), data["rgb"][0])
    coefficients = Coefficients(distill=1.0, replay=0.0, learning_rate=3e-4)

    def update():
        nonlocal state
        order = data["permutations"]
        state, metrics = learner.update(state, rollout, jax.random.key(0), coefficients, permutations=order)
        jax.block_until_ready(metrics)

    return update


def serve(backend: str, image_size: int, threads: int) -> None:
    """Runs one update for each line of the input and answers with its milliseconds per minibatch."""
    updater = torch_updater(image_size, threads) if backend == "torch" else jax_updater(image_size, backend)
    updater()
    print("ready", flush=True)
    scale = 1000.0 / (EPOCHS * NUM_MINIBATCHES)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        updater()
        times = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        print(json.dumps({name: scale * seconds for name, seconds in times.items()}), flush=True)


class Cell:
    """A process that runs updates when asked; two threads are what a machine with two cores gives XLA by itself."""

    def __init__(self, backend: str, image_size: int, threads: int):
        command = [sys.executable, __file__, "--cell", backend, str(image_size), str(threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
        if threads == 1:
            environment["NPROC"] = "1"
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{backend} did not start")

    def update(self) -> dict[str, float]:
        """Milliseconds per minibatch of one update: wall clock and processor time."""
        print(file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def compare(backends: list[str], image_size: int, threads: int, rounds: int) -> list[list[dict[str, float]]]:
    """The times of each backend's updates; the backends take turns, so that other load meets all of them."""
    cells = [Cell(backend, image_size, threads) for backend in backends]
    turns = [[cell.update() for cell in cells] for _ in range(rounds)]
    for cell in cells:
        cell.close()
    return list(zip(*turns, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--encoders", nargs="+", default=["nature", "small"])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        backend, image_size, threads = args.cell
        serve(backend, int(image_size), int(threads))
        return
    table = Table(
        "image", "threads", "student", "ms", "CPU ms", "x PyTorch", "x PyTorch, CPU",
        title=f"A minibatch of {MINIBATCH} frames: forward, backward, Adam", title_justify="left",
    )  # fmt: skip
    for image_size in args.sizes:
        for threads in args.threads:
            names = ["torch", *args.encoders]
            turns = compare(names, image_size, threads, args.rounds)
            for name, times in zip(names, turns, strict=True):
                best = {kind: min(time[kind] for time in times) for kind in ("wall", "processor")}
                pairs = list(zip(times, turns[0], strict=True))
                ratios = {kind: statistics.median(ours[kind] / torch[kind] for ours, torch in pairs) for kind in best}
                label = "nature, PyTorch" if name == "torch" else name
                table.add_row(
                    str(image_size), str(threads), label, f"{best['wall']:.1f}", f"{best['processor']:.1f}",
                    f"{ratios['wall']:.2f}", f"{ratios['processor']:.2f}",
                )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
