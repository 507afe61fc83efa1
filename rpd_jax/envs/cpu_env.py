"""The CPU backend: worker processes with several environments each, frames in shared memory."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np

from rpd_jax.envs.shared_arrays import SharedArrays, create_memory
from rpd_jax.envs.vector_env import EpisodeMetrics, Step, episode_seed
from rpd_jax.errors import UserError

_PROJECT = Path(__file__).resolve().parents[2]


class WorkerError(UserError):
    """A worker process died, raised or did not answer in time; all its fellows are stopped."""


class CpuVectorEnv:
    """N environments on CPU cores; implements VectorEnv with numpy arrays, fresh ones at each call.

    The same seed and actions give the same frames, rewards and episodes whatever `workers` is.

    Args:
        task_args: arguments of `make_task_env` for one environment; `camera` as a dict of CameraChange's fields.
        num_envs: N.
        workers: processes; None is one per available core, at most N.
        ignore_terminations: let episodes run to their limit even when the task succeeded (for evaluation).
        step_timeout: seconds after which a worker that has not answered is given up.
        start_timeout: the same for building the environments.

    Raises:
        WorkerError: in the constructor, `reset` or `step`; the object is closed then.
    """

    action_dim = 7

    def __init__(
        self,
        task_args: dict,
        num_envs: int,
        *,
        max_episode_steps: int,
        workers: int | None = None,
        ignore_terminations: bool = False,
        step_timeout: float = 120.0,
        start_timeout: float = 600.0,
    ):
        self.num_envs = num_envs
        self.image_size = task_args["image_size"]
        self.max_episode_steps = max_episode_steps
        self.step_timeout = step_timeout
        self._memory = create_memory()
        self._workers: list[_WorkerProcess] = []
        self._closed = False
        count = max(1, min(workers or _available_cores(), num_envs))
        try:
            for rows in np.array_split(np.arange(num_envs), count):
                self._workers.append(_WorkerProcess(len(self._workers), rows.tolist(), self._memory))
            for worker in self._workers:
                worker.send("make", indices=worker.rows, task=task_args, ignore_terminations=ignore_terminations)
            made = self._gather(start_timeout)
            self.state_dim = made[0]["state_dim"]
            self._arrays = SharedArrays(self._memory, num_envs, self.image_size, self.state_dim)
            self._tell("attach", step_timeout, num_envs=num_envs, image_size=self.image_size, state_dim=self.state_dim)
        except BaseException:
            self.close()
            raise

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers, in order of their environments."""
        return [worker.process.pid for worker in self._workers]

    @property
    def state(self) -> np.ndarray:
        """float32 [N, D] privileged state that belongs to the latest frames."""
        return self._arrays.state.copy()

    def reset(self, seed: int) -> np.ndarray:
        """Starts an episode everywhere; returns frames uint8 [N, H, W, 3]."""
        seeds = [episode_seed(seed, index) for index in range(self.num_envs)]
        self._tell("reset", self.step_timeout, seeds=seeds)
        return self._arrays.rgb.copy()

    def step(self, actions) -> Step:
        """Applies actions, float32 [N, 7] (numpy or JAX), for one control step."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions) -> None:
        """Starts a step and returns at once; `step_wait` must follow."""
        self._arrays.action[:] = actions
        for worker in self._workers:
            self._send(worker, "step")

    def step_wait(self) -> Step:
        """Waits for the step that `step_async` started."""
        self.wait_for_workers()
        return self.collect()

    def wait_for_workers(self) -> None:
        """Waits until the workers have done what they were told; the first half of `step_wait`."""
        self._gather(self.step_timeout)

    def collect(self) -> Step:
        """Copies the latest step out of shared memory; the second half of `step_wait`."""
        arrays = self._arrays
        rgb, state = arrays.rgb.copy(), arrays.state.copy()
        ended = bool(np.any(arrays.terminated | arrays.truncated))
        return Step(
            rgb=rgb,
            reward=arrays.reward.copy(),
            terminated=arrays.terminated.copy(),
            truncated=arrays.truncated.copy(),
            final_rgb=arrays.final_rgb.copy() if ended else rgb,
            state=state,
            final_state=arrays.final_state.copy() if ended else state,
            episode=EpisodeMetrics(
                success=arrays.success.copy(),
                success_at_end=arrays.success_at_end.copy(),
                episode_return=arrays.episode_return.copy(),
                length=arrays.length.copy(),
            ),
        )

    def close(self) -> None:
        """Ends the worker processes; may be called again."""
        if self._closed:
            return
        self._closed = True
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.join()
        os.close(self._memory)

    def __enter__(self) -> CpuVectorEnv:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __del__(self):
        if not getattr(self, "_closed", True):
            self.close()

    def _send(self, worker: _WorkerProcess, action: str, **arguments) -> None:
        if self._closed:
            raise UserError("The environments are closed: make new ones.")
        try:
            worker.send(action, **arguments)
        except OSError:
            self._fail(worker.obituary())

    def _tell(self, action: str, timeout: float, **arguments) -> None:
        for worker in self._workers:
            self._send(worker, action, **arguments)
        self._gather(timeout)

    def _gather(self, timeout: float) -> list:
        """Returns all workers' answers in order."""
        deadline = time.monotonic() + timeout
        pending = {worker.connection: worker for worker in self._workers}
        answers = {}
        while pending:
            ready = wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                late = next(iter(pending.values()))
                self._fail(
                    f"{late.name} did not answer within {timeout:g} s: the machine is overloaded or the simulator"
                    " hangs; raise env.step_timeout or lower env.num_envs."
                )
            for connection in ready:
                worker = pending.pop(connection)
                try:
                    answer = json.loads(connection.recv_bytes())
                except (EOFError, OSError):
                    self._fail(worker.obituary())
                if "error" in answer:
                    self._fail_with(worker, answer)
                answers[worker] = answer["ok"]
        return [answers[worker] for worker in self._workers]

    def _fail_with(self, worker: _WorkerProcess, answer: dict) -> None:
        if answer["kind"] == "UserError":
            self.close()
            raise UserError(answer["message"])
        self._fail(
            f"{worker.name} raised {answer['kind']} in environment {answer['env']}: {answer['message']}"
            f"\n{_tail(answer['error'])}"
        )

    def _fail(self, message: str) -> None:
        self.close()
        raise WorkerError(message)


