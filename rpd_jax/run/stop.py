"""Turns Ctrl-C, SIGTERM and a terminal that is closed (SIGHUP) into an end that loses nothing and leaves no trace.

A command calls `listen` before its other imports. From then on a signal ends the process at once, with status 130: no
exception is raised, since what a library is doing may swallow it (JAX's callback of the garbage collector does) or
print its trace. A thread sees to it, since Python's own handlers wait for a compilation to return. Where a state is not
on disk yet, a `StopRequest` remembers the signal until the next safe moment instead. Imports no JAX.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED_STATUS = 130
_SHOW_CURSOR = b"\x1b[?25h"


class Interrupted(Exception):
    """The user or the scheduler asked the run to stop."""


def _heard() -> list[int]:
    """The signals that stop this process: all, but not SIGHUP where it is ignored, as `nohup` has it."""
    return [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


class StopRequest:
    """Remembers that one of SIGNALS came; `check` raises Interrupted then. A second signal, but SIGHUP, ends at once.

    As a context manager it installs its handlers and puts the old ones back at the end.

    Attributes:
        unsaved: whether there is a state that a stop has to save; while there is none, a command that listens ends at
            once.
    """

    def __init__(self):
        self.unsaved = False
        self._signal: int | None = None
        self._told = False
        self._old_handlers: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self  # nobody sends signals there
        for number in _heard():
            self._old_handlers[number] = signal.signal(number, self._remember)
        _LISTENER.request = self
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception_info) -> None:
        self._restore_handlers()
        _LISTENER.request = None
        if kind is None and not self._told:
            self.check()  # for a signal that came after the last one

    def check(self) -> None:
        """Raises Interrupted if a stop was asked for."""
        if self._signal is not None:
            self._told = True
            raise Interrupted(signal.Signals(self._signal).name)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._restore_handlers()
        # The kernel and the shell both tell of a closed terminal.
        self._old_handlers[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if _LISTENER.is_on and not self.unsaved:
            end_at_once()

    def _restore_handlers(self) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers.clear()


def listen() -> None:
    """From now on, SIGINT, SIGTERM and SIGHUP end this process at once, unless a `StopRequest` has something to save.

    To be called by a command, in the main thread. Its child processes handle signals as ever.
    """
    _LISTENER.start()


@contextlib.contextmanager
def interrupts_raise() -> Iterator[None]:
    """Such a signal raises KeyboardInterrupt inside the `with` block: for what has to be undone; a second ends."""
    with StopRequest() as request:
        request.unsaved = True
        for number in _heard():
            signal.signal(number, signal.default_int_handler)
        yield


def end_at_once() -> None:
    """Ends the process with status 130 as SIGKILL would, but for what is printed; does not return."""
    with contextlib.suppress(Exception):  # it may be the stream that the main thread is writing to
        sys.stdout.flush()
        if sys.stdout.isatty():
            os.write(sys.stdout.fileno(), _SHOW_CURSOR + b"\n")
    os._exit(STOPPED_STATUS)


def ignore_signals() -> None:
    """From now on none of SIGNALS ends this process: another one decides when it ends, or all is done."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class _Listener:
    """Hears signals also while the main thread is deep in C: Python's C handler writes them to a pipe."""

    def __init__(self):
        self.is_on = False
        self.request: StopRequest | None = None

    def start(self) -> None:
        if self.is_on:
            return
        self.is_on = True
        ours, pythons = os.pipe()
        os.set_blocking(pythons, False)
        signal.set_wakeup_fd(pythons, warn_on_full_buffer=False)
        for number in _heard():
            # Also where a shell has SIGINT ignored, as for what it starts in the background.
            signal.signal(number, lambda number, frame: end_at_once())
        # Python takes its handlers back then: a signal would tell that the command failed. The first to be registered
        # is the last to be called.
        atexit.register(ignore_signals)
        os.register_at_fork(after_in_child=self._forget)
        threading.Thread(target=self._hear, args=(ours,), daemon=True, name="signals").start()

    def _hear(self, ours: int) -> None:
        count = 0
        while received := os.read(ours, 1):
            if received[0] not in SIGNALS:
                continue  # another that Python handles
            if count and received[0] == signal.SIGHUP:
                continue  # the shell tells it once more
            count += 1
            if count > 1 or self.request is None or not self.request.unsaved:
                end_at_once()

    def _forget(self) -> None:
        """In a forked child: its signals are not this process's."""
        self.is_on, self.request = False, None
        signal.set_wakeup_fd(-1)
        for number in _heard():
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


_LISTENER = _Listener()
