"""What a worker's threads cost by the way they wait for each other, alone and where every core is busy besides.

python tests/benchmarks/waiting_threads.py [--frames=16] [--repeats=5]

A tiny OpenVLA on the CPU, with as many threads as there are cores: "asleep" as workers are started, "going round" as
PyTorch's OpenMP does by itself. Both take turns, and busy are as many processes as there are cores.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from configs import default
from rpd_jax import settings
from rpd_jax.teachers import load_teacher

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "openvla_bridge"))
from tiny_openvla import write_checkpoint  # noqa: E402

_FRAMES = flags.DEFINE_integer("frames", 16, "In a batch.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Batches that are timed.", lower_bound=1)

# What libgomp takes where OMP_WAIT_POLICY is not set; it wins over that.
_SPINS = "300000"


def main(_):
    frames = np.random.default_rng(0).integers(0, 256, (_FRAMES.value, 128, 128, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as teachers:
        checkpoint = write_checkpoint(Path(folder) / "tiny")
        by_way = {"asleep": start(checkpoint, teachers)}
        os.environ["GOMP_SPINCOUNT"] = _SPINS
        by_way["going round"] = start(checkpoint, teachers)
        print(f"| besides | {' | '.join(f'{way}, ms per frame' for way in by_way)} |\n|---|---|---|")
        for name, count in (("nothing", 0), (f"{os.cpu_count()} busy processes", os.cpu_count())):
            with busy(count):
                times = {way: [] for way in by_way}
                for repeat in range(-1, _REPEATS.value):  # the first one warms up
                    for way, teacher in by_way.items():
                        start_time = time.perf_counter()
                        teacher.act(frames, "push", jax.random.key(repeat + 1))
                        if repeat >= 0:
                            times[way].append(1e3 * (time.perf_counter() - start_time) / len(frames))
            print(f"| {name} | {' | '.join(f'{statistics.median(each):.1f}' for each in times.values())} |")


def start(checkpoint, teachers):
    config = ConfigDict(default.get_config().to_dict())
    config.teacher.update(name="openvla", checkpoint=str(checkpoint), devices=("cpu",), batch_size=_FRAMES.value)
    teacher = load_teacher(settings.resolve(config))
    teachers.callback(teacher.close)
    return teacher


@contextlib.contextmanager
def busy(count):
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    app.run(main)
