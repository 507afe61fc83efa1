"""A chunk for which there is no memory is halved, and the labels are the same; in a process with a real limit."""

import subprocess
import sys
from pathlib import Path

import pytest
from glibc_memory import WITH_GLIBC

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import resource, sys
import jax, numpy as np
from octo_teacher.octo_model import OctoModel
from octo_teacher.teacher import OctoTeacher

model = OctoModel.load_pretrained(sys.argv[1])
frames = jax.numpy.asarray(np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8))
arguments = frames, "push", jax.random.key(0), 2000
OctoTeacher(model, chunk_size=1).act(frames[:1], *arguments[1:])
teacher = OctoTeacher(model, chunk_size=32)
status = open("/proc/self/status").read()
size = int(status.split("VmSize:")[1].split()[0]) * 1024
room = int(float(sys.argv[2]) * 2**20)
_, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (size + room, hard))
actions = np.asarray(teacher.act(*arguments))
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
# Frames before the last halving were looked at in larger chunks: each frame is as in one of them, to the last bit.
sizes = [size for size in (16, 8, 4, 2, 1) if size >= teacher.chunk_size]
alike = [(actions == np.asarray(OctoTeacher(model, chunk_size=size).act(*arguments))).all((0, 2)) for size in sizes]
print(teacher.chunk_size, np.any(alike, axis=0).sum())
"""


def run(folder, mebibytes):
    command = [sys.executable, "-c", SCRIPT, str(folder), str(mebibytes)]
    return subprocess.run(command, cwd=ROOT, env=WITH_GLIBC, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_a_chunk_that_does_not_fit_is_halved(micro_octo):
    halved = run(micro_octo, 150)
    assert halved.returncode == 0, halved.stderr
    chunk, same = map(int, halved.stdout.split())
    assert chunk < 32 and same == 40
    assert "Octo: out of memory with 32 frames at a time; continues with 16." in halved.stderr
