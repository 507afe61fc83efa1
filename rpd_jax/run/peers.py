"""Whether the other processes of a run are still there: one that fails tells the others, and all end."""

import contextlib
import os
import sys
import threading
import time

import jax
from jax._src import distributed  # as Orbax does: the key-value store and the heartbeats have no public name

from rpd_jax.errors import UserError
from rpd_jax.run.stop import Interrupted

HEARTBEAT_TIMEOUT = 20  # seconds without a heartbeat until a process counts as gone
_PATIENCE = 10  # seconds for a process that waits for one that is gone; a collective may never give up by itself
_PERIOD = 1.0  # seconds
_FAILED = "rpd_jax/failed/"


class PeerFailed(UserError):
    """Another process of the run failed or is gone, so that nothing can be done together any more."""


class Peers:
    """The other processes of this run, watched by a thread; heartbeats are JAX's, and go on whatever Python does."""

    def __init__(self):
        state = distributed.global_state
        self.client, self.index, self.count = state.client, state.process_id, state.num_processes
        self._failure: str | None = None
        self._ending = self._left = False
        self._alone = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises PeerFailed if another process has failed or is gone."""
        if self._failure is not None:
            raise PeerFailed(self._failure)

    def raised(self, error: BaseException) -> None:
        """To be called with what ends this process, before it cleans up; raises PeerFailed if a peer is the cause."""
        self._ending = True
        if isinstance(error, PeerFailed):
            return
        if not isinstance(error, UserError | Interrupted):
            # A collective notices at once that a process is gone, the missing heartbeat comes later.
            collective = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
            deadline = time.monotonic() + (HEARTBEAT_TIMEOUT + 5 * _PERIOD if collective else _PERIOD)
            while self._failure is None and time.monotonic() < deadline:
                time.sleep(0.1)
            if self._failure is not None:
                raise PeerFailed(self._failure) from None
        self.client.key_value_set(f"{_FAILED}{self.index}", "-", allow_overwrite=True)

    def leave(self) -> None:
        """Ends the connection; the first process holds it up for the others, and leaves last."""
        self._ending = self._left = True
        if self.index == 0:
            self._alone.wait(HEARTBEAT_TIMEOUT + _PATIENCE)
        else:
            self._thread.join(5 * _PERIOD)
        jax.distributed.shutdown()

    def _watch(self) -> None:
        noticed = None
        while not (self._left and (self.index or self._alone.is_set())):
            time.sleep(_PERIOD)
            try:
                self._look()
            except jax.errors.JaxRuntimeError:
                if self._left:
                    return
                self._failure = self._failure or _gone(0)  # the first process answers these questions
            if self._failure is not None:
                noticed = noticed or time.monotonic()
                if not self._ending and time.monotonic() > noticed + _PATIENCE:
                    print(f"error: {self._failure}", file=sys.stderr, flush=True)
                    with contextlib.suppress(jax.errors.JaxRuntimeError):
                        self.client.shutdown()
                    os._exit(2)

    def _look(self) -> None:
        failed = [int(key.removeprefix(_FAILED)) for key, _ in self.client.key_value_dir_get(_FAILED)]
        failed = [index for index in failed if index != self.index]
        if failed and self._failure is None:
            self._failure = f"Process {min(failed)} of this run failed: see what it printed."
        # Returns when all processes that live have asked.
        live = self.client.get_live_nodes(list(range(self.count)))
        missing = sorted(set(range(self.count)) - set(live))
        if missing and self._failure is None:
            self._failure = _gone(missing[0])
        if set(live) <= {self.index}:
            self._alone.set()


def _gone(index: int) -> str:
    return (
        f"Process {index} of this run is gone: it was killed, or its machine cannot be reached. The same command "
        "continues from the newest checkpoint."
    )
