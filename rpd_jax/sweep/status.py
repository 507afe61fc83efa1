"""What has become of a sweep's jobs."""

import collections
import dataclasses
import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from rpd_jax.run.lock import is_held
from rpd_jax.sweep.grid import Job
from rpd_jax.sweep.job_process import log_path, read_record, record_path
from rpd_jax.training_run.fields import FIRST_STAGES

# States of a job; those in `TO_START` are started by the next call.
FINISHED, RUNNING, QUEUED, STOPPED, FAILED, MISSING = (
    "finished",
    "running",
    "queued",
    "stopped",
    "failed",
    "not started",
)
TO_START = (STOPPED, FAILED, MISSING)
_RUNNING_STATES = ("RUNNING", "COMPLETING", "CONFIGURING", "SIGNALING", "STAGE_OUT")

# A job of another machine that holds no lock and has written nothing for so long has ended.
_SILENT_SECONDS = 900.0


@dataclasses.dataclass(frozen=True)
class Status:
    """State of a job, what it reached, and its error."""

    job: Job
    state: str
    detail: str = ""


def read_status(jobs: Sequence[Job], folder: Path) -> list[Status]:
    """Looks at the files of a sweep's folder, and asks Slurm about the jobs that it was given."""
    in_slurm = any("slurm_job" in (read_record(folder, job) or {}) for job in jobs)
    slurm = _slurm_states() if in_slurm else {}
    return [_status(job, folder, slurm) for job in jobs]


def status_table(statuses: Sequence[Status], title: str) -> Table:
    """A line per job."""
    table = Table("job", "state", "", title=title, title_justify="left")
    for status in statuses:
        table.add_row(status.job.name, status.state, status.detail)
    counts = collections.Counter(status.state for status in statuses)
    table.caption = ", ".join(f"{count} {state}" for state, count in counts.items())
    return table


def _status(job: Job, folder: Path, slurm: Mapping[str, str] | None) -> Status:
    workdir = folder / job.name
    if (workdir / "results.json").exists():
        return Status(job, FINISHED, _success(workdir / "results.json"))
    progress = _progress(workdir)
    record = read_record(folder, job)
    if record is None:
        return Status(job, STOPPED if progress else MISSING, progress)
    if record["state"] == "failed":
        return Status(job, FAILED, record["error"])
    if "slurm_job" in record:
        if slurm is None:
            return Status(job, QUEUED, f"{progress} (Slurm does not answer on this machine)".lstrip())
        state = slurm.get(record["slurm_job"])
        return Status(job, STOPPED if state is None else RUNNING if state in _RUNNING_STATES else QUEUED, progress)
    if runs_here(record, job.name):
        return Status(job, RUNNING, progress)
    if record["state"] == "running" and record["host"] != socket.gethostname() and _shows_life(job, folder):
        limit = f"on {record['host']}; stopped if silent for {_SILENT_SECONDS // 60:.0f} minutes"
        return Status(job, RUNNING, f"{progress} ({limit})".lstrip())
    return Status(job, STOPPED, progress)


def _success(path: Path) -> str:
    results = json.loads(path.read_bytes())
    if "student" in results:
        student = results["student"]
        return f"success {student['success']:.0%} ({student['success_low']:.0%} to {student['success_high']:.0%})"
    return ", ".join(f"{row['task']} {row['success']:.1%}" for row in results.get("tasks", []))


def _progress(workdir: Path) -> str:
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    for line in reversed(lines):
        try:
            return f"{json.loads(line)['step']:,} steps"
        except (json.JSONDecodeError, KeyError):  # the line that is being written
            continue
    return ""


def _shows_life(job: Job, folder: Path) -> bool:
    """True if a job of another machine, whose processes cannot be seen, holds its run or has written something lately.

    The machine may be gone: a container has another name after each start.
    """
    workdir = folder / job.name
    written = [record_path(folder, job), log_path(folder, job)]
    written += [workdir / stage / "metrics.jsonl" for stage in ("", *FIRST_STAGES)]
    newest = max(path.stat().st_mtime for path in written if path.exists())
    return is_held(workdir) or time.time() - newest < _SILENT_SECONDS


def runs_here(record: dict, name: str) -> bool:
    """True if the process of a job's record is on this machine."""
    if record["state"] != "running" or record["host"] != socket.gethostname():
        return False
    command = Path(f"/proc/{record['pid']}/cmdline")
    if command.parent.parent.joinpath("self").exists():  # there is a /proc
        return command.exists() and name.encode() in command.read_bytes()
    try:
        os.kill(record["pid"], 0)
    except OSError:
        return False
    return True


def _slurm_states() -> dict[str, str] | None:
    """Job id -> Slurm's state of this user's jobs; None if Slurm cannot be asked. Unlike sacct it needs no database."""
    command = ["squeue", "--me", "--array", "--noheader", "--format=%i %T"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split() for line in answer.splitlines())
