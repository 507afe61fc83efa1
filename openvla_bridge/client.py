"""OpenVLA as a teacher: implements `rpd_jax.teachers.Teacher` on workers in processes of their own."""

import functools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait

import jax
import jax.numpy as jnp
import numpy as np

from openvla_bridge.errors import BridgeError
from openvla_bridge.replicas import Speed, split_by_speed, split_evenly
from openvla_bridge.ring import RingLayout
from openvla_bridge.worker_process import SLOTS, WorkerProcess
from rpd_jax.errors import UserError


def _print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class OpenVLATeacher:
    """Labels frames with the actions of an OpenVLA checkpoint, on one worker per device.

    Actions are un-normalised with the checkpoint's statistics; the gripper is turned from 0..1 to -1..1; all is clipped
    to [-1, 1]. The actions of frame i depend on that frame, `instruction`, `key` and i only, up to the rounding of
    differently sized batches.

    Args:
        checkpoint: a folder in OpenVLA's published layout, or hf://owner/name.
        devices: one worker for each, as torch names them; "auto" is the GPU where there is one, else the CPU.
        python: the interpreter of the workers' environment; this one if empty.
        precision: "float32" or "bfloat16".
        dataset: whose statistics un-normalise (`unnorm_key`); may be empty if the checkpoint has those of one.
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
                self.action_dim = worker.wait_until_loaded()
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

    def act(self, rgb: jax.Array, instruction: str, key: jax.Array, num_samples: int = 1) -> jax.Array:
        """Returns actions for frames; see `rpd_jax.teachers.Teacher`.

        Args:
            rgb: uint8 [B, H, W, 3].
            instruction: the sentence that all frames share.
            key: random key of the samples.
            num_samples: S; they differ only if the temperature is above 0.

        Returns:
            float32 [S, B, action_dim] in [-1, 1].

        Raises:
            UserError: a worker failed; all of them were ended then.
        """
        if rgb.ndim != 4 or rgb.shape[-1] != 3 or rgb.dtype != jnp.uint8:
            raise UserError(f"Frames must be uint8 [B, H, W, 3]; {rgb.dtype} {list(rgb.shape)} was given.")
        if not self._workers:
            raise UserError("This teacher was closed: load it again.")
        samples = num_samples if self._temperature else 1
        uniforms = None
        if self._temperature:
            uniforms = np.asarray(_uniforms(key, len(rgb), num_samples, self.action_dim))
        try:
            actions = self._label(np.asarray(rgb), instruction, samples, uniforms)
        except BridgeError as error:
            self.close()
            raise UserError(str(error)) from None
        except BaseException:
            self.close()  # requests are in flight whose answers nobody would expect
            raise
        return jnp.broadcast_to(jnp.asarray(actions), (num_samples, *actions.shape[1:]))

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            worker.close()
        self._workers = []

    def _label(self, frames: np.ndarray, instruction: str, samples: int, uniforms: np.ndarray | None) -> np.ndarray:
        """Splits frames among the workers; returns float32 [samples, B, A] in their order."""
        total, height, width, _ = frames.shape
        actions = np.empty((samples, total, self.action_dim), np.float32)
        layout = RingLayout(SLOTS, self._batch_size, height, width, samples, self.action_dim)
        shares = split_by_speed(total, [speed.frames_per_second for speed in self._speeds])
        waiting: list[deque[tuple[int, int]]] = []
        begin = 0
        for share in shares:
            sizes = split_evenly(share, self._batch_size) if share else []
            waiting.append(deque())
            for size in sizes:
                waiting[-1].append((begin, begin + size))
                begin += size
        for worker in self._workers:
            worker.attach(layout)
        sent: list[deque[tuple[int, int]]] = [deque() for _ in self._workers]
        while True:
            for worker, queue, flying in zip(self._workers, waiting, sent, strict=True):
                while queue and worker.has_room:
                    begin, end = queue.popleft()
                    part = None if uniforms is None else uniforms[:, begin:end]
                    worker.submit(frames[begin:end], instruction, samples, self._temperature, part)
                    flying.append((begin, end))
            busy = {worker.connection: i for i, worker in enumerate(self._workers) if worker.is_busy}
            if not busy:
                return actions
            deadline = min(self._workers[i].deadline for i in busy.values())
            ready = wait(list(busy), timeout=max(0.0, deadline - time.monotonic()))
            # If none is ready, the one that is late says so.
            late = [i for i in busy.values() if self._workers[i].deadline == deadline]
            for i in [busy[connection] for connection in ready] or late:
                answer = self._workers[i].collect()
                if answer is not None:
                    begin, end = sent[i].popleft()
                    actions[:, begin:end] = answer[0][:samples]
                    self._speeds[i].measured(end - begin, answer[1])
                    self._warn(answer[2], samples * (end - begin) * self.action_dim)

    def _warn(self, other: int, tokens: int) -> None:
        if other and not self._told_of_other_tokens:
            self._told_of_other_tokens = True
            self._say(
                f"OpenVLA: {other} of {tokens} predicted tokens are no action tokens; they count as the nearest bin. "
                "The checkpoint may not be trained for this instruction or these images."
            )


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _uniforms(key: jax.Array, frames: int, samples: int, action_dim: int) -> jax.Array:
    """float32 [S, B, A] in [0, 1): frame i's numbers depend on `key` and i only."""

    def draw(frame: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, frame), (samples, action_dim))

    return jax.vmap(draw, out_axes=1)(jnp.arange(frames))
