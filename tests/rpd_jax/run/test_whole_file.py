"""Files are whole also where several processes write them, and what a killed one leaves is in nobody's way."""

import os
import subprocess
import sys
import time

from ml_collections import ConfigDict

from rpd_jax.run.directory import RunKind, open_run
from rpd_jax.run.whole_file import replacing, write_whole

# Writes half of a file, and waits.
HALF = """
import sys, time
from rpd_jax.run.whole_file import replacing
with replacing(sys.argv[1]) as scratch:
    scratch.write_text("half")
    print("ready", flush=True)
    time.sleep(300)
"""


def killed_while_writing(path):
    process = subprocess.Popen([sys.executable, "-c", HALF, path], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    process.communicate()
    (left,) = path.parent.glob(f".{path.stem}.*")
    return left


def test_two_that_write_one_file_leave_it_whole(tmp_path):
    path = tmp_path / "report.html"
    with replacing(path) as first:
        first.write_text("first")
        write_whole(path, "second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_that_was_killed_while_its_config_was_written_begins_again(tmp_path):
    killed_while_writing(tmp_path / "config.json")
    open_run(tmp_path, ConfigDict({"seed": 0}), RunKind())
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_what_a_kill_left_is_removed_when_it_is_old(tmp_path):
    path = tmp_path / "report.html"
    left = killed_while_writing(path)
    write_whole(path, "whole")
    assert left.exists(), "another process may be writing it"
    os.utime(left, (time.time() - 4000,) * 2)
    write_whole(path, "whole")
    assert list(tmp_path.iterdir()) == [path]
