"""The command for the day there is a GPU: what its parts leave, and what it says where one of them fails."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rpd_jax import gpu_check

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def part(tmp_path):
    return {part.name: part for part in gpu_check.parts(tmp_path)}["device"]


def test_a_part_leaves_its_output_and_its_last_line(part, tmp_path):
    outcome = gpu_check.run_part(part, tmp_path, tiny=True)
    assert outcome.state == "ok"
    found = json.loads((tmp_path / "device.log").read_text().splitlines()[-1])
    assert found == json.loads(outcome.last)
    assert found["platform"] == "cpu" and found["tflops"]["float32"] > 0


@pytest.mark.parametrize(
    "code, seconds, state",
    [("raise SystemExit('no such thing')", 60.0, "failed"), ("import time; time.sleep(60)", 1.0, "too long")],
)
def test_a_part_that_fails_is_told(part, tmp_path, code, seconds, state):
    outcome = gpu_check.run_part(dataclasses.replace(part, module=f"\n{code}", seconds=seconds), tmp_path, tiny=True)
    assert outcome.state == state
    if state == "failed":
        assert outcome.last == "no such thing"


def test_a_part_whose_need_is_not_met_is_not_run(part, tmp_path):
    outcome = gpu_check.run_part(dataclasses.replace(part, needs="no library"), tmp_path, tiny=True)
    assert (outcome.state, outcome.last) == ("not here", "no library")
    assert not list(tmp_path.glob("*.log"))


def test_a_second_check_trains_anew_and_leaves_other_runs_alone(tmp_path):
    (train,) = (part for part in gpu_check.parts(tmp_path) if part.name == "train")
    assert all(f"--workdir={train.makes}" in arguments for arguments in (train.arguments, train.tiny))
    (tmp_path / "run").mkdir()
    stands_for_train = dataclasses.replace(train, module="\nimport os, sys; os.mkdir(sys.argv[1])", tiny=(train.makes,))
    for _ in range(2):
        assert gpu_check.run_part(stands_for_train, tmp_path, tiny=True).state == "ok"
    assert (tmp_path / "run").is_dir()


@pytest.mark.slow
def test_the_plan_counts_and_measures():
    """Of an update and a step of the student, as `gpu-check --tiny` runs it."""
    (learner,) = (part for part in gpu_check.parts(Path("unused")) if part.name == "learner")
    done = subprocess.run(learner.command(tiny=True), capture_output=True, text=True, timeout=500, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    update = next(line for line in done.stdout.splitlines() if "update" in line)
    assert float(update.replace("│", " ").split()[-1]) > 0, "nothing was measured"
    assert "label, octo-small-1.5, bfloat16" in done.stdout


def test_all_parts_can_be_started():
    for part in gpu_check.parts(Path("unused")):
        for tiny in (True, False):
            command = part.command(tiny)
            assert command[0] == sys.executable and all(isinstance(word, str) for word in command)
            if part.module.endswith(".py"):
                assert (ROOT / part.module).is_file()
