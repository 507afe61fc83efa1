import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap

import psutil
import pytest

from rpd_jax.envs.worker_start import start_worker
from rpd_jax.workers.memory import create_memory


@contextlib.contextmanager
def worker():
    """A worker without environments, and the other ends of its connection and lifeline."""
    ours, theirs = socket.socketpair()
    read_end, lifeline = os.pipe()
    memory = create_memory()
    with tempfile.TemporaryFile() as output, ours, theirs, open(lifeline, "wb") as held:
        process = start_worker((theirs.fileno(), read_end, memory), output.fileno())
        theirs.close()
        for descriptor in (read_end, memory):
            os.close(descriptor)
        yield process, ours, held


def parent(process):
    return psutil.Process(process.pid).parent()


def test_workers_are_forked_from_one_process_that_has_imported_the_simulator():
    with worker() as (first, *_), worker() as (second, *_):
        nursery = parent(first)
        assert nursery == parent(second) and nursery.parent().pid == os.getpid()
        assert {thread.id for thread in nursery.threads()} == {nursery.pid}
        for process in (nursery, psutil.Process(first.pid)):
            assert any("libtorch_cpu" in each.path for each in process.memory_maps())


def test_how_a_worker_ended_is_told():
    with worker() as (process, connection, _):
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.01)
        connection.close()
        assert process.wait(timeout=60) == process.wait() == 0
        process.kill()  # of a process that is gone: nothing happens
    with worker() as (process, *_):
        process.send_signal(signal.SIGTERM)
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL
    with worker() as (process, _, lifeline):
        lifeline.close()
        assert process.wait(timeout=60) in (0, -signal.SIGIO)


def test_a_killed_nursery_takes_no_worker_with_it_and_is_replaced():
    with worker() as (orphan, *_):
        nursery = parent(orphan)
        nursery.kill()
        nursery.wait()
        with worker() as (on_its_own, *_), worker() as (forked, *_):
            assert parent(on_its_own).pid == os.getpid()
            assert parent(forked).parent().pid == os.getpid() and parent(forked) != nursery
            assert psutil.Process(orphan.pid).is_running()
        # Nobody tells how this one ends.
        assert orphan.wait(timeout=60) == -signal.SIGKILL


def test_pyplot_is_imported_when_it_is_used():
    script = """
        import sys
        from rpd_jax.envs import nursery
        nursery._Nursery = lambda requests: nursery
        nursery.serve = lambda: None
        nursery.main(0)
        from pytorch_kinematics import ik
        assert "matplotlib.figure" not in sys.modules, "imported before"
        ik.plt.figure()
        assert sys.modules["matplotlib.pyplot"].get_fignums() == ik.plt.get_fignums() == [1]
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
