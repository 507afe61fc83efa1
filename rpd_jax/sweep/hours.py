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
    """Adds up the time of the training jobs: total_steps / rate, and what the stages before the last took.

    They are those of runs with the same profile, observation, environments, frames and teacher, and the same
    algorithm; where the algorithm was not measured, of the slowest of those runs.
    """
    seconds = [None if job.config is None else _seconds_of_job(job, runs) for job in jobs]
    unknown = [job for job, found in zip(jobs, seconds, strict=True) if found is None]
    return Estimate(sum(found for found in seconds if found is not None) / 3600.0, unknown)


def _seconds_of_job(job: Job, runs: Sequence[Run]) -> float | None:
    config = settings.resolve(job_config(job))
    resolved = flatten_dict(config.to_dict(), sep=".")
    wanted = {name: resolved[name] for name in _ALIKE}
    measured: dict[str, list[float]] = {}
    for run in runs:
        seconds = _seconds_at_the_pace_of(run, config.total_steps)
        if seconds is not None and all(run.config.get(name) == value for name, value in wanted.items()):
            measured.setdefault(run.algorithm, []).append(seconds)
    if config.algorithm in measured:
        same = measured[config.algorithm]
        return sum(same) / len(same)
    return max((seconds for found in measured.values() for seconds in found), default=None)


def _seconds_at_the_pace_of(run: Run, steps: int) -> float | None:
    """Seconds of a run whose last stage has `steps`; None where `run` does not tell them, or not yet."""
    per_iteration = seconds_per_stage([run])
    if not per_iteration:
        return None
    own = steps * per_iteration["total"] / (run.config["env.num_envs"] * run.config["ppo.rollout_steps"])
    if not run.has_stages:
        return own
    if run.results is None or "stages" not in run.results:
        return None
    *earlier, _ = run.results["stages"].values()
    return own + 60.0 * sum(float(stage["minutes"]) for stage in earlier)
