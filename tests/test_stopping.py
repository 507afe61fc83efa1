"""Ctrl-C and SIGTERM at any moment from the first import on: a command ends, or saves and ends, and leaves no trace.

Each 0.2 s of the first ten seconds: tests/benchmarks/stop_moments.py.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time

import pytest
from stopping import ROOT, finetune, stop_after, train

IMPORTING, STARTING = 0.0, 4.0  # seconds: in the imports; environments, teacher or compilation


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seconds", "number"),
    [
        ("train", IMPORTING, signal.SIGINT),
        ("train", 0.7, signal.SIGINT),
        ("train", STARTING, signal.SIGTERM),
        ("finetune", 0.3, signal.SIGTERM),
        ("finetune", STARTING, signal.SIGINT),
        ("evaluate", STARTING, signal.SIGINT),
        ("export", 0.7, signal.SIGTERM),
        ("report", IMPORTING, signal.SIGINT),
    ],
)
def test_a_command_that_is_stopped_ends_without_a_trace(name, seconds, number, bright_demos, tmp_path):
    command = {
        "train": train(tmp_path / "run", total_steps=10**6),
        "finetune": finetune(tmp_path / "run", bright_demos, new_camera_size=32),
        "evaluate": [sys.executable, "-m", "rpd_jax.evaluate", "--teacher=octo-nano"],
        "export": [sys.executable, "-m", "rpd_jax.export", f"--run={tmp_path}"],
        "report": [sys.executable, "-m", "rpd_jax.report", str(tmp_path)],
    }[name]
    outcome = stop_after(command, seconds, number)
    if name in ("export", "report") and outcome.status == 2:
        return  # it had already seen that there is no run
    assert outcome.is_clean and outcome.status == 130, outcome


LISTEN = """
import ctypes, sys, time
from rpd_jax.run.stop import StopRequest, interrupts_raise, listen
listen()
class Slow:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)
print("", flush=True)
{body}
print("went on", flush=True)
"""
# What a library may be doing when a signal comes.
MOMENTS = {
    "in C, where Python's handlers wait": "print('ready', flush=True); ctypes.CDLL(None).sleep(60)",
    "in a callback that swallows exceptions": "Slow()",
    "with nothing to save": "with StopRequest(): print('ready', flush=True); ctypes.CDLL(None).sleep(60)",
}
SAVING = """
with StopRequest() as stop:
    stop.unsaved = True
    print("ready", flush=True)
    for _ in range(600):
        time.sleep(0.1)
        try:
            stop.check()
        except Exception as reason:
            print("saved after", reason, flush=True)
            break
"""


def listening(body, *before):
    process = subprocess.Popen(
        [*before, sys.executable, "-c", LISTEN.replace("{body}", body)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_is_neither_lost_nor_leaves_a_trace(moment, number):
    process = listening(MOMENTS[moment])
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, "")


def test_what_is_to_be_saved_is_saved_and_a_second_signal_ends_at_once():
    process = listening(SAVING)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert output.splitlines() == ["saved after SIGTERM", "went on"]
    process = listening(SAVING)
    for _ in range(3):  # the kernel and the shell tell of a closed terminal
        process.send_signal(signal.SIGHUP)
        time.sleep(0.02)
    output, _ = process.communicate(timeout=30)
    assert output.splitlines() == ["saved after SIGHUP", "went on"]
    process = listening("with StopRequest() as stop: stop.unsaved = True; print('ready', flush=True); time.sleep(60)")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, "")


def test_at_its_end_signals_are_what_they_were():
    body = """
import os, signal
before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
try:
    with StopRequest() as stop:
        stop.unsaved = True
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        stop.check()
except Exception:
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    print("ready", flush=True)
    time.sleep(1)
"""
    assert listening(body).communicate(timeout=30)[0] == "went on\n"


def test_what_is_to_outlive_its_terminal_does():
    process = listening("print('ready', flush=True); time.sleep(1)", "nohup")
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=30)[0].splitlines()[-1] == "went on" and process.returncode == 0


def test_what_has_to_be_undone_is_undone():
    body = """
with interrupts_raise():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("undone", flush=True)
"""
    process = listening(body)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0].splitlines() == ["undone", "went on"]


def test_a_signal_after_the_work_is_done_does_not_make_it_a_failure():
    body = """
import os
class Late:
    def __del__(self, write=os.write, sleep=time.sleep):
        write(1, b"ready\\n")
        sleep(1)
late = Late()
"""
    process = listening(body)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "" and process.returncode == 0


def test_a_signal_to_a_forked_child_is_not_its_parent_s():
    body = """
import os, signal
reader, writer = os.pipe()
child = os.fork()
if not child:
    os.write(writer, b"1")
    time.sleep(60)
os.read(reader, 1)
os.kill(child, signal.SIGTERM)
assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
print("ready", flush=True)
time.sleep(1)
"""
    process = listening(body)
    assert process.communicate(timeout=30)[0] == "went on\n" and process.returncode == 0


def test_a_closed_pipe_ends_quietly_and_a_full_one_with_a_sentence():
    command = [sys.executable, "-m", "rpd_jax.report", "--help"]
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.stderr == ""
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ") and "No space left on device" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_saves_and_ends(tmp_path):
    process = subprocess.Popen(
        train(tmp_path / "run", total_steps=10**6),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while "steps/s" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=100) == 130 and "Traceback" not in errors, errors
    assert_all_is_saved(tmp_path / "run")


def assert_all_is_saved(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    saved = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    assert max(saved) == len(rows)


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_saves_and_ends(tmp_path):
    ours, its = os.openpty()

    def take_terminal():
        os.setsid()
        fcntl.ioctl(its, termios.TIOCSCTTY, 0)

    command = train(tmp_path / "run", total_steps=10**6)
    process = subprocess.Popen(command, cwd=ROOT, stdin=its, stdout=its, stderr=its, preexec_fn=take_terminal)
    os.close(its)
    shown = b""
    while b"steps/s" not in shown:
        shown += os.read(ours, 1 << 12)
    os.close(ours)  # the kernel sends SIGHUP to all of its processes
    assert process.wait(timeout=100) == 130, shown
    assert_all_is_saved(tmp_path / "run")
