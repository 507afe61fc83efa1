"""Commands on a full disk: one sentence, what was whole stays whole, and with room the same command goes on."""

import json
import subprocess
import sys

import imageio.v2 as imageio
import numpy as np
import pytest
from stopping import ROOT, train

from rpd_jax.acting.video import write_video
from rpd_jax.errors import no_room

EVALUATE = ["--teacher=octo-nano", "--episodes=1", "--num_envs=1", "--image_size=160", "--mesh_detail=0.07"]


def run(command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def the_sentence(done):
    """Of a command that found no room."""
    assert done.returncode == 2, done.stderr
    printed = done.stdout + done.stderr
    assert "Traceback" not in printed and "ffmpeg" not in printed.lower()
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "None" not in error
    return error


def make_room(disk):
    subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["600k"], indirect=True)
def test_train_ends_with_one_sentence_and_continues(small_disk):
    command = train(small_disk / "run", **{"checkpoint.every": 1})
    error = the_sentence(run(command))
    assert "(No space left on device): make room on the disk and run the same command again" in error
    make_room(small_disk)
    continued = run(command)
    assert continued.returncode == 0, continued.stderr
    assert (small_disk / "run" / "results.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["8k"], indirect=True)
def test_an_evaluation_that_finds_no_room_for_its_video_says_so(small_disk):
    command = [sys.executable, "-m", "rpd_jax.evaluate", *EVALUATE, f"--output={small_disk / 'table'}"]
    error = the_sentence(run(command))
    assert "PushCube-v1.mp4" in error and "(No space left on device): make room there and run the same command" in error
    make_room(small_disk)
    again = run(command)
    assert again.returncode == 0, again.stderr
    (row,) = json.loads((small_disk / "table" / "results.json").read_text())["tasks"]
    frames = imageio.mimread(small_disk / "table" / "PushCube-v1.mp4", memtest=False)
    assert len(frames) == row["length"] + 1


@pytest.mark.parametrize("small_disk", ["64k"], indirect=True)
@pytest.mark.parametrize("steps", [50, 400])
def test_half_a_video_is_none(small_disk, steps):
    """The first is cut at its end, the second while frames are still written to ffmpeg."""
    small = np.zeros((3, 64, 64, 3), np.uint8)
    write_video(small_disk / "video.mp4", [small])
    noise = np.random.default_rng(0).integers(0, 256, (steps, 128, 128, 3), np.uint8)
    with pytest.raises(OSError) as caught:
        write_video(small_disk / "video.mp4", [noise])
    assert no_room(caught.value) == "No space left on device"
    assert [path.name for path in small_disk.iterdir()] == ["video.mp4"]
    assert len(imageio.mimread(small_disk / "video.mp4")) == 3
