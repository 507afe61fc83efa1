r"""Labels per second in process, and through servers with several numbers of connections; they take turns.

python tests/benchmarks/served_labels.py [--teacher=octo-nano] [--frames=256] [--connections=1,4,16] [--repeats=5] \
    [--openpi]

The servers are `rpd_jax.serve`, which gathers requests into batches, and with --openpi openpi's own with the same model
(`make openpi-env`), which answers one after the other. Each is a process of its own on this machine: all share its
processors, and the difference is the wire's cost and that of smaller batches.
"""

import contextlib
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from octo_teacher.embedded import find_checkpoint
from octo_teacher.teacher import OctoTeacher
from rpd_jax.policy_server.observation import ObservationMap
from rpd_jax.policy_server.served import Servers
from rpd_jax.policy_server.teacher import PolicyServerTeacher

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "rpd_jax" / "policy_server"))
from peers import openpi_site_packages, peer  # noqa: E402

_TEACHER = flags.DEFINE_string("teacher", "octo-nano", "An Octo: folder, hub address, or embedded name.")
_FRAMES = flags.DEFINE_integer("frames", 256, "Frames of each measurement.", lower_bound=1)
_SIZE = flags.DEFINE_integer("image_size", 128, "Their height and width, pixels.", lower_bound=1)
_CONNECTIONS = flags.DEFINE_list("connections", ["1", "4", "16"], "Connections, separated by commas.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds.", lower_bound=1)
_OPENPI = flags.DEFINE_boolean("openpi", False, "Through openpi's own server too.")


def main(_):
    rng = np.random.default_rng(0)
    frames = jnp.asarray(rng.integers(0, 256, (_FRAMES.value, _SIZE.value, _SIZE.value, 3), np.uint8))
    checkpoint, names = find_checkpoint(_TEACHER.value), ObservationMap("observation/image", "prompt")
    with contextlib.ExitStack() as stack:
        addresses = {"rpd_jax.serve": stack.enter_context(served(_TEACHER.value))}
        if _OPENPI.value:
            server = stack.enter_context(peer("octo_peer.py", checkpoint, openpi_site_packages()))
            addresses["openpi's server"] = server.address
        teachers = {
            "in process": OctoTeacher.load(checkpoint),
            "in process, one frame at a time": OctoTeacher.load(checkpoint, chunk_size=1),
        }
        for server, address in addresses.items():
            for count in map(int, _CONNECTIONS.value):
                teacher = PolicyServerTeacher(Servers([address], count), names)
                stack.callback(teacher.close)
                teachers[f"{server}, {count} connection{'s'[: count > 1]}"] = teacher
        measure(teachers, frames)


@contextlib.contextmanager
def served(teacher):
    """The address of an `rpd_jax.serve` of a teacher."""
    command = [sys.executable, "-m", "rpd_jax.serve", f"--teacher={teacher}", "--port=0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            port = re.search(r":(\d+);", server.stdout.readline())[1]
            yield f"ws://127.0.0.1:{port}"
        finally:
            server.terminate()


def measure(teachers, frames):
    """Prints a table: labels per second of each, median over the rounds, and milliseconds a frame."""
    seconds = {name: [] for name in teachers}
    for round_number in range(-2, _REPEATS.value):  # the first two compile
        for name, teacher in teachers.items():
            begin = time.perf_counter()
            jax.block_until_ready(teacher.act(frames, "push the cube", jax.random.key(round_number + 2)))
            if round_number >= 0:
                seconds[name].append(time.perf_counter() - begin)
    first = statistics.median(seconds["in process"])
    print("| labels | per second | ms a frame | more than in process, ms |\n|---|---|---|---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        each, more = 1000 * median / len(frames), 1000 * (median - first) / len(frames)
        print(f"| {name} | {len(frames) / median:.0f} | {each:.2f} | {more:.2f} |")


if __name__ == "__main__":
    app.run(main)
