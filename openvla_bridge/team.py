"""Workers with the same model, one for each device: a batch is split among them and put together again."""

import contextlib
import dataclasses
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait

import numpy as np

from openvla_bridge.errors import BridgeError
from openvla_bridge.replicas import Speed, split_by_speed, split_evenly
from openvla_bridge.request import Known, Model, Request
from openvla_bridge.ring import RingLayout
from openvla_bridge.worker_process import SLOTS, WorkerProcess
from rpd_jax.action_convention import GRIPPERS, check_action_dim, choose_gripper
from rpd_jax.errors import UserError
from rpd_jax.teachers import print_to_stderr


class WorkerTeam:
    """Starts one worker for each device, and splits batches among them in proportion to their speed.

    Attributes:
        known: what the checkpoint says of itself.
        horizon: actions of a chunk.
        worthwhile_batch: what keeps all workers busy with batches of `batch_size`.
        speeds: of the workers.

    Args:
        model: that each of them loads.
        devices: one worker for each, as torch names them; "auto" is the GPU where there is one, else the CPU.
        python: the interpreter of the workers' environment; this one if empty.
        gripper: what the gripper's number means, see `action_convention.choose_gripper`.
        batch_size: frames that go through the model at a time.
        start_timeout: seconds without news from a starting worker until it is given up.
        request_timeout: seconds until a request of `batch_size` frames is given up.
        check: is told what the checkpoint says before weights are read, and may raise a UserError.
        say: is told the workers' progress.

    Raises:
        UserError: anything that keeps the workers from starting.
    """

    def __init__(
        self,
        model: Model,
        *,
        devices: Sequence[str],
        python: str,
        gripper: str,
        batch_size: int,
        start_timeout: float,
        request_timeout: float,
        check: Callable[[Known], None] = lambda known: None,
        say: Callable[[str], None] = print_to_stderr,
    ):
        if not devices or isinstance(devices, str):
            raise UserError(f"teacher.devices={devices!r} must name one device or more, such as ('cuda:0', 'cuda:1').")
        if batch_size < 1:
            raise UserError(f"teacher.batch_size={batch_size} must be at least 1.")
        self._batch_size = batch_size
        self._workers: list[WorkerProcess] = []
        self.speeds = [Speed() for _ in devices]
        self.worthwhile_batch = batch_size * len(devices)
        self._layout: RingLayout | None = None
        # Of each worker: parts (batch, begin, end) that it has not got yet, and those that it has not answered.
        self._waiting: list[deque[tuple[_Batch, int, int]]] = [deque() for _ in devices]
        self._sent: list[deque[tuple[_Batch, int, int]]] = [deque() for _ in devices]
        on_cpu = sum(device == "cpu" for device in devices)
        threads = max(1, len(os.sched_getaffinity(0)) // on_cpu) if on_cpu > 1 else None
        with self._none_is_left():
            for number, device in enumerate(devices):
                self._workers.append(
                    WorkerProcess(
                        f"{model.name} worker {number} ({device})",
                        python=python,
                        start_timeout=start_timeout,
                        request_timeout=request_timeout,
                        say=say,
                    )
                )
            for worker, device in zip(self._workers, devices, strict=True):
                worker.greet()
                worker.request_load(model, device, batch_size, threads)
            for worker in self._workers:
                self.known = worker.wait_until_known()
            check_action_dim(self.known.action_dim, model.checkpoint)
            check(self.known)
            convention, note = choose_gripper(
                gripper, {name: [value] for name, value in self.known.gripper.items()}, "its action statistics"
            )
            self._gripper = GRIPPERS[convention]
            say(f"{model.name}: {note}.")
            self.horizon = min(worker.wait_until_loaded() for worker in self._workers)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers, in order of their devices."""
        return [worker.process.pid for worker in self._workers]

    def begin(
        self, request: Request, take: Callable[[int, int], None] = lambda other, frames: None
    ) -> Callable[[], np.ndarray]:
        """Hands out the frames of a request; those that there is no room for yet are sent when another one is begun or
        waited for.

        Args:
            request: of any number of frames; its gripper is overwritten.
            take: is told of each answer how many predicted tokens are no action tokens, and of how many frames.

        Returns:
            A function that waits for the actions, float32 [S, B, K, A].

        Raises:
            UserError: a worker failed; all of them were ended then.
        """
        if not self._workers:
            raise UserError("This teacher was closed: load it again.")
        request = dataclasses.replace(request, gripper=self._gripper)
        batch = _Batch(request, self.known.action_dim, take)
        with self._all_or_none():
            self._attach(_layout(request, self._batch_size, self.known))
            self._queue(batch)
            self._exchange(wait_for_news=False)

        def finish() -> np.ndarray:
            while batch.unlabelled:
                with self._all_or_none():
                    self._exchange(wait_for_news=True)
            return batch.actions

        return finish

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            worker.close()
        self._workers = []

    @contextlib.contextmanager
    def _none_is_left(self) -> Iterator[None]:
        """Ends the workers when one of them fails or the wait is cut short, as nobody would expect their answers."""
        try:
            yield
        except BridgeError as error:
            self.close()
            raise UserError(str(error)) from None
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def _all_or_none(self) -> Iterator[None]:
        if not self._workers:
            raise UserError("This teacher was closed: load it again.")
        with self._none_is_left():
            yield

    def _attach(self, layout: RingLayout) -> None:
        """Gives the rings a layout; if it is another one, what is in flight is finished first."""
        if layout != self._layout:
            while any(self._waiting) or any(self._sent):
                self._exchange(wait_for_news=True)
            for worker in self._workers:
                worker.attach(layout)
            self._layout = layout

    def _queue(self, batch: "_Batch") -> None:
        """Splits a batch among the workers."""
        begin = 0
        shares = split_by_speed(batch.unlabelled, [speed.frames_per_second for speed in self.speeds])
        for queue, share in zip(self._waiting, shares, strict=True):
            for size in split_evenly(share, self._batch_size) if share else []:
                queue.append((batch, begin, begin + size))
                begin += size

    def _exchange(self, wait_for_news: bool) -> None:
        """Sends what there is room for and takes the answers that are there, or waits for the next ones."""
        for worker, queue, sent in zip(self._workers, self._waiting, self._sent, strict=True):
            while queue and worker.has_room:
                batch, begin, end = part = queue.popleft()
                worker.submit(batch.part(begin, end))
                sent.append(part)
        busy = {worker.connection: i for i, worker in enumerate(self._workers) if worker.is_busy}
        deadline = min((self._workers[i].deadline for i in busy.values()), default=0.0)
        ready = wait(list(busy), timeout=max(0.0, deadline - time.monotonic()) if wait_for_news else 0.0)
        # If none is ready in time, the one that is late says so.
        late = [i for i in busy.values() if self._workers[i].deadline == deadline] if wait_for_news else []
        for i in [busy[connection] for connection in ready] or late:
            answer = self._workers[i].collect()
            if answer is not None:
                actions, seconds, other = answer
                batch, begin, end = self._sent[i].popleft()
                batch.actions[:, begin:end] = actions[: batch.request.samples]
                batch.unlabelled -= end - begin
                self.speeds[i].measured(end - begin, seconds)
                batch.take(other, end - begin)


class _Batch:
    """Frames that were given together; `actions` are complete when `unlabelled`, the frames without, is 0."""

    def __init__(self, request: Request, action_dim: int, take: Callable[[int, int], None]):
        self.request, self.take = request, take
        self.unlabelled = len(request.frames)
        self.actions = np.empty((request.samples, self.unlabelled, request.steps, action_dim), np.float32)

    def part(self, begin: int, end: int) -> Request:
        whole = self.request
        uniforms = None if whole.uniforms is None else whole.uniforms[:, begin:end]
        return dataclasses.replace(
            whole, frames=whole.frames[begin:end], state=whole.state[begin:end], uniforms=uniforms
        )


def _layout(request: Request, batch_size: int, known: Known) -> RingLayout:
    return RingLayout(
        SLOTS,
        batch_size,
        *request.frames.shape[1:3],
        request.samples,
        known.action_dim,
        request.steps,
        request.state.shape[1],
    )
