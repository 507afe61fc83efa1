"""train.py in two processes, as on a cluster: what ends one of them ends both, and the same command continues."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "total_steps": 100_000,
    "student.observation": "state",
    "env.image_size": 16,
    "env.mesh_detail": 0.07,
    "env.num_envs": 2,
    "env.workers": 1,
    "ppo.rollout_steps": 8,
    "ppo.num_minibatches": 2,
    "ppo.update_epochs": 1,
    "distill.replay": 0,
    "distill.replay_batch": 0,
    "eval.every": 1000,
    "checkpoint.every": 2,
    "teacher.eval_episodes": 0,
}
FAILED = "error: Process {} of this run failed: see what it printed."
TEACHER = '''
import os
import jax.numpy as jnp

class Tired:
    """Labels with zeros, and fails in the second process once there is a checkpoint."""

    worthwhile_batch = 1

    def begin(self, rgb, instruction, key, num_samples=1, first_frame=0):
        if os.environ["JAX_PROCESS_ID"] == "1" and os.path.isdir(os.environ["CHECKPOINT"]):
            raise RuntimeError("tired")
        return lambda: jnp.zeros((num_samples, len(rgb), 7))

    def close(self):
        pass

def load(config):
    return Tired()
'''


class Pair:
    """Two processes of one run."""

    def __init__(self, workdir, **settings):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            cluster = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free.getsockname()[1]}", "JAX_NUM_PROCESSES": "2"}
        flags = [f"--config.{name}={value}" for name, value in {**SMALL, **settings.pop("config")}.items()]
        self.workdir = workdir
        self.processes = [
            subprocess.Popen(
                [sys.executable, "train.py", "--config=configs/push_cube_sparse.py", f"--workdir={workdir}", *flags],
                cwd=ROOT,
                env=os.environ | cluster | {"JAX_PROCESS_ID": str(index)} | settings,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(2)
        ]

    def wait_for_checkpoint(self):
        deadline = time.monotonic() + 400
        while not (self.workdir / "checkpoints" / "2").exists():
            for process in self.processes:
                assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def finish(self):
        """Statuses, error sentences and seconds until both have ended."""
        start = time.monotonic()
        outputs = [process.communicate(timeout=400) for process in self.processes]
        seconds = time.monotonic() - start
        self.outputs = outputs
        said = [[line for line in err.splitlines() if line.startswith("error: ")] for _, err in outputs]
        return [process.returncode for process in self.processes], said, seconds

    def kill(self):
        for process in self.processes:
            process.kill()


@pytest.fixture
def start():
    pairs = []

    def start_pair(*arguments, **settings):
        pairs.append(Pair(*arguments, **settings))
        return pairs[-1]

    yield start_pair
    for pair in pairs:
        pair.kill()


@pytest.mark.slow
def test_a_failure_of_the_environments_then_a_full_disk_then_a_kill(start, tmp_path):
    """One run, continued each time by the same command."""
    workdir, config = tmp_path / "run", {"algorithm": "ppo"}
    pair = start(workdir, config=config)
    pair.wait_for_checkpoint()
    (nursery,) = psutil.Process(pair.processes[1].pid).children()
    for worker in nursery.children():
        worker.kill()
    statuses, said, seconds = pair.finish()
    assert statuses == [2, 2] and seconds < 60, pair.outputs
    assert said[0] == [FAILED.format(1)] and len(said[1]) == 1 and "worker" in said[1][0], pair.outputs
    assert "Stopped by an error: saved after iteration" in pair.outputs[0][0]

    pair = start(workdir, config=config)
    _wait_for_rows(pair, len(_rows(workdir)) + 2)
    psutil.Process(pair.processes[0].pid).rlimit(resource.RLIMIT_FSIZE, (1, 1))
    statuses, said, seconds = pair.finish()
    assert statuses == [2, 2] and seconds < 60, pair.outputs
    assert len(said[0]) == 1 and "make room on the disk" in said[0][0], pair.outputs
    assert said[1] == [FAILED.format(0)], pair.outputs

    pair = start(workdir, config=config)
    _wait_for_rows(pair, len(_rows(workdir)) + 2)
    pair.processes[1].kill()
    statuses, said, seconds = pair.finish()
    assert statuses == [2, -signal.SIGKILL] and seconds < 60, pair.outputs
    assert len(said[0]) == 1 and said[0][0].startswith("error: Process 1 of this run is gone"), pair.outputs


@pytest.mark.slow
def test_an_exception_of_the_teacher(start, tmp_path):
    (tmp_path / "tired.py").write_text(TEACHER)
    (tmp_path / "tired-1.dist-info").mkdir()
    (tmp_path / "tired-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: tired\nVersion: 1\n")
    (tmp_path / "tired-1.dist-info" / "entry_points.txt").write_text("[rpd_jax.teachers]\ntired = tired:load\n")
    workdir = tmp_path / "run"
    pair = start(
        workdir,
        config={"teacher.name": "tired"},
        PYTHONPATH=f"{tmp_path}:{ROOT}",
        CHECKPOINT=str(workdir / "checkpoints" / "2"),
    )
    pair.wait_for_checkpoint()
    statuses, said, seconds = pair.finish()
    assert statuses == [2, 1] and seconds < 60, pair.outputs
    assert said == [[FAILED.format(1)], []]
    assert "RuntimeError: tired" in pair.outputs[1][1] and "Traceback" not in pair.outputs[0][1]


def _rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _wait_for_rows(pair, number):
    deadline = time.monotonic() + 400
    while (pair.workdir / "metrics.jsonl").read_text().count("\n") < number:
        for process in pair.processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
