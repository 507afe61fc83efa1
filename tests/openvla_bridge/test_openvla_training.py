"""A whole run of train.py with OpenVLA as the teacher: real simulator, real worker, two iterations."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_run_with_openvla_as_the_teacher(checkpoint, tmp_path):
    settings = {
        "teacher.name": "openvla",
        "teacher.precision": "float32",
        "teacher.checkpoint": checkpoint,
        "teacher.devices": "('cpu',)",
        "teacher.eval_episodes": 0,
        "teacher.overlap": "on",
        "total_steps": 32,
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
        "eval.every": 10,
        "eval.final_episodes": 2,
        "checkpoint.every": 10,
    }
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    config = "--config=configs/push_cube_camera_shift_openvla.py"
    run = subprocess.run(
        [sys.executable, "train.py", config, f"--workdir={tmp_path / 'run'}", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert run.returncode == 0, run.stderr
    assert "OpenVLA worker 0 (cpu): reading model.safetensors (1 of 1)" in run.stderr
    assert run.stdout.strip().splitlines()[-1].startswith("Done. Success: student")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(np.isfinite(row["train/distill_loss"]) and row["train/distill_loss"] > 0 for row in rows)
