"""What can go wrong with a worker, with real processes: each has its sentence, and nothing is left behind."""

import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import psutil
import pytest

from openvla_bridge.client import OpenVLATeacher
from openvla_bridge.errors import BridgeError
from openvla_bridge.ring import RingLayout
from openvla_bridge.worker_process import WorkerProcess
from rpd_jax.errors import UserError

ROGUE = Path(__file__).parent / "rogue_worker.py"
FRAMES = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
LAST_WORDS = r"[^\n]*\. Its last output:\nout of luck$"
LAYOUT = RingLayout(slots=2, batch=4, height=4, width=4, samples=1, action_dim=7)


def named_memory() -> set[str]:
    """Shared memory with a name that this process maps; other processes' names in /dev/shm are none of ours."""
    return {each.path for each in psutil.Process().memory_maps() if each.path.startswith("/dev/shm/")}


def open_memory():
    """Memory files of the bridge that this process still holds, open or mapped."""
    files = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            files.append(os.readlink(entry))
        except FileNotFoundError:
            continue
    maps = Path("/proc/self/maps").read_text().splitlines()
    return [name for name in files + maps if "openvla_bridge" in name and "memfd" in name]


@pytest.fixture
def clean():
    """Fails a test that leaves children, shared memory or named files behind."""
    children, named = set(psutil.Process().children()), named_memory()
    yield
    _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - children, timeout=10)
    assert not alive
    assert open_memory() == []
    assert named_memory() <= named


@pytest.fixture
def rogue(tmp_path):
    """Makes interpreters that start the rogue worker instead of the real one."""

    def make(behaviour):
        script = tmp_path / f"python-{behaviour.replace(' ', '-')}"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {ROGUE} "{behaviour}" "$3" "$4"\n')
        script.chmod(0o755)
        return str(script)

    return make


def teach(python, frames=FRAMES, **arguments):
    """Starts a teacher, labels frames once, and closes it."""
    teacher = OpenVLATeacher("/nowhere", python=python, devices=("cpu",), batch_size=4, **arguments)
    try:
        return np.asarray(teacher.act(frames, "push", jax.random.key(0)))
    finally:
        teacher.close()


@pytest.mark.parametrize(
    ("behaviour", "sentence"),
    [
        ("other version", "speaks version 999 of the protocol, this program version 3"),
        ("speaks no JSON", "answered nonsense .*which is not JSON"),
        ("sends too much", "answered nonsense .*more than 1048576 bytes"),
        ("strange gripper", "answered nonsense .gripper=wide"),
        ("strange ready", "answered nonsense .action_dim='seven'"),
        ("dies", r"OpenVLA worker 0 \(cpu\) exited with status 3"),
        ("answers too few", "answered nonsense .2 actions in slot 0 instead of 3 in slot 0"),
        ("answers another slot", "answered nonsense .3 actions in slot 1 instead of 3 in slot 0"),
        ("answers without count", "answered nonsense .count=None"),
        ("writes NaN", "answered nonsense .actions that are not numbers"),
        ("writes large numbers", "answered nonsense .actions that are not numbers in .-1, 1"),
    ],
)
def test_nonsense_is_refused(rogue, clean, behaviour, sentence):
    with pytest.raises(UserError, match=f"{sentence}{LAST_WORDS}"):
        teach(rogue(behaviour))


def test_a_rogue_that_behaves_is_believed(rogue, clean):
    """What the refusals above differ from."""
    actions = teach(rogue("behaves"))
    np.testing.assert_allclose(actions, np.broadcast_to((np.arange(6) / 255)[None, :, None], (1, 6, 7)), atol=1e-6)


@pytest.mark.parametrize("behaviour", ["never greets", "slow and silent"])
def test_a_silent_start_is_given_up(rogue, clean, behaviour):
    sentence = r"gave no sign of life for 1.5 s: .* raise teacher.start_timeout"
    with pytest.raises(UserError, match=f"{sentence}{LAST_WORDS}"):
        teach(rogue(behaviour), start_timeout=1.5)


