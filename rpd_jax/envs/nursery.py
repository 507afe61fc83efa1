"""The process that environment workers are forked from: it imports the simulator once, for all workers of its parent.

A run starts workers for each of its stages (see `simulator_imports`).

Started as `python -m rpd_jax.envs.nursery REQUESTS` with an inherited socket; ends when its other end is closed.
Imports no JAX, has one thread and draws nothing, so that it can be forked. A request is the worker's environment
variables in JSON, then one byte with five file descriptors: those of `cpu_worker.main`, that of the worker's output and
one to write its status to when it has ended. The answer is its process id.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import traceback
from multiprocessing.connection import Connection, wait

from rpd_jax.envs import cpu_worker
from rpd_jax.run.stop import ignore_signals


class _Nursery:
    def __init__(self, requests: int):
        self.requests = Connection(requests)
        self.descriptors = socket.socket(fileno=os.dup(requests))
        self.status_of: dict[int, int] = {}  # file descriptors to write to, by process id
        # A child's end is seen by the wait for requests, through this pipe.
        self.child_ended, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake)

    def serve(self) -> None:
        while True:
            ready = wait([self.requests, self.child_ended])
            if self.child_ended in ready:
                os.read(self.child_ended, 1 << 12)
                self._report_ends()
            if self.requests in ready:
                try:
                    environment = json.loads(self.requests.recv_bytes())
                except (EOFError, OSError):
                    return
                _, inherited, *_ = socket.recv_fds(self.descriptors, 1, 5)
                self.requests.send_bytes(str(self._fork(environment, *inherited)).encode())

    def _fork(self, environment: dict[str, str], *inherited: int) -> int:
        *inherited, output, status = inherited
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for other in (self.requests, self.descriptors):
                other.close()
            for descriptor in (self.child_ended, status, *self.status_of.values()):
                os.close(descriptor)
            _work(environment, output, *inherited)
        for descriptor in (*inherited, output):
            os.close(descriptor)
        self.status_of[pid] = status
        return pid

    def _report_ends(self) -> None:
        while self.status_of:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            descriptor = self.status_of.pop(pid)
            with contextlib.suppress(OSError):  # the parent has gone
                os.write(descriptor, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(descriptor)


def _work(environment: dict[str, str], output: int, *inherited: int) -> None:
    """Makes this process the worker that `python -m rpd_jax.envs.cpu_worker` would be; does not return."""
    try:
        for stream in (sys.stdout.fileno(), sys.stderr.fileno()):
            os.dup2(output, stream)
        os.close(output)
        os.environ.clear()
        os.environ.update(environment)
        cpu_worker.main(*inherited)
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def main(requests: int) -> None:
    # As its workers: the trainer decides when it ends.
    ignore_signals()
    import rpd_jax.envs.simulator_imports  # noqa: F401  (after the signals, since it takes seconds)

    _Nursery(requests).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
    os._exit(0)  # without taking down what was imported, a second's work
