r"""Where an iteration's time goes and what bounds it.

    python -m rpd_jax.profile --config=configs/push_cube_sparse.py [--iterations=2] [--config.FIELD=VALUE ...]

Runs a few iterations as train.py would, with a fresh student and without a run directory. The time in which the
environments simulate and draw is split into waiting for them and the student's own forward passes; where labelling
overlaps with it (`teacher.overlap`), "label" is the rest that they wait for. `cores` is the
processor time per second, of this process and of the environments' workers: on a machine with other load it tells
whether a stage computes or waits. The update's arithmetic is compared with the device's rate in large matrix products.
"""

from rpd_jax.command.start import start

if __name__ == "__main__":
    start()

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator

# As in train.py: JAX shares the GPU with the simulator.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.table import Table

from rpd_jax import plan, settings
from rpd_jax.acting import collect
from rpd_jax.acting.stage import Stage, iteration_keys
from rpd_jax.arithmetic import matmul_rate
from rpd_jax.command.line import read_config, run_command
from rpd_jax.cores import usable_cores
from rpd_jax.envs.vector_env import VectorEnv
from rpd_jax.errors import UserError
from rpd_jax.kernels import kernel_table
from rpd_jax.run.console import plain_console
from rpd_jax.workers.cost import cpu_seconds, peak_mib

STAGES = ("simulate+render", "student acts", "label", "update")
_BUSY = 0.7  # of the cores that could work: from here on a stage is bound by them


class TimedEnvs:
    """Environments whose `step` counts its seconds; all else is theirs."""

    def __init__(self, envs: VectorEnv):
        self._envs = envs
        self.seconds = 0.0

    def __getattr__(self, name: str):
        return getattr(self._envs, name)

    def step(self, actions):
        """Waits for the student's action first, so that only the environments' time is counted."""
        actions = np.asarray(actions) if jax.default_backend() == "cpu" else jax.block_until_ready(actions)
        start = time.perf_counter()
        step = self._envs.step(actions)
        self.seconds += time.perf_counter() - start
        return step


class StageTimes:
    """Seconds on the clock, and of the processor, of this process and of `pids`, by stage.

    Attributes:
        peak_mib: the sum of the most MiB that each of them had in memory.
        updates: how many there were; one that the target KL ended counts by the part of it that was done.
    """

    peak_mib = math.nan
    updates = 0.0

    def __init__(self, pids: list[int]):
        self._pids = pids
        self.clock = dict.fromkeys(STAGES, 0.0)
        self.processor = dict.fromkeys(STAGES, 0.0)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the `with` block to `name`."""
        start = time.perf_counter(), self._processor_seconds()
        yield
        self.clock[name] += time.perf_counter() - start[0]
        self.processor[name] += self._processor_seconds() - start[1]

    def cores(self, name: str) -> float:
        """Cores that were busy in a stage, NaN where /proc does not tell; the student acts within the environments'."""
        seconds = self.clock[name] + (self.clock["student acts"] if name == "simulate+render" else 0.0)
        return self.processor[name] / seconds if seconds else 0.0

    def _processor_seconds(self) -> float:
        return time.process_time() + sum(map(cpu_seconds, self._pids))


def measure(config: ConfigDict, iterations: int) -> StageTimes:
    """Runs 1 + `iterations` iterations of a resolved config and measures all but the first, which compiles."""
    root_key, num_steps = jax.random.key(config.seed), config.ppo.rollout_steps
    with contextlib.ExitStack() as stack:
        stage = Stage.open(config, stack)
        stage.envs = envs = TimedEnvs(stage.envs)
        state = stage.fresh_state(root_key)
        coefficients = stage.coefficients(config.ppo.critic_first)  # nothing is labelled before
        labelled = coefficients.distill > 0.0
        position = collect.start(envs, 0, stage.draws(labelled))
        for iteration in range(1 + iterations):
            if iteration < 2:
                times, envs.seconds = StageTimes(getattr(envs, "worker_pids", [])), 0.0
            keys = iteration_keys(root_key, iteration)
            rollout, position, _ = stage.collect(state, position, num_steps, keys, labelled, times)
            times.clock["student acts"] += times.clock["simulate+render"] - envs.seconds
            times.clock["simulate+render"] = envs.seconds
            state, metrics = stage.update(state, rollout, keys, coefficients, times)
            times.updates += plan.part_done(metrics, config.ppo)
        times.peak_mib = sum(map(peak_mib, [os.getpid(), *getattr(envs, "worker_pids", [])]))
    return times


