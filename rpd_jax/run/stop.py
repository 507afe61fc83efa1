"""Turns Ctrl-C and SIGTERM into a clean stop at the next safe moment."""

import signal
import threading
from types import FrameType


class Interrupted(Exception):
    """The user or the scheduler asked the run to stop."""


class StopRequest:
    """Remembers that SIGINT or SIGTERM came; `check` raises Interrupted then.

    As a context manager it installs its handlers and puts the old ones back at the end. A second signal kills at once.
    """

    def __init__(self):
        self._signal: int | None = None
        self._old_handlers: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self  # nobody sends signals there
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old_handlers[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception_info) -> None:
        self._restore_handlers()

    def check(self) -> None:
        """Raises Interrupted if a stop was asked for."""
        if self._signal is not None:
            raise Interrupted(signal.Signals(self._signal).name)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers.clear()
