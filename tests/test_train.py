"""The main job as users start it: real processes, real simulator, the embedded teacher; a few iterations only."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "total_steps": 96,
    "env.num_envs": 2,
    "refine": "pixels",
    "env.workers": 1,
    "env.image_size": 40,
    "env.mesh_detail": 0.07,
    "student.image_size": 40,
    "ppo.rollout_steps": 8,
    "ppo.num_minibatches": 2,
    "ppo.update_epochs": 1,
    "distill.replay": 64,
    "distill.replay_batch": 4,
    "eval.every": 4,
    "eval.episodes": 2,
    "eval.final_episodes": 2,
    "checkpoint.every": 2,
    "teacher.eval_episodes": 2,
}
ITERATIONS = 6  # 96 / (2 · 8)


def command(workdir, **overrides):
    flags = {**SMALL, **overrides}
    settings = [f"--config.{name}={value}" for name, value in flags.items()]
    return [sys.executable, "train.py", "--config=configs/push_cube_sparse.py", f"--workdir={workdir}", *settings]


def run(workdir, **overrides):
    return subprocess.run(command(workdir, **overrides), cwd=ROOT, capture_output=True, text=True, timeout=400)


def read_metrics(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def read_params(workdir):
    checkpointer = ocp.StandardCheckpointer()
    return checkpointer.restore(workdir / "checkpoints" / str(ITERATIONS) / "state")["learner"]["params"]


def wait_for(condition, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended early: {process.communicate()}"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("train") / "whole"
    return workdir, run(workdir)


@pytest.mark.slow
def test_a_run_ends_with_success_rates_and_everything_on_disk(finished):
    workdir, outcome = finished
    assert outcome.returncode == 0, outcome.stderr
    last = outcome.stdout.strip().splitlines()[-1]
    assert last.startswith("Done. Success: student") and "teacher" in last and str(workdir) in last
    assert re.search(r"Estimated training time: \d", outcome.stdout)
    assert "simulate+render" in outcome.stdout  # the table of where the time went
    rows = read_metrics(workdir)
    assert [row["iteration"] for row in rows] == list(range(ITERATIONS))
    assert rows[-1]["step"] == 96
    assert all(np.isfinite(row["train/distill_loss"]) for row in rows)
    assert [("eval/success" in row) for row in rows] == [False, False, False, True, False, True]
    files = ("config.json", "results.json", "teacher.json", "curve.png", "videos/student.mp4", "videos/teacher.mp4")
    for name in files:
        assert (workdir / name).stat().st_size > 0, name
    assert list((workdir / "tensorboard").iterdir())


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(finished):
    workdir, _ = finished
    before = (workdir / "metrics.jsonl").stat().st_mtime
    outcome = run(workdir)
    assert outcome.stdout.strip().splitlines()[-1].startswith("Done.")
    assert (workdir / "metrics.jsonl").stat().st_mtime == before


@pytest.mark.slow
def test_killed_and_started_again_it_is_the_same_run(finished, tmp_path):
    """Also shows that two runs with one seed are equal: this one is compared with the uninterrupted one."""
    whole, _ = finished
    workdir = tmp_path / "killed"
    process = subprocess.Popen(
        command(workdir), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics = workdir / "metrics.jsonl"
    # After the third iteration: one past the checkpoint at the second.
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    outcome = run(workdir)
    assert outcome.returncode == 0, outcome.stderr
    assert "Continuing after iteration" in outcome.stdout
    assert read_metrics(workdir) == read_metrics(whole)
    expected, found = read_params(whole), read_params(workdir)
    for path, leaf in _leaves(expected).items():
        np.testing.assert_array_equal(leaf, _leaves(found)[path], err_msg=path)


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_continues(tmp_path):
    workdir = tmp_path / "stopped"
    long = {"total_steps": 16_000, "checkpoint.every": 1000, "eval.every": 1000, "teacher.eval_episodes": 0}
    process = subprocess.Popen(
        command(workdir, **long),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = workdir / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2, process)
    start = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: the environments' workers get it too
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - start < 30  # the promise of the docs, not a measurement
    assert process.returncode == 130, err
    assert "SIGTERM: saved after iteration" in out
    saved = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    assert saved and saved[0] >= 2


def _leaves(tree, prefix=""):
    flat = {}
    for name, value in tree.items():
        flat |= _leaves(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: np.asarray(value)}
    return flat
