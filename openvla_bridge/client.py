"""OpenVLA as a teacher: implements `rpd_jax.teachers.Teacher` on workers in processes of their own."""

import contextlib
import dataclasses
import functools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from openvla_bridge.errors import BridgeError
from openvla_bridge.replicas import Speed, split_by_speed, split_evenly
from openvla_bridge.ring import RingLayout
from openvla_bridge.worker_process import SLOTS, WorkerProcess
from rpd_jax.action_convention import GRIPPERS, check_action_dim, choose_gripper
from rpd_jax.errors import UserError
from rpd_jax.teachers import check_frames


def _print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class OpenVLATeacher:
    """Labels frames with the actions of an OpenVLA checkpoint, on one worker per device.

    Actions are un-normalised with the checkpoint's statistics, the gripper is turned into the environment's (+1 = open)
    and all is clipped to [-1, 1]. The actions of frame i depend on that frame, `instruction`, `key` and i only, up to
    the rounding of differently sized batches.

    Attributes:
        worthwhile_batch: what keeps all workers busy with batches of `batch_size`.

    Args:
        checkpoint: a folder in OpenVLA's published layout, or hf://owner/name.
        devices: one worker for each, as torch names them; "auto" is the GPU where there is one, else the CPU.
        python: the interpreter of the workers' environment; this one if empty.
        precision: "float32" or "bfloat16".
        dataset: whose statistics un-normalise (`unnorm_key`); may be empty if the checkpoint has those of one.
        gripper: what the gripper's number means, see `action_convention.choose_gripper`.
        temperature: of sampled tokens; 0 takes the most likely ones.
        batch_size: frames that go through the model at a time.
        start_timeout: seconds without news from a starting worker until it is given up.
        request_timeout: seconds until a request of `batch_size` frames is given up.
        say: is told the workers' progress.

    Raises:
        UserError: anything that keeps the workers from starting.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        devices: Sequence[str] = ("auto",),
        python: str = "",
        precision: str = "float32",
        dataset: str = "",
        gripper: str = "auto",
        temperature: float = 0.0,
        batch_size: int = 32,
        start_timeout: float = 1800.0,
        request_timeout: float = 600.0,
        say: Callable[[str], None] = _print_to_stderr,
    ):
        if not devices or isinstance(devices, str):
            raise UserError(f"teacher.devices={devices!r} must name one device or more, such as ('cuda:0', 'cuda:1').")
        if not temperature >= 0.0:
            raise UserError(f"teacher.temperature={temperature} must not be negative; 0 takes the most likely action.")
        if batch_size < 1:
            raise UserError(f"teacher.batch_size={batch_size} must be at least 1.")
        self._temperature, self._batch_size, self._say = temperature, batch_size, say
        self._told_of_other_tokens = False
        self._workers: list[WorkerProcess] = []
        self._speeds = [Speed() for _ in devices]
        self.worthwhile_batch = batch_size * len(devices)
        self._layout: RingLayout | None = None
        # Of each worker: parts (batch, begin, end) that it has not got yet, and those that it has not answered.
        self._waiting: list[deque[tuple[_Batch, int, int]]] = [deque() for _ in devices]
        self._sent: list[deque[tuple[_Batch, int, int]]] = [deque() for _ in devices]
        on_cpu = sum(device == "cpu" for device in devices)
        threads = max(1, len(os.sched_getaffinity(0)) // on_cpu) if on_cpu > 1 else None
        try:
            for number, device in enumerate(devices):
                self._workers.append(
                    WorkerProcess(
                        f"OpenVLA worker {number} ({device})",
                        python=python,
                        start_timeout=start_timeout,
                        request_timeout=request_timeout,
                        say=say,
                    )
                )
            for worker, device in zip(self._workers, devices, strict=True):
                worker.greet()
                worker.request_load(checkpoint, device, precision, dataset or None, batch_size, threads)
            for worker in self._workers:
                self.action_dim, known = worker.wait_until_known()
                check_action_dim(self.action_dim, checkpoint)
                convention, note = choose_gripper(
                    gripper, {name: [value] for name, value in known.items()}, "its action statistics"
                )
                worker.gripper = GRIPPERS[convention]
            say(f"OpenVLA: {note}.")
            for worker in self._workers:
                worker.wait_until_loaded()
        except BridgeError as error:
            self.close()
            raise UserError(str(error)) from None
        except BaseException:
            self.close()
            raise

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers, in order of their devices."""
        return [worker.process.pid for worker in self._workers]

    def act(
        self, rgb: jax.Array, instruction: str, key: jax.Array, num_samples: int = 1, first_frame: int = 0
    ) -> jax.Array:
        """Returns actions for frames; see `rpd_jax.teachers.Teacher`.

        Args:
            rgb: uint8 [B, H, W, 3].
            instruction: the sentence that all frames share.
            key: random key of the samples.
            num_samples: S; they differ only if the temperature is above 0.
            first_frame: number of the first frame.

        Returns:
            float32 [S, B, action_dim] in [-1, 1].

        Raises:
            UserError: a worker failed; all of them were ended then.
        """
        return self.begin(rgb, instruction, key, num_samples, first_frame)()

    def begin(
        self, rgb: jax.Array, instruction: str, key: jax.Array, num_samples: int = 1, first_frame: int = 0
    ) -> Callable[[], jax.Array]:
        """Like `act`, but returns once the workers have what they can take; see `rpd_jax.teachers.Teacher`.

        What they cannot take yet is sent when another batch is begun or waited for.
        """
        check_frames(rgb)
        if not self._workers:
            raise UserError("This teacher was closed: load it again.")
        samples = num_samples if self._temperature else 1
        uniforms = None
        if self._temperature:
            uniforms = np.asarray(_uniforms(key, first_frame, len(rgb), num_samples, self.action_dim))
        frames = np.asarray(rgb)
        batch = _Batch(
            frames, instruction, samples, uniforms, np.empty((samples, len(frames), self.action_dim), np.float32)
        )
        with self._all_or_none():
            self._attach(RingLayout(SLOTS, self._batch_size, *frames.shape[1:3], samples, self.action_dim))
            self._queue(batch)
            self._exchange(wait_for_news=False)

        def finish() -> jax.Array:
            while batch.unlabelled:
                with self._all_or_none():
                    self._exchange(wait_for_news=True)
            return jnp.broadcast_to(jnp.asarray(batch.actions), (num_samples, *batch.actions.shape[1:]))

        return finish

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            worker.close()
        self._workers = []

    @contextlib.contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """Ends the workers when one of them fails or the wait is cut short, as nobody would expect their answers."""
        if not self._workers:
            raise UserError("This teacher was closed: load it again.")
        try:
            yield
        except BridgeError as error:
            self.close()
            raise UserError(str(error)) from None
        except BaseException:
            self.close()
            raise

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
        shares = split_by_speed(batch.unlabelled, [speed.frames_per_second for speed in self._speeds])
        for queue, share in zip(self._waiting, shares, strict=True):
            for size in split_evenly(share, self._batch_size) if share else []:
                queue.append((batch, begin, begin + size))
                begin += size

    def _exchange(self, wait_for_news: bool) -> None:
        """Sends what there is room for and takes the answers that are there, or waits for the next ones."""
        for worker, queue, sent in zip(self._workers, self._waiting, self._sent, strict=True):
            while queue and worker.has_room:
                batch, begin, end = part = queue.popleft()
                uniforms = None if batch.uniforms is None else batch.uniforms[:, begin:end]
                worker.submit(batch.frames[begin:end], batch.instruction, batch.samples, self._temperature, uniforms)
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
                batch.actions[:, begin:end] = actions[: batch.samples]
                batch.unlabelled -= end - begin
                self._speeds[i].measured(end - begin, seconds)
                self._warn(other, batch.samples * (end - begin) * self.action_dim)

    def _warn(self, other: int, tokens: int) -> None:
        if other and not self._told_of_other_tokens:
            self._told_of_other_tokens = True
            self._say(
                f"OpenVLA: {other} of {tokens} predicted tokens are no action tokens; they count as the nearest bin. "
                "The checkpoint may not be trained for this instruction or these images."
            )


@dataclasses.dataclass
class _Batch:
    """Frames that were given together; `actions` are complete when `unlabelled`, the frames without, is 0."""

    frames: np.ndarray
    instruction: str
    samples: int
    uniforms: np.ndarray | None
    actions: np.ndarray

    def __post_init__(self):
        self.unlabelled = len(self.frames)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _uniforms(key: jax.Array, first: int, frames: int, samples: int, action_dim: int) -> jax.Array:
    """float32 [S, B, A] in [0, 1): frame i's numbers depend on `key` and `first` + i only."""

    def draw(frame: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, frame), (samples, action_dim))

    return jax.vmap(draw, out_axes=1)(first + jnp.arange(frames))


def load(config: ConfigDict) -> OpenVLATeacher:
    """The teacher `openvla` of `rpd_jax.teachers`: reads `config.teacher`."""
    settings = config.teacher
    return OpenVLATeacher(
        settings.checkpoint,
        devices=tuple(settings.devices),
        python=settings.python,
        precision=settings.precision,
        dataset=settings.dataset,
        gripper=settings.get("gripper") or "auto",
        temperature=settings.temperature,
        batch_size=settings.batch_size,
        start_timeout=settings.start_timeout,
        request_timeout=settings.request_timeout,
    )