class _WorkerProcess:
    """The parent's end of one worker."""

    def __init__(self, number: int, rows: list[int], memory: int):
        self.rows = rows
        span = f"environment {rows[0]}" if len(rows) == 1 else f"environments {rows[0]}-{rows[-1]}"
        self.name = f"Environment worker {number} ({span})"
        ours, theirs = socket.socketpair()
        # The worker's read of the lifeline ends when this process is gone, however it went.
        read_end, self._lifeline = os.pipe()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        inherited = (theirs.fileno(), read_end, memory)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rpd_jax.envs.cpu_worker", *map(str, inherited)],
            pass_fds=inherited,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env=_worker_environment(),
        )
        theirs.close()
        os.close(read_end)
        self.connection = Connection(ours.detach())

    def send(self, action: str, **arguments) -> None:
        self.connection.send_bytes(json.dumps({"do": action, **arguments}).encode())

    def obituary(self) -> str:
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = None
        if code is None:
            cause = "closed its connection"
        elif code < 0:
            cause = f"was killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                cause += " (if memory ran out, lower env.num_envs or env.workers)"
        else:
            cause = f"exited with status {code}"
        self._output.seek(0)
        output = _tail(self._output.read().decode(errors="replace"))
        return f"{self.name} {cause}." + (f" Its last output:\n{output}" if output else "")

    def stop(self) -> None:
        # EOF on the lifeline ends even a worker that hangs in a step.
        os.close(self._lifeline)
        self.connection.close()

    def join(self) -> None:
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._output.close()


def _worker_environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(_PROJECT), os.environ.get("PYTHONPATH")]))
    # A frame is drawn by one thread; more would only be in the other workers' way.
    return {"LP_NUM_THREADS": "0", **os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tail(text: str, lines: int = 12) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])
