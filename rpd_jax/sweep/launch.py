"""Starts jobs through submitit: a few at a time on this machine, or all as one array of Slurm."""

import itertools
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import submitit

from rpd_jax.errors import UserError
from rpd_jax.run.stop import interrupts_raise
from rpd_jax.sweep.grid import Job
from rpd_jax.sweep.job_process import JobProcess, read_record, write_record
from rpd_jax.sweep.status import runs_here

# A job is told to save so long before its time limit.
_WARNING_SECONDS = 90
_SECONDS_TO_END = 120
# Requeued so often at most after its time limit; preemptions do not count.
_MAX_TIMEOUTS = 100


def visible_gpus() -> list[str]:
    """The GPUs that jobs may use: those of CUDA_VISIBLE_DEVICES where it is set, else all of this machine."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    # CUDA looks no further than the first that is none.
    return list(itertools.takewhile(lambda gpu: gpu not in ("", "-1"), map(str.strip, listed.split(","))))


@interrupts_raise()
def launch_local(
    jobs: Sequence[Job],
    folder: Path,
    parallel: int,
    hours: float,
    gpus: Sequence[str] = (),
    on_end: Callable[[Job, str], None] = lambda job, error: None,
) -> None:
    """Runs jobs on this machine and waits for them; the rest goes on when one fails.

    Args:
        jobs: in this order.
        folder: the sweep's.
        parallel: jobs at a time.
        hours: a job that takes longer is stopped and started again, six times at most.
        gpus: their numbers or names; each of the parallel jobs sees one of them, in turn. Without any, none is seen.
        on_end: called with each job that ended and its error ("" if there was none).

    Raises:
        KeyboardInterrupt: after the running jobs were told to save and end.
    """
    waiting, running = list(jobs), {}
    try:
        while waiting or running:
            free = [slot for slot in range(parallel) if slot not in running]
            for slot in free[: len(waiting)]:
                job = waiting.pop(0)
                executor = submitit.LocalExecutor(folder / "submitit")
                warning = min(_WARNING_SECONDS, int(1800 * hours))
                executor.update_parameters(timeout_min=60 * hours, signal_delay_s=warning)
                gpu = gpus[slot % len(gpus)] if gpus else None
                # Ctrl-C is for this process only, which tells the jobs.
                previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
                running[slot] = job, executor.submit(JobProcess(job, folder, gpu))
                signal.signal(signal.SIGINT, previous)
            for slot, (job, handle) in list(running.items()):
                if handle.done():
                    del running[slot]
                    on_end(job, _error(job, folder, handle))
            time.sleep(0.2)
    except BaseException:
        _stop_all(list(running.values()), folder)
        raise


def launch_slurm(jobs: Sequence[Job], folder: Path, parallel: int, hours: float, parameters: Mapping[str, str]) -> str:
    """Submits jobs as one array and returns its id; Slurm, not this process, runs them.

    Args:
        jobs: of the array.
        folder: the sweep's, on a file system that all nodes share.
        parallel: jobs at a time.
        hours: time limit of a job; one that needs longer is queued again and continues.
        parameters: of sbatch, by submitit's names (partition, account, gpus_per_node, cpus_per_task, mem, ...).

    Raises:
        UserError: no Slurm on this machine, an unknown parameter, or a refused submission.
    """
    try:
        executor = submitit.SlurmExecutor(folder / "submitit", max_num_timeout=_MAX_TIMEOUTS)
        executor.update_parameters(
            time=int(60 * hours),
            signal_delay_s=_WARNING_SECONDS,
            array_parallelism=parallel,
            **{name: int(value) if value.isdigit() else value for name, value in parameters.items()},
        )
        with executor.batch():
            handles = [executor.submit(JobProcess(job, folder)) for job in jobs]
        for job, handle in zip(jobs, handles, strict=True):
            write_record(folder, job, state="queued", slurm_job=handle.job_id)
    except (RuntimeError, ValueError, submitit.core.utils.FailedJobError) as error:
        sentence = " ".join(str(error).split())[:300]
        raise UserError(f"Slurm did not take the jobs ({sentence}): mend --slurm, or use --launcher=local.") from error
    return handles[0].job_id.split("_")[0]


def _stop_all(running: Sequence[tuple[Job, submitit.Job]], folder: Path) -> None:
    """Sends SIGTERM to the jobs' commands, and waits for them to save and end."""
    told, end = set(), time.monotonic() + _SECONDS_TO_END
    while time.monotonic() < end and not all(handle.done() for _, handle in running):
        for job, handle in running:
            record = read_record(folder, job)  # a job that has just been started writes it soon
            if job.name not in told and not handle.done() and record is not None and runs_here(record, job.name):
                os.kill(record["pid"], signal.SIGTERM)
                told.add(job.name)
        time.sleep(0.2)


def _error(job: Job, folder: Path, handle: submitit.Job) -> str:
    try:
        handle.result()
    except Exception as error:
        record = read_record(folder, job) or {}
        if record.get("state") == "failed":
            return record["error"]
        if record.get("state") == "stopped":
            return "it was stopped; the same command continues it"
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return ""
