import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from compiled_in_a_hurry import IN_A_HURRY
from jaxtyping import install_import_hook
from kept_programs import keep_programs

from rpd_jax.command.start import OBJECTS_UNTIL_COLLECTION

# Threads that wait at full speed are in the other processes' way: OpenBLAS has one, as in rpd_jax.command.start, and
# PyTorch's sleep at once.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
gc.disable()  # while the files of tests are imported: all of that stays

keep_programs()

# `make test-numeric` sets XLA_FLAGS, so that numbers are those that users get.
if "XLA_FLAGS" not in os.environ and shutil.which("nvidia-smi") is None:
    os.environ["XLA_FLAGS"] = IN_A_HURRY


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: one that began last would be waited for by an idle core."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    gc.set_threshold(*OBJECTS_UNTIL_COLLECTION)
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def what_is_there_stays():
    """No collection of garbage, ManiSkill asks for two at each scene, goes through what earlier files left."""
    gc.collect()
    gc.freeze()


# The annotations of arrays are compared with every call in the tests; a run does without.
_CHECKED = ("learning.advantages", "learning.losses", "learning.minibatches", "learning.objective", "student.gaussian")
install_import_hook([f"rpd_jax.{name}" for name in _CHECKED], "beartype.beartype")

# Told by a script that has defined `workers`, their process ids.
_TELL = """
import json, os, signal, sys
import psutil
maps = [each.path for pid in (os.getpid(), *workers) for each in psutil.Process(pid).memory_maps()]
print(json.dumps({"workers": workers, "maps": maps}), flush=True)
"""


@pytest.fixture
def assert_leaves_nothing():
    """A function that runs a script that starts `workers`, and checks that none of them, nor their memory, is left.

    It takes the script, its last lines that end it one way or another, a part of the name of the memory that it must
    map, and the seconds that its workers may take to end.
    """

    def check(script: str, end: str, memory: str, seconds: float) -> None:
        source = textwrap.dedent(script) + _TELL + textwrap.dedent(end)
        run = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=300)
        told = json.loads(run.stdout)
        deadline = time.monotonic() + seconds
        for pid in told["workers"]:
            while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline, "the worker outlived its parent"
                time.sleep(0.1)
        assert any(memory in path for path in told["maps"])
        # Shared memory with a name is mapped from there; other processes' names are none of ours.
        assert [path for path in told["maps"] if path.startswith("/dev/shm/") and Path(path).exists()] == []

    return check


@pytest.fixture
def small_disk(tmp_path, request):
    """A file system of one megabyte, or of `request.param`."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={getattr(request, 'param', '1m')}", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.fixture
def read_only_folder(small_disk):
    """A folder in which root cannot write either."""
    folder = small_disk / "folder"
    folder.mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    return folder


@pytest.fixture
def fill():
    """A function that fills the disk of a folder, and returns the file that does it."""

    def fill_disk(folder: Path) -> Path:
        filler = folder / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        return filler

    return fill_disk


@pytest.fixture(scope="session")
def micro_octo(tmp_path_factory):
    """Folder of an Octo with one layer of width 32 and one camera of 32x32 pixels, in the published layout."""
    from micro_octo import write_micro_octo  # here, since few tests need JAX for it

    return write_micro_octo(tmp_path_factory.mktemp("micro"))


@pytest.fixture(scope="session")
def bright_demos(tmp_path_factory):
    """Four episodes of six steps; their frames are bright where the action's x is positive, dark elsewhere."""
    path = tmp_path_factory.mktemp("demos") / "demos.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for index in range(4):
            actions = np.zeros((6, 7), np.float32)
            actions[:, 0] = rng.choice([-0.5, 0.5], size=6)
            frames = rng.integers(0, 50, (7, 32, 32, 3)) + 200 * (np.append(actions[:, 0], 0) > 0)[:, None, None, None]
            file[f"traj_{index}/actions"] = actions
            file[f"traj_{index}/obs/sensor_data/human_camera/rgb"] = frames.astype(np.uint8)
    header = {"env_info": {"env_id": "PushCube-v1"}, "episodes": [{"episode_id": i} for i in range(4)]}
    path.with_suffix(".json").write_text(json.dumps(header))
    return path
