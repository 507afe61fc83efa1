"""Commands, small enough to be stopped at any moment, and what is seen when they are."""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRAINING = {
    "algorithm": "ppo",
    "total_steps": 32,
    "student.observation": "state",
    "env.image_size": 16,
    "env.mesh_detail": 0.07,
    "env.num_envs": 2,
    "env.workers": 1,
    "ppo.rollout_steps": 8,
    "ppo.num_minibatches": 2,
    "ppo.update_epochs": 1,
    "eval.final_episodes": 2,
    "eval.video_episodes": 0,
}
FINE_TUNING = {"steps": 10_000, "batch_size": 4, "held_out": 0.4, "optimizer.warmup_steps": 1, "save_every": 5}


def train(workdir, **changes):
    """The command of a small run."""
    return _with(["train.py", "--config=configs/push_cube_sparse.py", f"--workdir={workdir}"], TRAINING | changes)


def finetune(workdir, demos, **changes):
    """The command of a fine-tuning."""
    command = ["finetune_octo.py", "--config=configs/finetune_octo.py", f"--workdir={workdir}"]
    return _with(command, FINE_TUNING | {"demos": demos, "cache": f"{workdir}-cache"} | changes)


def _with(command, settings):
    return [sys.executable, *command, *(f"--config.{name}={value}" for name, value in settings.items())]


@dataclasses.dataclass
class Outcome:
    """How a command ended after a signal: its status, the seconds it took, and what it printed."""

    status: int
    seconds: float
    output: str

    @property
    def is_clean(self) -> bool:
        """True if it was stopped, or had been done already, and printed no trace."""
        traces = ("Traceback", "Exception ignored", "KeyboardInterrupt", "Fatal Python error")
        return self.status in (0, 130) and not any(trace in self.output for trace in traces)


def stop_after(command, seconds, number, limit=60.0) -> Outcome:
    """Starts a command and sends it a signal so many seconds after it began to listen for signals."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    while process.poll() is None and not _catches(process.pid, signal.SIGTERM):
        time.sleep(0.005)
    time.sleep(seconds)
    start = time.monotonic()
    process.send_signal(number)
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        return Outcome(-9, limit, output + "\nit went on")
    return Outcome(process.returncode, time.monotonic() - start, output)


def _catches(pid, number):
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(mask, 16) >> (number - 1) & 1)
