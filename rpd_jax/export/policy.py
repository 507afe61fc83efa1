"""A policy folder, written from a trained student."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from rpd_jax.errors import UserError
from rpd_jax.evaluate.exported_policy import DESCRIPTION_FILE, JAX_FILE, ExportedPolicy, digest, read_description
from rpd_jax.evaluate.trained_student import TrainedStudent
from rpd_jax.export.weights import policy_weights
from rpd_jax.run.whole_file import check_can_write
from rpd_jax.tasks import find_task

ONNX_FILE, WEIGHTS_FILE, NUMPY_FILE = "policy.onnx", "weights.npz", "run_numpy.py"
PLATFORMS = ("cpu", "cuda")
# What the three forms may differ by: rounding in another order of summation.
TOLERANCE = 1e-4
_SCRATCH = ".export-"


def export_policy(student: TrainedStudent, folder: str | Path) -> dict[str, float]:
    """Writes the deterministic policy in three forms, with example inputs and actions, and compares them.

    Actions are the mean of the Gaussian, clipped to [-1, 1] as the environment would. All forms compute in float32,
    also where `student.precision` is bfloat16.

    Args:
        student: what to export.
        folder: made if missing; files of an earlier export are replaced.

    Returns:
        The largest difference of any action from the JAX program's, for "onnx" and "numpy".

    Raises:
        UserError: `folder` cannot be written, or a package is missing.
        RuntimeError: the forms disagree.
    """
    folder = Path(folder)
    check_can_write(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_SCRATCH}*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    # Beside the files of an earlier export, which stay whole where the disk is full.
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=folder) as scratch:
        differences = _write_forms(student, Path(scratch))
        if max(differences.values()) > TOLERANCE:
            raise RuntimeError(f"the exported forms for {folder} give different actions: {differences}")
        for file in Path(scratch).iterdir():
            os.replace(file, folder / file.name)
    return differences


def _write_forms(student: TrainedStudent, folder: Path) -> dict[str, float]:
    """Writes all files but the README; returns the largest differences of the forms from the JAX program."""
    from rpd_jax.export.onnx_graph import write_onnx

    weights = policy_weights(student)
    program = export_program(student).serialize()
    (folder / JAX_FILE).write_bytes(program)
    write_onnx(weights, student.frame_shape, student.state_dim, folder / ONNX_FILE)
    np.savez(folder / WEIGHTS_FILE, **weights)
    shutil.copyfile(Path(__file__).with_name(NUMPY_FILE), folder / NUMPY_FILE)
    description = _description(student, program)
    description["sha256"] |= {
        name: digest((folder / name).read_bytes()) for name in (ONNX_FILE, WEIGHTS_FILE, NUMPY_FILE)
    }
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n")
    example = example_inputs(student.frame_shape, student.state_dim, batch=3)
    expected = np.asarray(ExportedPolicy(folder).act(**example))
    np.savez_compressed(folder / "example.npz", **example, actions=expected)
    return {
        "onnx": float(np.abs(onnx_policy(folder)(**example) - expected).max()),
        "numpy": float(np.abs(numpy_policy(folder)(**example) - expected).max()),
    }


def onnx_policy(folder: str | Path) -> Callable[..., np.ndarray]:
    """The ONNX graph of a policy folder in ONNX Runtime: called with rgb= and/or state= as numpy arrays.

    Raises:
        UserError: ONNX Runtime is not installed, or a file is damaged.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("ONNX Runtime is not installed: pip install 'rpd-jax[export]'.") from error
    read_description(folder)
    session = onnxruntime.InferenceSession(Path(folder) / ONNX_FILE, providers=["CPUExecutionProvider"])
    return lambda **inputs: session.run(None, inputs)[0]


def numpy_policy(folder: str | Path) -> Callable[..., np.ndarray]:
    """`act` of the folder's own run_numpy.py, without the compiled file that an import would leave beside it."""
    read_description(folder)
    path = Path(folder).absolute() / NUMPY_FILE
    module = {"__name__": "exported_run_numpy", "__file__": str(path)}
    exec(compile(path.read_bytes(), path, "exec"), module)
    return module["act"]


def example_inputs(
    frame_shape: tuple[int, int, int] | None, state_dim: int | None, batch: int
) -> dict[str, np.ndarray]:
    """Random frames and states of the right shapes, always the same ones."""
    random = np.random.default_rng(0)
    inputs = {}
    if frame_shape is not None:
        inputs["rgb"] = random.integers(0, 256, (batch, *frame_shape), np.uint8)
    if state_dim is not None:
        inputs["state"] = random.standard_normal((batch, state_dim)).astype(np.float32)
    return inputs


def export_program(student: TrainedStudent, platforms: tuple[str, ...] = PLATFORMS) -> jax.export.Exported:
    """The deterministic policy for batches of any size, as a program for these platforms."""
    network = student.network.clone(dtype=np.float32)
    params = jax.device_get(student.params)

    def mean_action(*observation):
        given = dict(zip(_inputs(student), observation, strict=True))
        rgb, state = (None if name not in given else given[name][None] for name in ("rgb", "state"))
        return jax.numpy.clip(network.apply(params, rgb, state, method="mean_action")[0], -1.0, 1.0)

    (batch,) = jax.export.symbolic_shape("batch")
    shapes = [jax.ShapeDtypeStruct((batch, *shape), dtype) for shape, dtype in _inputs(student).values()]
    # One frame's program under vmap, since the network itself cannot be traced without knowing the batch.
    return jax.export.export(jax.jit(jax.vmap(mean_action)), platforms=platforms)(*shapes)


def _inputs(student: TrainedStudent) -> dict[str, tuple[tuple[int, ...], str]]:
    inputs = {}
    if student.frame_shape is not None:
        inputs["rgb"] = student.frame_shape, "uint8"
    if student.state_dim is not None:
        inputs["state"] = (student.state_dim,), "float32"
    return inputs


def _description(student: TrainedStudent, program: bytes) -> dict:
    config = student.config
    return {
        "observation": student.network.observation,
        "inputs": {
            name: {"shape": ["batch", *shape], "dtype": kind} for name, (shape, kind) in _inputs(student).items()
        },
        "actions": {
            "shape": ["batch", student.network.action_dim],
            "dtype": "float32",
            "meaning": "ManiSkill's pd_ee_delta_pose at 20 Hz: translation, rotation, gripper (+1 open), in [-1, 1]",
        },
        "task": config.env.task,
        "instruction": config.teacher.instruction or find_task(config.env.task).instruction,
        "camera": config.env.camera.to_dict() if "camera" in config.env else {},
        "image_size": config.env.image_size,
        "mesh_detail": config.env.mesh_detail,
        "algorithm": config.algorithm,
        "seed": config.seed,
        "iteration": student.iteration,
        "steps": student.iteration * config.env.num_envs * config.ppo.rollout_steps,
        "jax": jax.__version__,
        "sha256": {JAX_FILE: digest(program)},
    }
