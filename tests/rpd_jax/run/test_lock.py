"""The lock of a run directory, with real processes."""

import os
import signal
import subprocess
import sys

import pytest

from rpd_jax.errors import UserError
from rpd_jax.run.lock import hold

HOLD = """
import subprocess, sys
from rpd_jax.run.lock import hold
with hold(sys.argv[1]):
    child = subprocess.Popen(["sleep", "300"], stdout=subprocess.DEVNULL, close_fds=False)
    print(child.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds `tmp_path` and has a child of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    yield process
    process.kill()
    process.communicate()
    os.kill(child, signal.SIGKILL)


def test_the_second_process_is_told_who_holds_the_directory(holder, tmp_path):
    sentence = rf"is in use by process {holder.pid} on {os.uname().nodename} since 20\d\d-.*: wait until that has ended"
    with pytest.raises(UserError, match=sentence), hold(tmp_path):
        pass


def test_the_lock_goes_with_its_process_though_a_child_of_it_lives_on(holder, tmp_path):
    holder.kill()
    holder.wait()
    with hold(tmp_path):
        pass


def test_it_is_given_back_at_the_end_of_the_block(tmp_path):
    for _ in range(2):
        with hold(tmp_path / "new" / "run"):
            pass
