"""The client's end of one worker: starts it, talks to it, notices how it fails, and cleans up. Imports no JAX."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from openvla_bridge import protocol
from openvla_bridge.errors import BridgeError
from openvla_bridge.request import Known, Model, Request
from openvla_bridge.ring import RingLayout, create_memory, map_slots
from rpd_jax.workers.process import describe_end

_PROJECT = Path(__file__).resolve().parents[1]

# While one request is computed, the next one's frames are copied and a third may wait.
SLOTS = 3


class WorkerProcess:
    """One worker with its own device; a ring of slots carries the requests in flight.

    A failure of any kind ends the worker and raises BridgeError with the cause and the mend.

    Args:
        name: for messages, such as "OpenVLA worker 0 (cuda:0)".
        python: the interpreter of the worker's environment; None is this one.
        start_timeout: seconds without any news until the start counts as failed.
        request_timeout: seconds until a request counts as hung.
        say: is told the worker's progress.
    """

    def __init__(
        self,
        name: str,
        *,
        python: str | None = None,
        start_timeout: float = 1800.0,
        request_timeout: float = 600.0,
        say: Callable[[str], None] = lambda text: None,
    ):
        self.name, self._say = name, say
        self._start_timeout, self._request_timeout = start_timeout, request_timeout
        self._layout: RingLayout | None = None
        self._in_flight: deque[tuple[int, int]] = deque()
        self._closed = False
        self._memory = create_memory()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        ours, theirs = socket.socketpair()
        inherited = (theirs.fileno(), self._memory)
        python = python or sys.executable
        try:
            self.process = subprocess.Popen(
                [python, "-m", "openvla_bridge.worker", *map(str, inherited)],
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                env=_environment(),
            )
        except OSError as error:
            ours.close()
            self._output.close()
            os.close(self._memory)
            self._closed = True
            raise BridgeError(
                f"teacher.python={python!r} cannot be started ({error.strerror}): give the path of a Python "
                "interpreter, or leave it empty."
            ) from None
        finally:
            theirs.close()
        self.connection = Connection(ours.detach())
        # The signal comes when the *thread* that started the worker ends.
        in_main_thread = threading.current_thread() is threading.main_thread()
        self._send("hello", version=protocol.VERSION, die_with_parent=in_main_thread)

    def greet(self) -> None:
        """Waits for the greeting and compares the versions."""
        version = self._wait_for("hello", self._start_timeout, "teacher.start_timeout").get("version")
        if version != protocol.VERSION:
            self._fail(
                f"{self.name} speaks version {version!r} of the protocol, this program version {protocol.VERSION}: "
                f"let both environments use the same openvla_bridge.{self._tail()}"
            )

    def request_load(self, model: Model, device: str, batch_size: int, threads: int | None = None) -> None:
        """Tells the worker to load a model; `wait_until_known` and `wait_until_loaded` must follow."""
        self._send(
            "load",
            model=model.kind,
            checkpoint=model.checkpoint,
            device=device,
            precision=model.precision,
            batch_size=batch_size,
            threads=threads,
            options=model.options,
        )

    def wait_until_known(self) -> Known:
        """Returns what the checkpoint says, before weights are read."""
        answer = self._wait_for("known", self._start_timeout, "teacher.start_timeout")
        gripper, size = answer.get("gripper"), answer.get("image_size")
        if not isinstance(gripper, dict) or not all(isinstance(value, int | float) for value in gripper.values()):
            self._nonsense(f"gripper={str(gripper)[:80]}")
        if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side >= 0 for side in size):
            self._nonsense(f"image_size={str(size)[:80]}")
        action_dim, state_dim = self._whole(answer, "action_dim", 1, 1024), self._whole(answer, "state_dim", 0, 1 << 20)
        return Known(action_dim, gripper, tuple(size), state_dim)

    def wait_until_loaded(self) -> int:
        """Waits until the model is ready; returns how many actions it predicts at once."""
        answer = self._wait_for("ready", self._start_timeout, "teacher.start_timeout")
        return self._whole(answer, "horizon", 1, 1 << 20)

    def attach(self, layout: RingLayout) -> None:
        """Gives the ring another layout; nothing may be in flight."""
        self._refuse_if_closed()
        if layout != self._layout:
            self._slots = map_slots(self._memory, layout)
            self._send("attach", **vars(layout))
            self._wait_for("attached", self._request_timeout, "teacher.request_timeout")
            self._layout = layout
            self._next = 0

    @property
    def has_room(self) -> bool:
        """Whether a slot is free."""
        return len(self._in_flight) < self._layout.slots

    @property
    def is_busy(self) -> bool:
        """Whether an answer is still to come."""
        return bool(self._in_flight)

    @property
    def deadline(self) -> float:
        """When the oldest request counts as hung, by `time.monotonic`."""
        return self._waiting_since + self._request_timeout

    def submit(self, request: Request) -> None:
        """Copies the arrays of a request into a free slot; asks for labels."""
        slot, count = self._take_slot(len(request.frames)), len(request.frames)
        arrays = self._slots[slot]
        np.copyto(arrays.frames[:count], request.frames)
        np.copyto(arrays.state[:count], request.state)
        if request.uniforms is not None:
            np.copyto(arrays.uniforms[: request.samples, :count], request.uniforms)
        self._send(
            "label",
            slot=slot,
            count=count,
            instruction=request.instruction,
            samples=request.samples,
            steps=request.steps,
            temperature=request.temperature,
            gripper=request.gripper,
            sampled=request.uniforms is not None,
        )

    def submit_echo(self, frames: np.ndarray) -> None:
        """Carries frames as `submit` does, for an answer without actions."""
        slot = self._take_slot(0)
        np.copyto(self._slots[slot].frames[: len(frames)], frames)
        self._send("echo", slot=slot)

    def collect(self) -> tuple[np.ndarray, float, int] | None:
        """Takes one message off the connection; None if it was a note.

        Returns:
            Actions float32 [samples, b, steps, A] of the oldest request, a view that is valid until the slot's next
            use; the seconds that the worker spent; the number of tokens that were no action tokens.
        """
        message = self._receive(self.deadline, "teacher.request_timeout", self._request_timeout)
        if message["event"] == "note":
            return None
        expected_slot, expected_count = self._in_flight[0]
        if message["event"] != "done":
            self._nonsense(f"event {message['event']!r} instead of an answer")
        slot = self._whole(message, "slot", 0, self._layout.slots - 1)
        count = self._whole(message, "count", 0, self._layout.batch)
        other = self._whole(message, "other_tokens", 0, 1 << 40)
        seconds = message.get("seconds")
        if (slot, count) != (expected_slot, expected_count):
            self._nonsense(f"{count} actions in slot {slot} instead of {expected_count} in slot {expected_slot}")
        if not isinstance(seconds, float | int) or not 0.0 <= seconds < 1e9:
            self._nonsense(f"seconds={seconds!r}")
        self._in_flight.popleft()
        self._waiting_since = time.monotonic()
        actions = self._slots[slot].actions[:, :count]
        if not (np.abs(actions) <= 1.0).all():
            self._nonsense("actions that are not numbers in [-1, 1]")
        return actions, float(seconds), other

    def close(self) -> None:
        """Ends the worker and frees everything; may be called again."""
        if self._closed:
            return
        self._closed = True
        self._slots = []
        self.connection.close()  # the worker's reader ends it, whatever it is doing
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._output.close()
        os.close(self._memory)

    def __del__(self):
        if not getattr(self, "_closed", True):
            self.close()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise BridgeError(f"{self.name} was closed: load the teacher again.")

    def _take_slot(self, count: int) -> int:
        self._refuse_if_closed()
        slot, self._next = self._next, (self._next + 1) % self._layout.slots
        if not self._in_flight:
            self._waiting_since = time.monotonic()
        self._in_flight.append((slot, count))
        return slot

    def _send(self, action: str, **arguments: Any) -> None:
        self._refuse_if_closed()
        try:
            protocol.send(self.connection, do=action, **arguments)
        except OSError:
            self._fail(self._obituary())

    def _wait_for(self, event: str, timeout: float, setting: str) -> dict[str, Any]:
        """Waits for an event; every note starts the time anew."""
        while True:
            message = self._receive(time.monotonic() + timeout, setting, timeout)
            if message["event"] == event:
                return message
            if message["event"] != "note":
                self._nonsense(f"event {message['event']!r} instead of {event!r}")

    def _receive(self, deadline: float, setting: str, timeout: float) -> dict[str, Any]:
        self._refuse_if_closed()
        try:
            if not self.connection.poll(max(0.0, deadline - time.monotonic())):
                self._fail(
                    f"{self.name} gave no sign of life for {timeout:g} s: it hangs, or the device is overloaded; "
                    f"raise {setting} or lower teacher.batch_size.{self._tail()}"
                )
            message = protocol.receive(self.connection)
        except (EOFError, OSError):
            self._fail(self._obituary())
        except protocol.ProtocolError as error:
            self._nonsense(str(error))
        event, text = message.get("event"), message.get("text", "")
        if not isinstance(event, str) or not isinstance(text, str):
            self._nonsense(f"a message without event: {str(message)[:80]}")
        if event == "note":
            self._say(f"{self.name}: {text[:500]}")
        if event == "error":
            self._fail(text if message.get("user") is True else f"{self.name} failed: {text}{self._tail()}")
        return message

    def _whole(self, message: dict[str, Any], name: str, low: int, high: int) -> int:
        value = message.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self._nonsense(f"{name}={value!r}")
        return value

    def _nonsense(self, what: str) -> None:
        self._fail(
            f"{self.name} answered nonsense ({what}): teacher.python must be a Python that runs this openvla_bridge."
            f"{self._tail()}"
        )

    def _fail(self, message: str) -> None:
        self.close()
        raise BridgeError(message)

    def _obituary(self) -> str:
        cause = describe_end(self.process, "set teacher.precision='bfloat16' or lower teacher.batch_size")
        return f"{self.name} {cause}.{self._tail()}"

    def _tail(self, lines: int = 12) -> str:
        with contextlib.suppress(OSError, ValueError):
            self._output.seek(0)
            text = "\n".join(self._output.read().decode(errors="replace").strip().splitlines()[-lines:])
            return f" Its last output:\n{text}" if text else ""
        return ""


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(_PROJECT), os.environ.get("PYTHONPATH")]))
    # Threads that go round while they wait for others keep the environments, and those others, from the cores.
    own = {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **own}
