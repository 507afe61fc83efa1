"""How an environment worker is started: forked from this process's nursery, or on its own where that fails."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection, wait
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2]

# How long a nursery may import the simulator.
_NURSERY_SECONDS = 120.0

_lock = threading.Lock()
_nursery: _Nursery | None = None
_cannot_fork = False  # a nursery ended before it forked anything: the next one would


def start_worker(inherited: tuple[int, int, int], output: int) -> ForkedProcess | subprocess.Popen:
    """Starts a worker.

    Args:
        inherited: the file descriptors of `cpu_worker.main`; the caller closes its own.
        output: one to which the worker writes what it prints.
    """
    global _nursery, _cannot_fork
    with _lock:
        if not _cannot_fork:
            try:
                _nursery = _nursery or _Nursery()
                return _nursery.fork(inherited, output)
            except (OSError, EOFError):
                # It was killed, or could not import the simulator: a worker on its own tells what is wrong with that.
                _cannot_fork = _nursery is None or not _nursery.has_forked
                if _nursery is not None:
                    _nursery.end()
                    _nursery = None
    return subprocess.Popen(
        [sys.executable, "-m", "rpd_jax.envs.cpu_worker", *map(str, inherited)],
        pass_fds=inherited,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=_worker_environment(),
    )


class ForkedProcess:
    """A child of the nursery; waited for and signalled like a subprocess.Popen."""

    def __init__(self, pid: int, status: Connection):
        self.pid = pid
        self.returncode: int | None = None
        self._status = status

    def wait(self, timeout: float | None = None) -> int:
        """Returns the status, negative after a signal; raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not wait([self._status], timeout):
                raise subprocess.TimeoutExpired("rpd_jax.envs.cpu_worker", timeout)
            told = os.read(self._status.fileno(), 16)
            self._status.close()
            # Nothing is told where the nursery was killed; only what kills without being asked to ends one.
            self.returncode = int(told or -signal.SIGKILL)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Nursery:
    """The parent's end of rpd_jax.envs.nursery; ends with this process.

    Attributes:
        has_forked: whether it could import the simulator, and forked a worker.
    """

    has_forked = False

    def __init__(self):
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rpd_jax.envs.nursery", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_worker_environment(),
        )
        theirs.close()
        self._descriptors = ours
        self._requests = Connection(os.dup(ours.fileno()))

    def fork(self, inherited: tuple[int, int, int], output: int) -> ForkedProcess:
        """Forks a worker; raises OSError or EOFError where the nursery is gone or does not answer."""
        status, told = os.pipe()
        process_status = Connection(status, writable=False)
        try:
            self._requests.send_bytes(json.dumps(_worker_environment()).encode())
            socket.send_fds(self._descriptors, [b"\0"], [*inherited, output, told])
            if not self._requests.poll(_NURSERY_SECONDS):
                raise TimeoutError
            pid = int(self._requests.recv_bytes())
            self.has_forked = True
            return ForkedProcess(pid, process_status)
        finally:
            os.close(told)

    def end(self) -> None:
        self._requests.close()
        self._descriptors.close()
        self._process.kill()
        self._process.wait()


def _worker_environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(_PROJECT), os.environ.get("PYTHONPATH")]))
    # A frame is drawn by one thread; more would only be in the other workers' way.
    return {"LP_NUM_THREADS": "0", **os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
