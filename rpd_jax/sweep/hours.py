"""How long a sweep will take, from the measured rates of runs like its own."""

import dataclasses
from collections.abc import Sequence

from flax.traverse_util import flatten_dict

from rpd_jax import settings
from rpd_jax.report.runs import Run
from rpd_jax.report.statistics import seconds_per_stage
from rpd_jax.sweep.grid import Job, job_config

# What a run's rate depends on most: rates are taken from runs that agree in these.
_ALIKE = ("profile", "student.observation", "env.num_envs", "env.image_size", "teacher.name")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Hours of all jobs together, one after the other, and the jobs for which no run gives a rate."""

    hours: float
    unknown: list[Job]


def estimate(jobs: Sequence[Job], runs: Sequence[Run]) -> Estimate:
    """Adds up total_steps / rate of the training jobs.

    A job's rate is that of runs with the same profile, observation, environments, frames and teacher, and the same
    algorithm; where the algorithm was not measured, that of the slowest of those runs.
    """
    hours, unknown = 0.0, []
    for job in jobs:
        rate = None if job.config is None else _seconds_per_step(job, runs)
        if rate is None:
            unknown.append(job)
        else:
            seconds, steps = rate
            hours += seconds * steps / 3600.0
    return Estimate(hours, unknown)


def _seconds_per_step(job: Job, runs: Sequence[Run]) -> tuple[float, int] | None:
    config = settings.resolve(job_config(job))
    resolved = flatten_dict(config.to_dict(), sep=".")
    wanted = {name: resolved[name] for name in _ALIKE}
    measured: dict[str, list[float]] = {}
    for run in runs:
        seconds = seconds_per_stage([run])
        if seconds and all(run.config.get(name) == value for name, value in wanted.items()):
            batch = run.config["env.num_envs"] * run.config["ppo.rollout_steps"]
            measured.setdefault(run.algorithm, []).append(seconds["total"] / batch)
    rates = measured.get(config.algorithm) or [rate for found in measured.values() for rate in found]
    if not rates:
        return None
    same = config.algorithm in measured
    return (sum(rates) / len(rates) if same else max(rates)), config.total_steps
