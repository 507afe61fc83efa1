r"""Kills a training run at random moments, starts it again each time, and compares it with one that was left alone.

    python tests/benchmarks/kill_runs.py [--kills 20] [--seed 0]

A small run (RPD, a student that sees the state, the embedded teacher, two environments in one worker) with a checkpoint
every second iteration, and a replay whose rows are overwritten between any two of them. Each kill is a SIGKILL to the
whole process group. After each one: is the newest checkpoint at most one interval behind the metrics, and does every
line of metrics.jsonl parse? In the end: are all metrics, parameters and moments, and the replay, bit for bit those of
the run that was left alone?
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
EVERY = 2  # iterations between checkpoints
SETTINGS = {
    "algorithm": "rpd_mse",
    "student.observation": "state",
    "env.image_size": 64,
    "env.num_envs": 2,
    "refine": "pixels",
    "env.workers": 1,
    "ppo.rollout_steps": 8,
    "ppo.num_minibatches": 2,
    "ppo.update_epochs": 1,
    "distill.averaged": 1,
    "distill.replay": 40,  # of 16 rows that come in an iteration
    "distill.replay_batch": 8,
    "distill.replay_coef": 1.0,
    "teacher.eval_episodes": 0,
    "eval.every": 1000,
    "eval.final_episodes": 2,
    "eval.video_episodes": 0,
    "checkpoint.every": EVERY,
}


class Run:
    """One run directory and the process that works on it."""

    def __init__(self, workdir: Path, iterations: int, cache: Path):
        steps = iterations * SETTINGS["env.num_envs"] * SETTINGS["ppo.rollout_steps"]
        flags = [f"--config.{name}={value}" for name, value in {**SETTINGS, "total_steps": steps}.items()]
        self.workdir = workdir
        config = ["--config=configs/push_cube_sparse.py", f"--workdir={workdir}"]
        self.command = [sys.executable, "train.py", *config, *flags]
        # Compiled programs are shared, so that a restart costs seconds.
        self.environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def start(self) -> subprocess.Popen:
        """Starts, or continues, the run in a process group of its own."""
        return subprocess.Popen(
            self.command,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def logged(self) -> list[dict]:
        """What metrics.jsonl holds, without times; a line that a kill cut in two is left out."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]

    def checkpoints(self) -> list[int]:
        """Iterations of the complete checkpoints."""
        return sorted(int(path.name) for path in (self.workdir / "checkpoints").glob("*") if path.name.isdigit())


def parameters(run: Run) -> list[np.ndarray]:
    """The parameters, moments and replay of the newest checkpoint."""
    import jax
    import orbax.checkpoint as ocp

    from rpd_jax.acting.kept_replay import read_replay

    path = run.workdir / "checkpoints" / str(run.checkpoints()[-1])
    state = ocp.StandardCheckpointer().restore(path / "state")
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state, read_replay(path, "labels", "count")))]


def kill_at_random(run: Run, moments: random.Random) -> tuple[float, int, int]:
    """Starts the run, kills it some time after its first new line, and checks what it left.

    Returns seconds from start to kill, iterations logged, and the newest checkpoint's iteration.
    """
    before = len(run.logged())
    process, start = run.start(), time.monotonic()
    # Half of the kills hit the start (restore, resume of the log), the others the loop.
    if moments.random() < 0.5:
        while len(run.logged()) <= before and process.poll() is None:
            time.sleep(0.02)
    time.sleep(moments.uniform(0.0, 4.0))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    logged, saved = len(run.logged()), run.checkpoints()
    newest = saved[-1] if saved else 0
    assert logged - newest <= EVERY, f"{logged} iterations logged, checkpoint {newest}: more than one interval lost"
    return time.monotonic() - start, logged, newest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=200, help="of the run (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    moments = random.Random(args.seed)
    table = Table("kill", "after s", "iterations logged", "newest checkpoint", "lost")
    with tempfile.TemporaryDirectory() as folder:
        killed = Run(Path(folder) / "killed", args.iterations, Path(folder) / "cache")
        whole = Run(Path(folder) / "whole", args.iterations, Path(folder) / "cache")
        for number in range(args.kills):
            seconds, logged, newest = kill_at_random(killed, moments)
            table.add_row(str(number + 1), f"{seconds:.1f}", str(logged), str(newest), str(max(0, logged - newest)))
        for run in (killed, whole):
            process = run.start()
            output = process.communicate()[0]
            assert process.returncode == 0, output
        for ours, theirs in zip(killed.logged(), whole.logged(), strict=True):
            differing = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
            assert not differing, f"metrics differ in {differing}: {ours} and {theirs}"
        pairs = zip(parameters(killed), parameters(whole), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs), "parameters or replay differ"
    Console().print(table)
    print(f"{args.kills} kills: metrics, parameters and replay are bit for bit those of the run that was left alone.")


if __name__ == "__main__":
    main()