def bound(config: ConfigDict, times: StageTimes, matmul_share: float) -> str:
    """One sentence: the longest stage, and what it waits for."""
    total = sum(times.clock.values())
    name = max(times.clock, key=times.clock.get)
    seconds = times.clock[name]
    there = usable_cores()
    busy = times.cores(name)
    on_cpu = name == "simulate+render" or jax.default_backend() == "cpu"
    usable = min(there, config.env.workers or there, config.env.num_envs) if name == "simulate+render" else there
    if not on_cpu:
        cause = "the accelerator"
    elif math.isnan(busy):
        cause = "arithmetic or waiting: this machine does not tell what its processors did"
    elif busy >= _BUSY * usable:
        cause = f"arithmetic: it keeps {busy:.1f} of {usable} cores busy"
    elif name == "update" and matmul_share >= 0.5:
        cause = "arithmetic"
    else:
        cause = (
            f"waiting: only {busy:.1f} of {usable} cores work; look for other load on this machine, or for small steps"
        )
    if name == "update":
        cause += f", at {matmul_share:.0%} of the rate of large matrix products"
    return f"{seconds / total:.0%} of an iteration is {name}, bound by {cause}."


_CONFIG = config_flags.DEFINE_config_file("config", None, "The settings: a file of configs/.")
_JSON = flags.DEFINE_bool("json", False, "Print one line of JSON instead of the table, with the peak of the memory.")
_ITERATIONS = flags.DEFINE_integer("iterations", 1, "Iterations to measure, after one that compiles.", lower_bound=1)
_PLAN = flags.DEFINE_enum("plan", None, sorted(plan.DEVICES), "Count what an iteration would cost on such a GPU.")
_MEASURE = flags.DEFINE_bool("measure", False, "With --plan: run the student's programs on this machine's device too.")
_KERNELS = flags.DEFINE_integer("kernels", 12, "With --measure: so many kernels that take most.", lower_bound=0)
_TEACHER = flags.DEFINE_string("teacher", "octo-base-1.5", "With --plan: a published size of Octo.")
_CHUNK = flags.DEFINE_integer("chunk", 256, "With --plan: frames that the teacher looks at in a call.", lower_bound=1)


def print_plan(config: ConfigDict) -> None:
    """Prints the tables of `plan`, and what was measured beside what was counted."""
    programs = plan.student_programs(config)
    measured = plan.measure(programs) if _MEASURE.value else {}
    console, device = plain_console(width=140), plan.DEVICES[_PLAN.value]
    milliseconds = {name: of_an_iteration for name, (of_an_iteration, _) in measured.items()}
    console.print(plan.plan_table(config, programs, device, _TEACHER.value, _CHUNK.value, milliseconds))
    console.print(plan.memory_table(config, programs, device))
    for name, (_, kernels) in measured.items():
        console.print(kernel_table(f"One call of {name}", kernels, _KERNELS.value))
    if measured:
        console.print(f"Measured on {jax.devices()[0].device_kind}.")


def main() -> None:
    config = read_config(_CONFIG)
    if config.refine == "auto":
        config.refine = "pixels"
    config = settings.resolve(config)
    if _PLAN.value:
        print_plan(config)
        return
    if config.refine != "pixels":
        raise UserError(
            f"An iteration of a run of one stage is measured, and refine={config.refine!r} has several: leave it out, "
            "and set what the stage has, such as student.observation=state."
        )
    settings.check_machine(config)
    times = measure(config, _ITERATIONS.value)
    iterations = _ITERATIONS.value
    if _JSON.value:
        stages = {name: times.clock[name] / iterations for name in STAGES}
        frames = config.env.num_envs * config.ppo.rollout_steps
        numbers = {"stages": stages, "seconds": sum(stages.values()), "frames": frames, "peak_mib": times.peak_mib}
        print(json.dumps(numbers))
        return
    _, update = plan.student_programs(config)
    share = update.work(jax.default_backend()).flops * times.updates / times.clock["update"] / matmul_rate()
    total, batch = sum(times.clock.values()), config.env.num_envs * config.ppo.rollout_steps
    device = jax.devices()[0].device_kind
    title = f"An iteration of {batch} frames, profile {config.profile}, {os.cpu_count()} cores, {device}"
    table = Table("stage", "s", "share", "frames/s", "cores", title=title, title_justify="left")
    for name in STAGES:
        seconds = times.clock[name] / iterations
        cores = "" if name == "student acts" else f"{times.cores(name):.2f}"
        rate = f"{batch / seconds:.0f}" if seconds > 1e-3 else ""
        table.add_row(name, f"{seconds:.2f}", f"{times.clock[name] / total:.1%}", rate, cores)
    table.add_row("total", f"{total / iterations:.2f}", "100.0%", f"{batch * iterations / total:.0f}", "")
    console = plain_console(soft_wrap=True)
    console.print(table)
    console.print(bound(config, times, share))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    run_command(main)
