"""A whole run of train.py whose teacher is behind openpi's own server: real simulator, six iterations."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = {
    "teacher.name": "openpi",
    "teacher.gripper": "signed",
    "teacher.state": "pose",
    "teacher.start_timeout": 3.0,
    "teacher.eval_episodes": 0,
    "total_steps": 96,
    "env.num_envs": 2,
    "refine": "pixels",
    "env.workers": 1,
    "env.image_size": 40,
    "env.mesh_detail": 0.07,
    "student.observation": "state",
    "ppo.rollout_steps": 8,
    "ppo.num_minibatches": 2,
    "ppo.update_epochs": 1,
    "distill.replay": 64,
    "distill.replay_batch": 4,
    "distill.averaged": 1,
    "eval.every": 10,
    "eval.final_episodes": 2,
    "eval.video_episodes": 1,
    "checkpoint.every": 10,
}


def train(workdir, address, **environment):
    flags = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    command = [sys.executable, "train.py", "--config=configs/push_cube_sparse.py", f"--workdir={workdir}", *flags]
    command.append(f"--config.teacher.address={address}")
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_a_run_that_its_server_fails_saves_its_state_and_goes_on_with_another_one(openpi_peer, tmp_path):
    run = tmp_path / "run"
    with openpi_peer("fails") as server:
        failed = train(run, server.address, RPD_POLICY_API_KEY="sesame")
    assert failed.returncode == 2, failed.stderr
    (sentence,) = (line for line in failed.stderr.splitlines() if line.startswith("error: "))
    assert f"{server.address} failed (RuntimeError: out of luck): see what that server says" in sentence
    (saved,) = re.findall(r"saved after iteration (\d); the same command continues", failed.stdout + failed.stderr)
    assert 0 < int(saved) < 6  # the estimate of the time asks for labels too
    assert [path.name for path in (run / "checkpoints").iterdir() if path.name.isdigit()] == [saved]
    said = (run / "error.txt").read_text()
    assert said.startswith("Traceback") and "openpi_peer.py" in said
    assert not any("sesame" in path.read_text() for path in run.glob("*.json*"))

    with openpi_peer("usual") as server:
        went_on = train(run, server.address)  # at another port
    assert went_on.returncode == 0, went_on.stderr
    assert f"Continuing after iteration {saved} of 6" in went_on.stdout + went_on.stderr
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert all(np.isfinite(row["train/distill_loss"]) and row["train/distill_loss"] > 0 for row in rows)
