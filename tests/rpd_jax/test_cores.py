"""XLA's threads are as many as it is told, by NPROC or by the cores that this process may use."""

import json
import os
import subprocess
import sys

import pytest

from rpd_jax.cores import usable_cores, xla_threads

# The product is large enough to be shared by all threads.
SCRIPT = """
import json, threading, psutil
import jax, jax.numpy as jnp
from rpd_jax.cores import xla_threads
ones = jnp.ones((512, 512))
(ones @ ones).block_until_ready()
names = [open(f"/proc/self/task/{thread.id}/comm").read().strip() for thread in psutil.Process().threads()]
print(json.dumps([xla_threads(), sum(name.startswith("tf_XLAEigen") for name in names)]))
"""


@pytest.mark.parametrize("told", ["1", "3"])
def test_as_many_threads_as_xla_has(told):
    environment = os.environ | {"NPROC": told, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120)
    assert json.loads(run.stdout) == [int(told)] * 2, run.stderr


@pytest.mark.parametrize("told", ["", "many"])
def test_without_a_number_as_many_as_cores(told, monkeypatch):
    monkeypatch.setenv("NPROC", told)
    assert xla_threads() == usable_cores() >= 1
