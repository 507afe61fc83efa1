"""What every command does first."""

import os
import subprocess
import sys

import pytest

PRINT = "from rpd_jax.command.start import start; start(); print('5 \u00b1 1, \u7acb\u65b9\u4f53')"
OPEN = """
from rpd_jax.command.start import start
start()
print(1)
assert open("/dev/null").fileno() > 2
"""
SCRIPT = """
from rpd_jax.command.start import start
start()
import os
before = len(os.listdir("/proc/self/task"))
import numpy.linalg
import scipy.linalg
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="one core: there would be no second thread")
@pytest.mark.parametrize(("chosen", "others"), [({}, 0), ({"OPENBLAS_NUM_THREADS": "2"}, 2)])
def test_linear_algebra_has_one_thread_unless_the_user_says_otherwise(chosen, others):
    """Each of NumPy's and SciPy's libraries starts its own others."""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"} | chosen
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=60)
    assert int(run.stdout) == others, run.stderr


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", "5 ? 1, ???"), ("latin-1", "5 \u00b1 1, ???"), ("utf-8", "5 \u00b1 1, \u7acb\u65b9\u4f53")],
)
def test_a_letter_that_the_output_has_not_ends_nothing(encoding, shown):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    run = subprocess.run([sys.executable, "-c", PRINT], env=environment, capture_output=True, timeout=60)
    assert run.returncode == 0 and run.stdout.decode(encoding).strip() == shown, run.stderr


def test_a_command_that_is_started_without_streams_does_the_same():
    """No file that it opens gets a number by which libraries write to them."""
    for closed in (">&-", "2>&-", "<&- >&- 2>&-"):
        command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", OPEN]
        assert subprocess.run(command, timeout=60).returncode == 0, closed
    command = [sys.executable, "-m", "rpd_jax.evaluate", "--teacher=a", "--run=b"]
    run = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], capture_output=True, text=True, timeout=60)
    assert run.returncode == 2 and run.stderr == "error: --teacher and --run exclude each other: give one of them.\n"
