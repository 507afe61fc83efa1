"""The CPU backend: worker processes with several environments each, frames in shared memory."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import tempfile
import time
from multiprocessing.connection import Connection, wait

import numpy as np

from rpd_jax.cores import usable_cores
from rpd_jax.envs.vector_env import EpisodeMetrics, Step, episode_seed
from rpd_jax.envs.worker_start import start_worker
from rpd_jax.errors import UserError
from rpd_jax.workers.memory import SharedArrays, create_memory
from rpd_jax.workers.process import describe_end

# How long a worker that does not answer may take to tell where it hangs.
_TRACEBACK_SECONDS = 2.0
# Lines of a worker's traceback or output that are told.
_TRACEBACK_LINES = 12
# What helps against a worker that has not answered, at the start and later.
_START_AGAIN, _WAIT_LONGER = "start again", "raise env.step_timeout"


_log = logging.getLogger(__name__)


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
        restart_workers: replace a worker that fails in `reset`, `step` or `set_drawing`. What was wrong is logged as
            a warning, its environments begin their episodes again, and `Step.valid` is False for them; after
            `set_drawing` in the next step, with which they begin once more. One that fails again before it has done a
            single step is not replaced.

    Raises:
        WorkerError: in the constructor, `reset`, `step` or `set_drawing`; the object is closed then.
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
        restart_workers: bool = False,
    ):
        self.num_envs = num_envs
        self.image_size = task_args["image_size"]
        self.max_episode_steps = max_episode_steps
        self.step_timeout = step_timeout
        self.start_timeout = start_timeout
        self.restart_workers = restart_workers
        self._task_args = task_args
        self._ignore_terminations = ignore_terminations
        self._seeds: list[int] = []
        self._episodes = np.zeros(num_envs, int)  # ended since the last reset
        self._valid = np.ones(num_envs, bool)
        self._begun_anew: set[int] = set()  # numbers of workers that were replaced between two steps
        self.drawing = True
        self._memory = create_memory()
        self._workers: list[_WorkerProcess] = []
        self._closed = False
        count = max(1, min(workers or usable_cores(), num_envs))
        try:
            for rows in np.array_split(np.arange(num_envs), count):
                self._workers.append(_WorkerProcess(len(self._workers), rows.tolist(), self._memory))
            self.state_dim = self._make(self._workers)
            self._arrays = SharedArrays(self._memory, num_envs, self.image_size, self.state_dim)
            self._attach(self._workers)
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

    def set_drawing(self, on: bool) -> np.ndarray | None:
        """Draws frames from now on, or none; returns those of this moment, uint8 [N, H, W, 3], or None."""
        if on != self.drawing:
            self.drawing = on
            self._send(self._workers, "set_drawing", on=on)
            replaced = self._replace(self._gather(self._workers, self.step_timeout, _WAIT_LONGER)[1])
            if self._seeds:  # before the first reset there are no episodes
                self._begin_episodes(replaced)
            self._begun_anew.update(worker.number for worker in replaced)
        return self._frames(self._arrays.rgb)

    def reset(self, seed: int) -> np.ndarray | None:
        """Starts an episode everywhere; returns frames uint8 [N, H, W, 3], or None where none are drawn."""
        self._seeds = [episode_seed(seed, index) for index in range(self.num_envs)]
        self._episodes[:] = 0
        self._begun_anew.clear()
        self._begin_episodes(self._workers)
        return self._frames(self._arrays.rgb)

    def step(self, actions) -> Step:
        """Applies actions, float32 [N, 7] (numpy or JAX), for one control step."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions) -> None:
        """Starts a step and returns at once; `step_wait` must follow."""
        self._arrays.action[:] = actions
        self._send(self._workers, "step")

    def step_wait(self) -> Step:
        """Waits for the step that `step_async` started."""
        self.wait_for_workers()
        return self.collect()

    def wait_for_workers(self) -> None:
        """Waits until the workers have done what they were told; the first half of `step_wait`."""
        self._valid[:] = True
        answers, failures = self._gather(self._workers, self.step_timeout, _WAIT_LONGER)
        for worker in answers:
            worker.steps += 1
        # What they were told to do was meant for the observations before they were replaced.
        begun_anew = [worker for worker in answers if worker.number in self._begun_anew]
        self._begun_anew.clear()
        lost = [*self._replace(failures), *begun_anew]
        if not lost:
            return
        self._begin_episodes(lost)
        arrays = self._arrays
        for worker in lost:
            self._valid[worker.rows] = False
            for array in (arrays.reward, arrays.terminated, arrays.truncated):
                array[worker.rows] = 0

    def collect(self) -> Step:
        """Copies the latest step out of shared memory; the second half of `step_wait`."""
        arrays = self._arrays
        rgb, state = self._frames(arrays.rgb), arrays.state.copy()
        done = arrays.terminated | arrays.truncated
        self._episodes += done
        ended = bool(done.any())
        return Step(
            rgb=rgb,
            reward=arrays.reward.copy(),
            terminated=arrays.terminated.copy(),
            truncated=arrays.truncated.copy(),
            final_rgb=self._frames(arrays.final_rgb) if ended else rgb,
            state=state,
            final_state=arrays.final_state.copy() if ended else state,
            episode=EpisodeMetrics(
                success=arrays.success.copy(),
                success_at_end=arrays.success_at_end.copy(),
                episode_return=arrays.episode_return.copy(),
                length=arrays.length.copy(),
            ),
            valid=self._valid.copy(),
        )

    def close(self) -> None:
        """Ends the worker processes; may be called again."""
        if self._closed:
            return
        self._closed = True
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.end()
        os.close(self._memory)

    def __enter__(self) -> CpuVectorEnv:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __del__(self):
        if not getattr(self, "_closed", True):
            self.close()

    def _make(self, workers: list[_WorkerProcess]) -> int:
        """Builds the environments of new workers; returns D."""
        arguments = {"task": self._task_args, "ignore_terminations": self._ignore_terminations}
        for worker in workers:
            self._send([worker], "make", indices=worker.rows, **arguments)
        return self._answers(workers, self.start_timeout, _START_AGAIN)[0]["state_dim"]

    def _attach(self, workers: list[_WorkerProcess]) -> None:
        """Lets new workers write into the shared arrays."""
        shape = {"num_envs": self.num_envs, "image_size": self.image_size, "state_dim": self.state_dim}
        self._send(workers, "attach", **shape)
        self._answers(workers, self.start_timeout, _START_AGAIN)

    def _begin_episodes(self, workers: list[_WorkerProcess]) -> None:
        """Starts the episode that each environment of `workers` should be in; replaces workers that fail at it."""
        while workers:
            self._send(workers, "reset", seeds=self._seeds, episodes=self._episodes.tolist())
            # A worker that takes the place of another goes through its earlier episodes' first frames.
            timeout = self.step_timeout * (1 + int(self._episodes.max()))
            workers = self._replace(self._gather(workers, timeout, _WAIT_LONGER)[1])

    def _replace(self, failures: dict[_WorkerProcess, UserError]) -> list[_WorkerProcess]:
        """Returns new workers, their environments made, in place of failed ones; raises if that is not to be done."""
        replacements = []
        for worker, failure in failures.items():
            if not self.restart_workers or (worker.is_replacement and not worker.steps):
                self._fail(failure)
            worker.end()
            replacements.append(_WorkerProcess(worker.number, worker.rows, self._memory, is_replacement=True))
            self._workers[worker.number] = replacements[-1]
            _log.warning("%s\nIt is replaced; its environments begin their episodes again.", failure)
        if replacements:
            self._make(replacements)
            self._attach(replacements)
            if not self.drawing:
                self._send(replacements, "set_drawing", on=False)
                self._answers(replacements, self.step_timeout, _WAIT_LONGER)
        return replacements

    def _frames(self, shared: np.ndarray) -> np.ndarray | None:
        return shared.copy() if self.drawing else None

    def _send(self, workers: list[_WorkerProcess], action: str, **arguments) -> None:
        if self._closed:
            raise UserError("The environments are closed: make new ones.")
        for worker in workers:
            # If it is dead, waiting for its answer tells how it died.
            with contextlib.suppress(OSError):
                worker.send(action, **arguments)

    def _answers(self, workers: list[_WorkerProcess], timeout: float, mend: str) -> list:
        """Returns the answers of `workers` in order; raises what is wrong with the first that fails."""
        answers, failures = self._gather(workers, timeout, mend)
        if failures:
            self._fail(next(iter(failures.values())))
        return [answers[worker] for worker in workers]

    def _gather(
        self, workers: list[_WorkerProcess], timeout: float, mend: str
    ) -> tuple[dict[_WorkerProcess, object], dict[_WorkerProcess, UserError]]:
        """Waits for one answer of each worker; returns the answers, and what is wrong with those that failed.

        Where failed workers are not replaced, the first failure ends the wait. `mend` is what helps where that takes
        longer than `timeout`, in seconds.
        """
        deadline = time.monotonic() + timeout
        pending = {worker.connection: worker for worker in workers}
        answers, failures = {}, {}
        while pending and (self.restart_workers or not failures):
            ready = wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                failures |= {worker: WorkerError(worker.describe_silence(timeout, mend)) for worker in pending.values()}
                break
            for connection in ready:
                worker = pending.pop(connection)
                try:
                    answer = json.loads(connection.recv_bytes())
                except (EOFError, OSError):
                    failures[worker] = WorkerError(worker.describe_death())
                    continue
                if "error" in answer:
                    failures[worker] = worker.told_failure(answer)
                else:
                    answers[worker] = answer["ok"]
        return answers, failures

    def _fail(self, failure: UserError) -> None:
        self.close()
        raise failure