def test_a_slow_start_shows_its_progress_and_is_waited_for(rogue, clean):
    """It takes 6.5 s in all, more than the timeout, but never that long without news."""
    told = []
    assert teach(rogue("slow but talking"), start_timeout=6.0, say=told.append).shape == (1, 6, 7)
    gripper = "OpenVLA: gripper from 0 (closed) to 1 (open), since it goes from 0 to 1 in its action statistics."
    assert told == [*(f"OpenVLA worker 0 (cpu): step {i}" for i in range(5)), gripper]


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (signal.SIGKILL, "was killed by SIGKILL .if memory ran out"),
        (signal.SIGSTOP, "gave no sign of life for 1 s: .* raise teacher.request_timeout"),
    ],
)
def test_the_real_worker_killed_or_stopped_in_the_middle_of_requests(clean, number, sentence):
    worker = WorkerProcess("OpenVLA worker 0 (cpu)", request_timeout=60.0)
    worker.greet()
    worker.attach(LAYOUT)
    worker.submit_echo(FRAMES[:4])
    assert worker.collect()[0].shape == (1, 0, 1, 7)
    worker._request_timeout = 1.0
    worker.process.send_signal(number)
    with pytest.raises(BridgeError, match=sentence):
        worker.submit_echo(FRAMES[:4])
        worker.collect()
    with pytest.raises(BridgeError, match="was closed: load the teacher again"):
        worker.submit_echo(FRAMES[:4])


def test_a_worker_killed_between_the_beginning_and_the_end_of_a_batch(rogue, clean):
    teacher = OpenVLATeacher("/nowhere", python=rogue("slower"), devices=("cpu",), batch_size=4)
    first, second = (teacher.begin(FRAMES, "push", jax.random.key(0)) for _ in range(2))
    os.kill(teacher.team.pids[0], signal.SIGKILL)
    with pytest.raises(UserError, match=r"OpenVLA worker 0 \(cpu\) was killed by SIGKILL"):
        first()
    with pytest.raises(UserError, match="closed: load it again"):
        second()


def test_signals_to_the_process_group_do_not_reach_the_worker(clean):
    worker = WorkerProcess("worker")
    worker.greet()
    for number in (signal.SIGINT, signal.SIGTERM):
        worker.process.send_signal(number)
    worker.attach(LAYOUT)
    worker.close()
    worker.close()


@pytest.mark.parametrize(
    ("end", "stopped"),
    [("os.kill(os.getpid(), signal.SIGKILL)", False), ("os.kill(os.getpid(), signal.SIGKILL)", True), ("1 / 0", False)],
)
def test_no_worker_outlives_its_parent(end, stopped, assert_leaves_nothing):
    """A worker that is stopped cannot read the end of its connection; the kernel's signal ends it."""
    script = """
        from openvla_bridge.ring import RingLayout
        from openvla_bridge.worker_process import WorkerProcess
        worker = WorkerProcess("worker")
        worker.greet()
        worker.attach(RingLayout(2, 4, 4, 4, 1, 7))
        workers = [worker.process.pid]
    """
    stop = "worker.process.send_signal(signal.SIGSTOP)\n" if stopped else ""
    assert_leaves_nothing(script, stop + end, "openvla_bridge", seconds=60)


def test_interpreters_that_cannot_do_it(tmp_path, clean):
    with pytest.raises(UserError, match=r"teacher.python='/nowhere/python' cannot be started"):
        teach("/nowhere/python")
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # no site-packages
    bare.chmod(0o755)
    with pytest.raises(UserError, match=r"lacks torch: run `make openvla-env` and set teacher.python"):
        teach(str(bare))


def test_settings_that_cannot_be():
    for arguments, sentence in (
        ({"devices": ()}, r"teacher.devices=\(\) must name"),
        ({"temperature": -1.0}, "teacher.temperature=-1.0 must not"),
        ({"batch_size": 0}, "teacher.batch_size=0 must"),
    ):
        with pytest.raises(UserError, match=sentence):
            OpenVLATeacher("/nowhere", **arguments)


def test_batches_are_split_by_measured_speed_and_stay_in_order(rogue, clean, tmp_path):
    """Two workers, chosen by a counter in the wrapper: the first answers 20 times slower than the second says it is."""
    script = tmp_path / "python"
    flag = tmp_path / "first"
    script.write_text(
        f"#!/bin/sh\nif mkdir {flag} 2>/dev/null; then b=slower; else b=behaves; fi\n"
        f'exec {sys.executable} {ROGUE} "$b" "$3" "$4"\n'
    )
    script.chmod(0o755)
    frames = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    teacher = OpenVLATeacher("/nowhere", python=str(script), devices=("cpu", "cpu"), batch_size=4)
    try:
        for _ in range(3):
            actions = np.asarray(teacher.act(frames, "push", jax.random.key(0)))
            np.testing.assert_allclose(actions[0, :, 0], np.arange(40) / 255, atol=1e-6)
        slow, fast = sorted(speed.requests for speed in teacher.team.speeds)
        assert fast > 1.5 * slow
        rates = [speed.frames_per_second for speed in teacher.team.speeds]
        assert max(rates) == pytest.approx(20 * min(rates), rel=0.01)
    finally:
        teacher.close()
