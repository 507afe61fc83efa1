"""A run directory belongs to one process: a second train.py or finetune_octo.py on it ends at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "train.py": [
        "--config=configs/push_cube_sparse.py",
        "--config.algorithm=ppo",
        "--config.student.observation=state",
    ],
    "finetune_octo.py": ["--config=configs/finetune_octo.py", "--config.demos=demos.h5"],
}
LOCK = """
import sys
from rpd_jax.run.lock import hold
with hold(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def command(script, workdir):
    return [sys.executable, script, *COMMANDS[script], f"--workdir={workdir}"]


def wait_for(condition, process, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended early: {process.communicate()}"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("script", COMMANDS)
def test_the_second_process_names_the_first(script, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", LOCK, tmp_path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    second = subprocess.run(command(script, tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=200)
    holder.communicate()
    assert second.returncode == 2
    errors = [line for line in second.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"{tmp_path} is in use by process {holder.pid} on " in errors[0], second.stderr
    assert "Traceback" not in second.stderr
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


@pytest.mark.slow
def test_train_holds_its_directory_until_it_is_killed_and_its_workers_do_not(tmp_path):
    workdir = tmp_path / "run"
    settings = [f"--config.{name}=2" for name in ("env.num_envs", "ppo.rollout_steps", "ppo.num_minibatches")]
    first = subprocess.Popen(
        [
            *command("train.py", workdir),
            *settings,
            "--config.env.workers=1",
            "--config.env.image_size=16",
            "--config.env.mesh_detail=0.07",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    probe = [sys.executable, "-c", LOCK, workdir]
    try:
        metrics = workdir / "metrics.jsonl"  # its workers run by then
        wait_for(lambda: metrics.exists() and metrics.read_text(), first)
        outcome = subprocess.run(probe, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
        assert f"is in use by process {first.pid} on" in outcome.stderr
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    outcome = subprocess.run(probe, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert outcome.stdout == "held\n", outcome.stderr
