"""What ends one of two processes ends the other within a minute, and the cause is said in one sentence."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "two_processes.py"
ROOT = SCRIPT.parents[3]
FAILED = "error: Process {} of this run failed: see what it printed."
GONE = "error: Process {} of this run is gone: it was killed, or its machine cannot be reached."


def run_two(*how):
    """Both processes' exit statuses and errors, and the seconds from the first one's end to the second's."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, SCRIPT, address, str(index), *how],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        ends = []
        deadline = time.monotonic() + 200
        while len(ends) < 2:
            ends += [time.monotonic() for process in started[len(ends) :] if process.poll() is not None]
            assert time.monotonic() < deadline, "hangs"
            time.sleep(0.05)
        errors = [process.communicate()[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], errors, ends[1] - ends[0]


def said(error):
    return [line for line in error.splitlines() if line.startswith("error: ")]


CASES = {
    ("1", "raises", "together"): (1, FAILED),
    ("0", "raises", "collective"): (1, FAILED),
    ("1", "raises inside together", ""): (1, FAILED),
    ("0", "gives up", "together"): (2, FAILED),
    ("1", "gives up", "for good"): (2, FAILED),
    ("1", "is killed", "collective"): (-signal.SIGKILL, GONE),
    ("1", "is killed", "together"): (-signal.SIGKILL, GONE),
    ("", "ends well", ""): None,
}


@pytest.fixture(scope="module")
def outcomes():
    """All at once: they wait most of the time."""
    with ThreadPoolExecutor(len(CASES)) as pool:
        return dict(zip(CASES, pool.map(lambda case: run_two(*case), CASES), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if CASES[case]], ids=" ".join)
def test_one_that_ends_early_ends_the_other(case, outcomes):
    (status, sentence), (statuses, errors, seconds) = CASES[case], outcomes[case]
    who = int(case[0])
    other = 1 - who
    assert statuses[who] == status, errors[who]
    assert statuses[other] == 2 and seconds < 60
    assert len(said(errors[other])) == 1 and said(errors[other])[0].startswith(sentence.format(who)), errors[other]
    assert "Traceback" not in errors[other]
    if status == 1:
        assert "RuntimeError: a mistake of ours" in errors[who]


@pytest.mark.slow
def test_two_that_end_well_say_nothing(outcomes):
    statuses, errors, _ = outcomes["", "ends well", ""]
    assert statuses == [0, 0], errors
    assert said(errors[0]) == said(errors[1]) == []
