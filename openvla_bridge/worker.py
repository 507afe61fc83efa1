"""The worker process: `python -m openvla_bridge.worker COMMANDS MEMORY`, started by `worker_process.WorkerProcess`.

Owns a model on one device and answers requests in their order; see `protocol`. Imports neither JAX nor rpd_jax, and
nothing but the standard library before it has greeted the client.
"""

import ctypes
import gc
import os
import queue
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

from openvla_bridge import protocol
from openvla_bridge.errors import BridgeError

_PR_SET_PDEATHSIG = 1


class Worker:
    """Does what the messages say; each method is one of them.

    Args:
        connection: to the client.
        memory: file descriptor of the shared memory.
    """

    def __init__(self, connection: Connection, memory: int):
        self._connection, self._memory = connection, memory

    def hello(self, version: int, die_with_parent: bool) -> None:
        """Greets; the two versions are compared by the client."""
        if die_with_parent:
            # Covers a worker that hangs inside a library; the reader's end of file covers the rest.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        self._send("hello", version=protocol.VERSION)

    def load(
        self,
        model: str,
        checkpoint: str,
        device: str,
        precision: str,
        batch_size: int,
        threads: int | None,
        options: dict[str, Any],
    ) -> None:
        """Loads the model."""
        self._note("importing torch")
        import_load, mend = _MODELS[model]
        gc.disable()  # what is imported stays: to look through it, again and again, is a third of the time
        try:
            import torch

            load = import_load()
            self._load(torch, load, checkpoint, device, precision, threads, options)
        except ImportError as error:
            raise BridgeError(
                f"The Python environment of {sys.executable} lacks {error.name or error}: {mend}."
            ) from None
        finally:
            gc.freeze()
            gc.enable()
        self._batch_size = batch_size
        self._send("ready", horizon=self._policy.horizon)

    def _load(
        self,
        torch: Any,
        load: Any,
        checkpoint: str,
        device: str,
        precision: str,
        threads: int | None,
        options: dict[str, Any],
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BridgeError(
                f"teacher.devices names {device!r}, which this machine or torch {torch.__version__} has not ({reason})."
            ) from None
        if threads and device == "cpu":
            torch.set_num_threads(threads)
        try:
            self._policy = load(checkpoint, device, precision, self._note, self._tell, **options)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise BridgeError(
                f"The model does not fit into the memory of {device}: set teacher.precision='bfloat16', or give "
                "teacher.devices a larger device."
            ) from None

    def attach(self, **layout: int) -> None:
        """Maps the shared memory."""
        from openvla_bridge.ring import RingLayout, map_slots

        self._slots = map_slots(self._memory, RingLayout(**layout))
        self._send("attached")

    def label(
        self,
        slot: int,
        count: int,
        instruction: str,
        samples: int,
        steps: int,
        temperature: float,
        gripper: list[float],
        sampled: bool,
    ) -> None:
        """Writes the actions of a slot's first `count` frames."""
        from openvla_bridge.request import Request

        started = time.perf_counter()
        arrays = self._slots[slot]
        begin, other = 0, 0
        while begin < count:
            end = min(begin + self._batch_size, count)
            request = Request(
                arrays.frames[begin:end],
                arrays.state[begin:end],
                instruction,
                samples,
                steps,
                arrays.uniforms[:samples, begin:end] if sampled else None,
                temperature,
                tuple(gripper),
            )
            try:
                actions, found = self._policy.label(request)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                self._halve_batch(end - begin, error)
                continue
            arrays.actions[:samples, begin:end] = actions
            begin, other = end, other + found
        self._send("done", slot=slot, count=count, seconds=time.perf_counter() - started, other_tokens=other)

    def echo(self, slot: int) -> None:
        """Answers, and does nothing else: what is left of a request is its transport."""
        self._send("done", slot=slot, count=0, seconds=0.0, other_tokens=0)

    def _halve_batch(self, frames: int, error: BaseException) -> None:
        import torch

        if frames == 1:
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BridgeError(
                f"{self._policy.device} ran out of memory with a single frame: close what else uses it, or set "
                f"teacher.precision='bfloat16' ({cause})."
            )
        self._batch_size = frames // 2
        if self._policy.device.type == "cuda":
            torch.cuda.empty_cache()
        self._note(
            f"out of memory with {frames} frames at a time; continues with {self._batch_size} "
            f"(teacher.batch_size={self._batch_size} spares the attempt)"
        )

    def _tell(self, known: Any) -> None:
        self._send("known", **vars(known))

    def _note(self, text: str) -> None:
        self._send("note", text=text)

    def _send(self, event: str, **content: Any) -> None:
        protocol.send(self._connection, event=event, **content)


def _import_openvla() -> Any:
    from openvla_bridge.model.policy import OpenVLAPolicy

    return OpenVLAPolicy.load


def _import_lerobot() -> Any:
    from openvla_bridge.lerobot.policy import LeRobotPolicy

    return LeRobotPolicy.load


# What imports a model's `request.Load`, and what to do where that cannot be imported.
_MODELS = {
    "openvla": (
        _import_openvla,
        "run `make openvla-env` and set teacher.python=.venv-openvla/bin/python, or pip install 'rpd-jax[openvla]' "
        "there, or what openvla_bridge/requirements.txt lists",
    ),
    "lerobot": (
        _import_lerobot,
        "run `make lerobot-env` and set teacher.python=.venv-lerobot/bin/python, or pip install lerobot there",
    ),
}


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # torch has no exception type for host memory; the last is what oneDNN says.
    return any(text in str(error) for text in ("DefaultCPUAllocator", "bad_alloc", "could not create a primitive"))


def _read(connection: Connection, inbox: queue.SimpleQueue) -> None:
    """Puts messages into the inbox, and ends the process with the connection, whatever it is doing."""
    while True:
        try:
            inbox.put(protocol.receive(connection))
        except (EOFError, OSError, protocol.ProtocolError):
            os._exit(0)


def main(commands: int, memory: int) -> None:
    """Serves until the client closes the connection."""
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group; the client decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    connection = Connection(commands)
    inbox: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    worker = Worker(connection, memory)
    while True:
        message = inbox.get()
        try:
            getattr(worker, message.pop("do"))(**message)
        except BridgeError as error:
            protocol.send(connection, event="error", text=str(error), user=True)
        except Exception as error:
            traceback.print_exc()
            protocol.send(connection, event="error", text=f"{type(error).__name__}: {error}", user=False)


def _forget_project_path() -> None:
    """Takes the folder that holds this package off the import path: if that is another environment's site-packages,
    its libraries must not be mixed with this one's."""
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    own = {os.path.abspath(path) for path in __import__("site").getsitepackages()}
    if folder not in own:
        sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != folder]


if __name__ == "__main__":
    _forget_project_path()
    main(*map(int, sys.argv[1:3]))
