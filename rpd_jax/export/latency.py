"""How large and how fast an exported student is, beside its teacher."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from rpd_jax.errors import UserError
from rpd_jax.evaluate.trained_student import TrainedStudent
from rpd_jax.export.policy import (
    JAX_FILE,
    ONNX_FILE,
    WEIGHTS_FILE,
    ExportedPolicy,
    example_inputs,
    numpy_policy,
    onnx_policy,
)
from rpd_jax.tasks import find_task
from rpd_jax.teachers import load_teacher, sees_state

COLUMNS = ("policy", "parameters", "MB", "ms per action")


def measure(student: TrainedStudent, folder: Path, seconds: float = 1.0) -> list[tuple[str, str, str, str]]:
    """Rows of `COLUMNS`: the three exported forms and the run's teacher, one frame at a time.

    Args:
        student: what was exported.
        folder: where.
        seconds: how long each policy is called; the median call counts, and the first is left out.
    """
    inputs = example_inputs(student.frame_shape, student.state_dim, batch=1)
    policy, graph, plain = ExportedPolicy(folder), onnx_policy(folder), numpy_policy(folder)
    with np.load(folder / WEIGHTS_FILE) as weights:
        count = sum(weights[name].size for name in weights.files if name != "resize")
    forms = (
        ("student, JAX", JAX_FILE, lambda: policy.act(**inputs).block_until_ready()),
        ("student, ONNX Runtime", ONNX_FILE, lambda: graph(**inputs)),
        ("student, numpy", WEIGHTS_FILE, lambda: plain(**inputs)),
    )
    rows = []
    for name, file, call in forms:
        size = (folder / file).stat().st_size / 1e6
        rows.append((name, f"{count:,}", f"{size:.1f}", f"{_milliseconds(call, seconds):.2f}"))
    if student.config.algorithm != "ppo":
        rows.append(_teacher_row(student, seconds))
    return rows


def machine() -> str:
    """The processor's name and number of cores, and JAX's device."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores, JAX on {jax.devices()[0].device_kind}"


def _teacher_row(student: TrainedStudent, seconds: float) -> tuple[str, str, str, str]:
    config = student.config
    label = f"teacher, {config.teacher.checkpoint}"
    try:
        teacher = load_teacher(config)
    except UserError as error:
        return label, "?", "?", f"not measured: {error}"
    leaves = jax.tree.leaves(getattr(teacher, "params", {}))
    size = config.env.image_size
    frame = jax.numpy.asarray(example_inputs((size, size, 3), None, batch=1)["rgb"])
    instruction, key = config.teacher.instruction or find_task(config.env.task).instruction, jax.random.key(0)
    try:
        if sees_state(teacher):
            return label, "?", "?", "not measured: it looks at the simulator's state."
        duration = _milliseconds(lambda: jax.block_until_ready(teacher.act(frame, instruction, key)), seconds)
    except UserError as error:
        return label, "?", "?", f"not measured: {error}"
    finally:
        teacher.close()
    count, size = sum(leaf.size for leaf in leaves), sum(leaf.nbytes for leaf in leaves) / 1e6
    return label, f"{count:,}" if count else "?", f"{size:.1f}" if count else "?", f"{duration:.2f}"


def _milliseconds(call: Callable[[], object], seconds: float) -> float:
    call()
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)
