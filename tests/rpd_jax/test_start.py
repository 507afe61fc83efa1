"""What every command does first."""

import os
import subprocess
import sys

import pytest

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
