"""A job of a sweep as submitit runs it: starts the command, keeps its record, and stops it in time."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import submitit

from rpd_jax.run.whole_file import write_json
from rpd_jax.sweep.grid import ROOT, Job

# Schedulers kill some 90 seconds after their warning.
_SECONDS_TO_SAVE = 60.0
# Of our commands, after SIGINT or SIGTERM.
_STOPPED_STATUS = 130


class JobProcess(submitit.helpers.Checkpointable):
    """Runs a job's command in a process of its own, with its output in logs/<name>.log below the sweep's folder.

    When the scheduler says that the time is up or another needs the machine, the command gets SIGTERM, saves and ends;
    submitit queues the same job again, and the command continues where it stopped.
    """

    def __init__(self, job: Job, folder: Path, gpu: str | None = None):
        """A job of the sweep in `folder`, which sees one `gpu`, a number or name; None: those of this process."""
        self.job, self.folder, self.gpu = job, folder, gpu
        self._pid: int | None = None
        self._queued_again = False

    def __call__(self) -> None:
        """Runs the command to its end; raises RuntimeError if it fails or is stopped."""
        log = log_path(self.folder, self.job)
        log.parent.mkdir(parents=True, exist_ok=True)
        # The scheduler's warning may reach the whole process tree: it is for this process only.
        previous = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        devices = {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu}
        with log.open("ab") as output:
            begun = output.tell()  # after what earlier attempts said
            process = subprocess.Popen(
                [sys.executable, *self.job.command(self.folder)],
                cwd=ROOT,
                env={**os.environ, **devices},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        signal.signal(signal.SIGUSR2, previous)
        self._pid = process.pid
        write_record(self.folder, self.job, state="running", host=socket.gethostname(), pid=process.pid)
        try:
            status = process.wait()
        except BaseException:
            self._stop()
            if not self._queued_again:
                write_record(self.folder, self.job, state="stopped")
            raise
        if status == 0:
            write_record(self.folder, self.job, state="ended")
            return
        if status == _STOPPED_STATUS:
            write_record(self.folder, self.job, state="stopped")
            raise RuntimeError(f"{self.job.name} was stopped")
        error = _last_line(log, begun)
        write_record(self.folder, self.job, state="failed", error=error)
        raise RuntimeError(f"{self.job.name} ended with status {status}: {error}")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit in a signal handler: stops the command and returns what is to be queued again."""
        self._stop()
        self._queued_again = True
        write_record(self.folder, self.job, state="queued")
        return submitit.helpers.DelayedSubmission(JobProcess(self.job, self.folder, self.gpu))

    def _stop(self) -> None:
        """SIGTERM, and SIGKILL for the whole session if the command has not ended in time."""
        if self._pid is None or _has_ended(self._pid):
            return
        os.kill(self._pid, signal.SIGTERM)
        end = time.monotonic() + _SECONDS_TO_SAVE
        while not _has_ended(self._pid) and time.monotonic() < end:
            time.sleep(0.1)
        if not _has_ended(self._pid):
            os.killpg(self._pid, signal.SIGKILL)


def write_record(folder: Path, job: Job, **values: object) -> None:
    """Replaces what is known of a job's last attempt; the time and the id of a job of Slurm are added."""
    in_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    job_id = {"slurm_job": submitit.JobEnvironment().job_id} if in_slurm else {}
    write_json(record_path(folder, job), {"time": time.time(), **job_id, **values})


def read_record(folder: Path, job: Job) -> dict | None:
    """What is known of a job's last attempt; None if there was none, or its record is damaged."""
    try:
        record = json.loads(record_path(folder, job).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) and "state" in record else None


def log_path(folder: Path, job: Job) -> Path:
    """Where the output of all of a job's attempts is."""
    return folder / "logs" / f"{job.name}.log"


def record_path(folder: Path, job: Job) -> Path:
    """Where what is known of a job's last attempt is."""
    return folder / "records" / f"{job.name}.json"


def _has_ended(pid: int) -> bool:
    """True if this child has ended; works inside a signal handler that interrupted Popen.wait, which holds a lock."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # waited for already
        return True


def _last_line(log: Path, begun: int) -> str:
    """The last error in a log, or else its last line, of what came after `begun` bytes."""
    lines = log.read_bytes()[begun:].decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["no output"])[-1][:300]
