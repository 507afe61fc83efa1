"""A folder that cannot be written is told before the work, in one sentence, also where it is there already."""

import subprocess
import sys
from pathlib import Path

import pytest

from rpd_jax.errors import UserError
from rpd_jax.run.whole_file import check_can_write

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "command",
    [
        ("rpd_jax.report", "docs/refinement/poke_cube_sparse-dagger-seed0"),
        ("rpd_jax.evaluate", "--teacher=octo-nano", "--episodes=100000"),
        ("rpd_jax.growth",),
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("name", ["", "new/one"])
def test_a_command_that_cannot_write_ends_at_once(read_only_folder, command, name):
    folder = read_only_folder / name
    arguments = [sys.executable, "-m", *command, f"--output={folder}"]
    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr == f"error: Cannot write to {folder} (Read-only file system): choose another --output.\n"


def test_what_can_be_written_is_left_as_it_is(tmp_path):
    check_can_write(tmp_path / "not" / "there")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(UserError, match=r"Cannot write to .*file.* \(Not a directory\): choose another --out\."):
            check_can_write(place, "--out")