class _WorkerProcess:
    """The parent's end of one worker."""

    def __init__(self, number: int, rows: list[int], memory: int, is_replacement: bool = False):
        self.number = number
        self.rows = rows
        self.is_replacement = is_replacement
        self.steps = 0
        span = f"environment {rows[0]}" if len(rows) == 1 else f"environments {rows[0]}-{rows[-1]}"
        self.name = f"Environment worker {number} ({span})"
        ours, theirs = socket.socketpair()
        # The worker's read of the lifeline ends when this process is gone, however it went.
        read_end, self._lifeline = os.pipe()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        inherited = (theirs.fileno(), read_end, memory)
        self.process = start_worker(inherited, self._output.fileno())
        theirs.close()
        os.close(read_end)
        self.connection = Connection(ours.detach())
        self._stopped = False

    def send(self, action: str, **arguments) -> None:
        self.connection.send_bytes(json.dumps({"do": action, **arguments}).encode())

    def told_failure(self, answer: dict) -> UserError:
        """What the worker itself reports."""
        if answer["kind"] == "UserError":
            return UserError(answer["message"])
        return WorkerError(
            f"{self.name} raised {answer['kind']} in environment {answer['env']}: {answer['message']}"
            f"\n{_tail(answer['error'])}"
        )

    def describe_death(self) -> str:
        cause = describe_end(self.process, "lower env.num_envs or env.workers")
        output = self._last_output()
        return f"{self.name} {cause}." + (f" Its last output:\n{output}" if output else "")

    def describe_silence(self, timeout: float, mend: str) -> str:
        message = (
            f"{self.name} did not answer within {timeout:g} s: the machine is overloaded or the simulator hangs; {mend}"
            " or lower env.num_envs."
        )
        written = os.fstat(self._output.fileno()).st_size
        self.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + _TRACEBACK_SECONDS
        while time.monotonic() < deadline and os.fstat(self._output.fileno()).st_size == written:
            time.sleep(0.05)
        self._output.seek(written)
        # The innermost call comes first.
        trace = self._output.read().decode(errors="replace").splitlines()[:_TRACEBACK_LINES]
        return "\n".join([message + (" It was here:" if trace else ""), *trace])

    def stop(self) -> None:
        """Tells the process to end, and does not wait for it."""
        if not self._stopped:
            self._stopped = True
            # The end of the lifeline ends even a worker that hangs in a step.
            os.close(self._lifeline)
            self.connection.close()

    def end(self) -> None:
        """Returns when the process is gone."""
        self.stop()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._output.close()

    def _last_output(self) -> str:
        self._output.seek(0)
        return _tail(self._output.read().decode(errors="replace"))


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_TRACEBACK_LINES:])
