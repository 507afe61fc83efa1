"""Time of one PPO minibatch (64 frames: forward, backward, Adam) here and in plain PyTorch, on the same data.

    python tests/benchmarks/ppo_update.py [--sizes 64 128] [--threads 1 2] [--encoders nature small]

Each cell is measured in a process of its own. The best of several whole updates counts, so that other load on the
machine matters little; the processor time next to it is that of all threads. One thread of XLA is set by its flags:
bound to one core by `taskset` it takes 20 times as long.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

MINIBATCH, NUM_MINIBATCHES, EPOCHS, REPEATS = 64, 4, 2, 5


def make_data(image_size: int) -> dict[str, np.ndarray]:
    """A rollout of 32 steps of 8 environments, all values random."""
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

    from rpd_jax.learner import Learner, Rollout
    from rpd_jax.networks import ActorCritic

    config = ConfigDict()
    config.algorithm = "rpd_mse"
    config.ppo = {
        "update_epochs": EPOCHS, "num_minibatches": NUM_MINIBATCHES, "learning_rate": 3e-4, "gamma": 0.8,
        "gae_lambda": 0.9, "finite_horizon": True, "clip": 0.2, "clip_value_loss": False, "entropy_coef": 0.0,
        "value_coef": 0.5, "max_grad_norm": 0.5, "adam_eps": 1e-5, "target_kl": 0.0, "normalize_advantages": True,
        "advantage_std_floor": 0.0,
    }  # fmt: skip
    config.distill = {
        "coef": 1.0, "num_samples": 10, "std_floor": 0.0, "replay": 0, "replay_batch": 0, "replay_coef": 0.0,
        "augment": 0, "augment_ppo": False,
    }  # fmt: skip
    learner = Learner(ActorCritic(encoder=encoder, image_size=image_size), config)
    data = {name: jax.numpy.asarray(array) for name, array in make_data(image_size).items()}
    zeros = jax.numpy.zeros_like(data["rewards"])
    rollout = Rollout(
        rgb=data["rgb"], state=None, actions=data["actions"], logprobs=data["logprobs"], values=data["values"],
        rewards=data["rewards"], dones=zeros, next_done=zeros[0], next_value=zeros[0], final_values=zeros,
        teacher_actions=data["labels"][None],
    )  # fmt: skip
    state = learner.init(jax.random.key(0), data["rgb"][0])

    def update():
        nonlocal state
        state, metrics = learner.update(state, rollout, jax.random.key(0), permutations=data["permutations"])
        jax.block_until_ready(metrics)

    return update


def measure(backend: str, image_size: int, threads: int) -> dict[str, float]:
    """Milliseconds per minibatch of the best update: wall clock and processor time."""
    updater = torch_updater(image_size, threads) if backend == "torch" else jax_updater(image_size, backend)
    updater()
    wall, processor = [], []
    for _ in range(REPEATS):
        wall_start, processor_start = time.perf_counter(), time.process_time()
        updater()
        wall.append(time.perf_counter() - wall_start)
        processor.append(time.process_time() - processor_start)
    scale = 1000.0 / (EPOCHS * NUM_MINIBATCHES)
    return {"wall": min(wall) * scale, "processor": min(processor) * scale}


def measure_in_process(backend: str, image_size: int, threads: int) -> dict[str, float]:
    """`measure` in a fresh process; two threads are what a machine with two cores gives XLA by itself."""
    command = [sys.executable, __file__, "--cell", backend, str(image_size), str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
    if threads == 1:
        environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    return json.loads(output.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--encoders", nargs="+", default=["nature", "small"])
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        backend, image_size, threads = args.cell
        print(json.dumps(measure(backend, int(image_size), int(threads))))
        return
    print(f"ms per minibatch of {MINIBATCH} frames: wall (processor)")
    print(f"{'image':>6} {'threads':>8} {'torch nature':>18}" + "".join(f"{name:>20}" for name in args.encoders))
    for image_size in args.sizes:
        for threads in args.threads:
            cells = [measure_in_process(backend, image_size, threads) for backend in ("torch", *args.encoders)]
            texts = [f"{cell['wall']:.1f} ({cell['processor']:.1f})" for cell in cells]
            ratio = cells[1]["wall"] / cells[0]["wall"]
            line = f"{image_size:>6} {threads:>8} {texts[0]:>18}" + "".join(f"{text:>20}" for text in texts[1:])
            print(f"{line}   {args.encoders[0]}: {ratio:.2f} x PyTorch", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
