r"""What an iteration costs on a GPU that is not there, counted from its programs.

    python -m rpd_jax.profile --config=configs/push_cube_sparse.py --config.profile=paper --plan=h100 [--measure]

Every program that an iteration runs is traced with the shapes of the config and counted (`arithmetic.count`), for CUDA.
The larger of operations over the device's rate and bytes over its bandwidth is the least time that it can take; a
program that is well made takes 1.5 to 3 times that. The simulator is not a program of ours and is left out.
`--measure` runs the student's programs on the device that is there, on random frames, and tells which of its kernels
take most of the time.
"""

import dataclasses
import functools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from rich.table import Table

from rpd_jax.arithmetic import Work, count, nbytes, timings
from rpd_jax.errors import UserError
from rpd_jax.kernels import Kernel, measure_kernels
from rpd_jax.learning import schedules
from rpd_jax.learning.finite import FINITE_TERMS
from rpd_jax.learning.learner import Learner
from rpd_jax.learning.rollout import Rollout
from rpd_jax.learning.update import LearnerState, Update
from rpd_jax.student.networks import ActorCritic

STATE_DIM = 35  # PushCube's; the paper's student does not look at it
ENVIRONMENTS = (128, 256, 512, 1024)
_COUNT_SECONDS = 900


@dataclasses.dataclass(frozen=True)
class Device:
    """A GPU by its maker's data sheet: operations per second by type, bytes per second, and bytes.

    float32 products run in TF32 on the tensor cores, as JAX asks for by default.
    """

    name: str
    rates: dict[str, float]
    bandwidth: float
    memory: float

    def seconds(self, work: Work) -> tuple[float, float]:
        """The least time that the arithmetic takes, and that the memory takes."""
        products = sum(flops / self.rates.get(dtype, self.rates["float32"]) for dtype, flops in work.products.items())
        return products + work.others / _PLAIN, work.bytes / self.bandwidth


_PLAIN = 67e12  # float32 without tensor cores, of both
_RATES = {"bfloat16": 989e12, "float32": 495e12}
# NVIDIA's data sheets of the SXM parts, dense.
DEVICES = {"h100": Device("H100", _RATES, 3.35e12, 80e9), "h200": Device("H200", _RATES, 4.8e12, 141e9)}


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program of an iteration.

    Attributes:
        name: as the tables call it.
        calls: in an iteration.
        function: jitted.
        arguments: shapes.
    """

    name: str
    calls: int
    function: Callable
    arguments: tuple

    def work(self, platform: str = "cuda") -> Work:
        """What one call has to do."""
        return count(self.function, *self.arguments, platform=platform)

    def compiled(self) -> tuple[jax.stages.Compiled, tuple]:
        """The program for this machine's device, and arguments: random arrays that are made here."""
        arguments = jax.tree.map(_random, self.arguments, is_leaf=lambda leaf: isinstance(leaf, LearnerState))
        return self.function.lower(*arguments).compile(), arguments


def student_programs(config: ConfigDict) -> list[Program]:
    """The programs of the student in an iteration of a resolved config: acting, and an update that no KL ends."""
    config = config.copy_and_resolve_references()
    config.ppo.target_kl = 0.0
    ppo, network = config.ppo, ActorCritic.from_config(config.student)
    learner = Learner(network, config)
    program = Update(network, config, learner.mesh)
    steps, envs, size = ppo.rollout_steps, config.env.num_envs, config.env.image_size
    rgb = _shape(envs, size, size, 3, dtype=jnp.uint8) if network.sees_frames else None
    state = _shape(envs, STATE_DIM) if network.reads_state else None
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(network.init, key, rgb, state)
    fresh = _learner_state(program.optimizer, params)
    rollout = rollout_shapes(learner, steps, envs, size)
    coefficients = schedules.coefficients(config, 0)
    replay = jax.eval_shape(functools.partial(learner.create_replay, 7, STATE_DIM)) if learner.uses_replay else None
    update = jax.jit(lambda *arguments: program.on_mesh(*arguments, None, per_minibatch=False))
    return [
        Program("student acts", steps, learner.policy_step, (params, rgb, state, key)),
        Program("update", 1, update, (fresh, rollout, key, coefficients, replay)),
    ]


def part_done(metrics: Mapping[str, float], ppo: ConfigDict) -> float:
    """The part of an update's minibatches that it looked at: all, or those until one exceeded the target KL."""
    looked_at = int(metrics["optimizer_steps"]) + int(metrics["target_kl_stop"])
    return looked_at / (ppo.update_epochs * ppo.num_minibatches)


def _learner_state(optimizer: optax.GradientTransformation, params: Any) -> LearnerState:
    scalar = _shape(dtype=jnp.int32)
    return LearnerState(params, jax.eval_shape(optimizer.init, params), scalar, scalar)


def rollout_shapes(learner: Learner, steps: int, envs: int, size: int) -> Rollout:
    """The shapes of a labelled rollout as the learner is given it."""
    vector, matrix = _shape(envs), _shape(steps, envs)
    labels = _shape(learner.label_sets, learner.num_samples, steps, envs, 7) if learner.num_samples else None
    return Rollout(
        rgb=_shape(steps, envs, size, size, 3, dtype=jnp.uint8) if learner.network.sees_frames else None,
        state=_shape(steps, envs, STATE_DIM) if learner.network.reads_state else None,
        actions=_shape(steps, envs, 7),
        logprobs=matrix,
        values=matrix,
        rewards=matrix,
        dones=matrix,
        next_done=vector,
        next_value=vector,
        final_values=matrix,
        teacher_actions=labels,
    )


