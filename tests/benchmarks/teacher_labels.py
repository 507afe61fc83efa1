r"""Labels per second of any teacher, and the memory that it needs: one line, a row of docs/teachers.md's table.

python tests/benchmarks/teacher_labels.py --config=configs/push_cube_sparse.py --config.profile=cpu [--frames=256] \
    [--repeats=5] [--config.teacher.name=lerobot --config.teacher.checkpoint=FOLDER ...]

Frames are random, of env.image_size. Memory is the sum of the peaks of this process, less what it had before the
teacher was loaded, and of the processes that it started.
"""

import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from absl import app, flags
from ml_collections import config_flags

from rpd_jax import settings
from rpd_jax.envs.factory import make_vector_env
from rpd_jax.teachers import load_teacher, look, sees_state
from rpd_jax.workers.cost import peak_mib

_CONFIG = config_flags.DEFINE_config_file("config", None, "The settings.")
_FRAMES = flags.DEFINE_integer("frames", 256, "Frames of a call.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Calls, after two that compile.", lower_bound=1)


def main(_):
    config = settings.resolve(_CONFIG.value)
    rng = np.random.default_rng(0)
    size = config.env.image_size
    frames = jnp.asarray(rng.integers(0, 256, (_FRAMES.value, size, size, 3), np.uint8))
    before = peak_mib(os.getpid())
    teacher = load_teacher(config)
    state = jnp.tile(jnp.asarray(simulator_state(config)), (_FRAMES.value, 1)) if sees_state(teacher) else None
    seconds = []
    for number in range(-2, _REPEATS.value):
        begin = time.perf_counter()
        jax.block_until_ready(teacher.act(frames, "push the cube", jax.random.key(number + 2), **look(teacher, state)))
        if number >= 0:
            seconds.append(time.perf_counter() - begin)
    workers = [child.pid for child in psutil.Process().children(recursive=True)]
    memory = peak_mib(os.getpid()) - before + sum(map(peak_mib, workers))
    teacher.close()
    rate = _FRAMES.value / statistics.median(seconds)
    print("| teacher | px | labels per second | MiB |\n|---|---|---|---|")
    print(f"| {config.teacher.name} {config.teacher.checkpoint} | {size} | {rate:.1f} | {memory:.0f} |")


def simulator_state(config):
    """The first state of the task, float32 [D]."""
    envs = make_vector_env(config.env, 1)
    try:
        envs.set_drawing(False)
        envs.reset(0)
        return np.array(envs.state[0])
    finally:
        envs.close()


if __name__ == "__main__":
    app.run(main)
