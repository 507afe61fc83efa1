"""train.py on a full disk: one sentence, and the same command goes on once there is room."""

import subprocess

import pytest
from stopping import ROOT, train


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["600k"], indirect=True)
def test_train_ends_with_one_sentence_and_continues(small_disk):
    command = train(small_disk / "run", **{"checkpoint.every": 1})
    full = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert full.returncode == 2, full.stderr
    assert "Traceback" not in full.stdout + full.stderr
    (error,) = (line for line in full.stderr.splitlines() if line.startswith("error: "))
    assert "(No space left on device): make room on the disk and run the same command again" in error
    assert "None" not in error
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    continued = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert continued.returncode == 0, continued.stderr
    assert (small_disk / "run" / "results.json").exists()