def label_work(architecture: str, batch: int, samples: int) -> dict[str, Work]:
    """Counts one call of a teacher of a published size in each precision, in the process that knows it."""
    command = (sys.executable, "-m", "octo_teacher.profile", f"--architecture={architecture}", f"--batch={batch}")
    command += ("--precision=float32,bfloat16", f"--samples={samples}", "--count", "--json")
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_COUNT_SECONDS, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        last = (error.stderr or "no answer").strip().splitlines()[-1:]
        raise UserError(f"`{' '.join(command[1:])}` failed: {''.join(last)}") from error
    return {row["precision"]: Work(**row["work"]) for row in json.loads(answer.stdout)["rows"]}


def plan_table(
    config: ConfigDict,
    programs: list[Program],
    device: Device,
    architecture: str,
    chunk: int,
    measured: dict[str, float],
) -> Table:
    """The table of an iteration: each program's work, its least time on `device`, and what was measured (ms)."""
    frames = config.env.num_envs * config.ppo.rollout_steps
    rows = [(program.name, program.calls, program.work()) for program in programs]
    for precision, work in label_work(architecture, chunk, config.distill.averaged).items():
        rows.append((f"label, {architecture}, {precision}", -(-frames // chunk), work))
    batch = f"{config.env.num_envs} x {config.ppo.rollout_steps} frames of {config.env.image_size} px"
    title = f"An iteration of {batch}, counted for an {device.name}"
    table = Table(title=title, title_justify="left")
    for column in ("program", "calls", "TFLOP", "GB", "arithmetic ms", "memory ms", "bound by", "measured ms"):
        table.add_column(column, justify="left" if column in ("program", "bound by") else "right")
    for name, calls, work in rows:
        arithmetic, memory = (1e3 * calls * seconds for seconds in device.seconds(work))
        table.add_row(
            name,
            str(calls),
            f"{calls * work.flops / 1e12:.2f}",
            f"{calls * work.bytes / 1e9:.1f}",
            f"{arithmetic:.1f}",
            f"{memory:.1f}",
            "arithmetic" if arithmetic > memory else "memory",
            f"{measured[name]:.1f}" if name in measured else "",
        )
    return table


def memory_table(config: ConfigDict, programs: list[Program], device: Device) -> Table:
    """What the student's side of an iteration keeps on the device, by the number of environments.

    "minibatch" is what the gradient keeps of one: its frames, and twice the results of its products.
    """
    title = f"Memory of the student's side, GB (an {device.name} has {device.memory / 1e9:.0f})"
    table = Table(title=title, title_justify="left")
    for column in ("environments", "rollout", "student and Adam", "minibatch", "together"):
        table.add_column(column, justify="right")
    _, update = programs
    learner, rollout = update.arguments[:2]
    state, of_one = (1e-9 * sum(map(nbytes, jax.tree.leaves(part))) for part in (learner, rollout))
    of_one /= config.env.num_envs
    network, size = ActorCritic.from_config(config.student), config.env.image_size
    for envs in ENVIRONMENTS:
        frames = envs * config.ppo.rollout_steps // config.ppo.num_minibatches
        rgb = _shape(frames, size, size, 3, dtype=jnp.uint8) if network.sees_frames else None
        seen = _shape(frames, STATE_DIM) if network.reads_state else None
        minibatch = 2e-9 * count(network.apply, learner.params, rgb, seen).bytes
        values = (envs * of_one, state, minibatch, envs * of_one + state + minibatch)
        table.add_row(str(envs), *(f"{value:.2f}" for value in values))
    return table


def measure(programs: list[Program], repeats: int = 3) -> dict[str, tuple[float, list[Kernel]]]:
    """Milliseconds in an iteration of each program on this machine's device, on random arrays, and its call's kernels.

    Raises:
        FloatingPointError: an update met numbers that are not finite: it ended early, and its time means nothing.
    """
    found = {}
    for program in programs:
        compiled, arguments = program.compiled()
        call = functools.partial(compiled, *arguments)
        if program.name == "update" and (code := int(call()[1]["nonfinite"])):
            raise FloatingPointError(f"The measured update ended at a {FINITE_TERMS[code - 1]} that is not finite.")
        seconds = statistics.median(clock for clock, _ in timings(call, repeats))
        found[program.name] = 1e3 * program.calls * seconds, measure_kernels(compiled, arguments, repeats=1)
    return found


def _random(leaf: Any) -> jax.Array:
    if isinstance(leaf, LearnerState):
        # Variances of random signs would not be finite deviations: Adam's begin at zero, the state's are made positive.
        moments = jax.tree.map(lambda moment: jnp.zeros(moment.shape, moment.dtype), leaf.opt_state)
        params = jax.tree.map(_random, leaf.params)
        if "statistics" in params:
            params = {**params, "statistics": jax.tree.map(jnp.abs, params["statistics"])}
        return LearnerState(params, moments, *jnp.zeros((2,), jnp.int32))
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    random = np.random.default_rng(0)
    if leaf.dtype == jnp.uint8:
        return jnp.asarray(random.integers(0, 256, leaf.shape, np.uint8))
    return jnp.asarray(0.01 * random.standard_normal(leaf.shape, np.float32)).astype(leaf.dtype)


def _shape(*axes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(axes, dtype)
