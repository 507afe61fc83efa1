"""Requests spread over connections to policy servers, all of them busy, answers in the order of the requests.

All state belongs to one thread with an event loop; the callers' thread hands requests over and waits.
"""

import asyncio
import dataclasses
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from rpd_jax.errors import UserError
from rpd_jax.policy_server.protocol import PATIENCE, Link, Lost, PolicyProtocol

# A request that so many connections in a row were late with, or were lost with, is not asked again.
_TRIES = 4
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds between attempts to connect
_SILENT = Lost("it does not answer")


@dataclasses.dataclass(eq=False)
class Batch:
    """Requests that were given together.

    Attributes:
        message: makes message number i.
        take: is given i, the answer as it was decoded, and the address that it came from; may raise UserError.
        unanswered: requests without an answer.
        done: is set when there is none left, or fails.
    """

    message: Callable[[int], Any]
    take: Callable[[int, Any, str], None]
    unanswered: int
    done: Future = dataclasses.field(default_factory=Future)


@dataclasses.dataclass(eq=False)
class _Request:
    """A message to be sent; `lost` counts servers that went away with it, the last one at `lost_at` (seconds)."""

    batch: Batch
    index: int
    late_at: list[str] = dataclasses.field(default_factory=list)
    lost: int = 0
    lost_at: float = -math.inf


class Connections:
    """Connections to one server or more, made again when they are lost.

    Attributes:
        metadata: what each address said of itself at its first connection.

    Args:
        addresses: of the servers, as the protocol writes them.
        protocol: that they speak.
        each: connections to each address.
        start_timeout: seconds that a server is waited for, at the start and when it was lost.
        request_timeout: seconds until a request is asked again, of another server where there is one.
        say: is told what is waited for.

    Raises:
        UserError: a server was not there in time, or is none. Later it is what `Batch.done` fails with, as where a
            server comes back as another policy.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        protocol: PolicyProtocol,
        *,
        each: int,
        start_timeout: float,
        request_timeout: float,
        say: Callable[[str], None],
    ):
        self._addresses, self._protocol = tuple(dict.fromkeys(addresses)), protocol
        self._start_timeout, self._request_timeout, self._say = start_timeout, request_timeout, say
        self.metadata: dict[str, dict] = {}
        self._greeted = Future()
        self._waiting: deque[_Request] = deque()
        self._batches: dict[int, Batch] = {}
        self._connected = dict.fromkeys(self._addresses, 0)
        self._told_lost: set[str] = set()
        self._failure: UserError | None = None
        self._loop = asyncio.new_event_loop()
        self._news = asyncio.Condition()
        self._thread = threading.Thread(target=self._loop.run_forever, name="policy servers", daemon=True)
        self._thread.start()
        self._tasks: list[Future] = [
            asyncio.run_coroutine_threadsafe(self._keep(address), self._loop)
            for address in self._addresses
            for _ in range(each)
        ]
        try:
            self._greeted.result()
        except BaseException:
            self.close()
            raise

    def ask(self, batch: Batch) -> None:
        """Hands over a batch; `batch.done` tells when it is answered, or fails with a UserError."""
        if not self._thread.is_alive():
            raise UserError("This teacher was closed: load it again.")
        asyncio.run_coroutine_threadsafe(self._queue(batch), self._loop)

    def close(self) -> None:
        """Closes the connections; batches without all answers fail."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _end(self) -> None:
        await self._fail(UserError("This teacher was closed: load it again."))
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._protocol.close()

    async def _queue(self, batch: Batch) -> None:
        if not batch.unanswered:
            batch.done.set_result(None)
            return
        self._batches[id(batch)] = batch
        if self._failure is not None:
            await self._fail(self._failure)
            return
        self._waiting.extend(_Request(batch, index) for index in range(batch.unanswered))
        await self._tell()

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _fail(self, error: UserError) -> None:
        """Everything that is waited for fails with the first error that there was."""
        self._failure = self._failure or error
        self._waiting.clear()
        for batch in self._batches.values():
            batch.done.set_exception(self._failure)
        self._batches.clear()
        if not self._greeted.done():
            self._greeted.set_exception(self._failure)

    async def _keep(self, address: str) -> None:
        """One connection, made again and again; ends where all of them are to end."""
        before = ""
        try:
            while self._failure is None:
                link = await self._connect(address, before)
                self._connected[address] += 1
                await self._tell()
                made_at = time.monotonic()
                try:
                    while True:
                        await self._exchange(link, address, made_at, await self._next(address))
                except Lost as loss:
                    before = f"{loss}, and then "
                    if address not in self._told_lost:
                        self._told_lost.add(address)
                        self._say(f"{address}: {loss}; connecting again.")
                finally:
                    self._connected[address] -= 1
                    link.abort()
                    await self._tell()
        except UserError as error:
            await self._fail(error)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # a mistake of ours must not leave the caller waiting
            await self._fail(UserError(f"{address}: {type(error).__name__}: {error}."))
            raise

    async def _connect(self, address: str, before: str) -> Link:
        """A connection whose server has introduced itself; `before` says why the one before it was lost."""
        deadline, pause, told = time.monotonic() + self._start_timeout, _FIRST_PAUSE, _SILENT
        while True:
            begin = time.monotonic()
            watch = asyncio.create_task(self._watch(address))
            try:
                return await self._greet(address, deadline)
            except Lost as loss:
                left = deadline - time.monotonic()
                # The last attempt may have had no time to fare as those before.
                loss = told if loss is _SILENT and time.monotonic() - begin < PATIENCE else loss
                told = loss
                if left <= 0.0:
                    seconds = f"teacher.start_timeout={self._start_timeout:g} seconds"
                    raise UserError(
                        f"{address}: {before}{loss}{loss.perhaps}, for {seconds}: start the policy server there, or "
                        "mend teacher.address."
                    ) from None
                self._tell_waiting(address, loss)
                await asyncio.sleep(min(pause, left))
                pause = min(2.0 * pause, _LONGEST_PAUSE)
            finally:
                watch.cancel()

    def _tell_waiting(self, address: str, why: Lost) -> None:
        """Says once for each time that a server is lost that it is waited for."""
        if address not in self._told_lost:
            self._told_lost.add(address)
            self._say(f"{address}: {why}; waiting for it, {self._start_timeout:g} seconds at most.")

    async def _watch(self, address: str) -> None:
        """Looks why a server takes long to answer: it may compute, or speak another protocol and wait as we do."""
        await asyncio.sleep(PATIENCE)
        self._tell_waiting(address, _SILENT)
        stranger = await self._protocol.stranger(address)
        if stranger is not None:
            await self._fail(stranger)

    async def _greet(self, address: str, deadline: float) -> Link:
        """One attempt to connect; raises Lost where another one may succeed."""
        try:
            async with asyncio.timeout_at(self._loop.time() + max(0.01, deadline - time.monotonic())):
                link, metadata = await self._protocol.connect(address)
        except TimeoutError:
            raise _SILENT from None
        before = self._protocol.identity(self.metadata.setdefault(address, metadata))
        now = self._protocol.identity(metadata)
        if before != now:
            link.abort()
            raise _another_policy(address, before, now)
        self._told_lost.discard(address)
        if len(self.metadata) == len(self._addresses) and not self._greeted.done():
            self._greeted.set_result(None)
        return link

    async def _next(self, address: str) -> _Request:
        """Takes the first request that this address may be asked; waits for one."""
        async with self._news:
            while True:
                live = {name for name, count in self._connected.items() if count}
                for request in self._waiting:
                    if address not in request.late_at or live <= set(request.late_at):
                        self._waiting.remove(request)
                        return request
                await self._news.wait()

    async def _exchange(self, link: Link, address: str, made_at: float, request: _Request) -> None:
        """Asks one request; where the connection is lost instead of an answer, the request waits again.

        Args:
            made_at: time.monotonic() when the connection was made.
        """
        batch = request.batch
        if id(batch) not in self._batches:
            return
        try:
            async with asyncio.timeout(self._request_timeout):
                answer = await link.ask(batch.message(request.index))
        except TimeoutError:
            seconds = f"teacher.request_timeout={self._request_timeout:g} seconds"
            self._waiting.appendleft(request)
            _count_late(request, address, seconds)
            raise Lost(f"no answer within {seconds}") from None
        except Lost as loss:
            self._waiting.appendleft(request)
            _count_lost(request, address, made_at, loss)
            raise
        batch.take(request.index, answer, address)
        batch.unanswered -= 1
        if not batch.unanswered:
            del self._batches[id(batch)]
            batch.done.set_result(None)


def _another_policy(address: str, before: dict[str, str], now: dict[str, str]) -> UserError:
    point = next(name for name in before | now if before.get(name) != now.get(name))
    was, became = (said.get(point, "nothing")[:100] for said in (before, now))
    return UserError(
        f"{address} is another policy than it was at the first connection (its {point} was {was} and is {became}): "
        "serve the same one there again, and continue."
    )


def _count_late(request: _Request, address: str, seconds: str) -> None:
    request.late_at.append(address)
    if len(request.late_at) == _TRIES:
        raise UserError(
            f"{', '.join(dict.fromkeys(request.late_at))} did not answer within {seconds}, {_TRIES} times with the "
            "same frame: raise it, or see what that server does."
        )


def _count_lost(request: _Request, address: str, made_at: float, loss: Lost) -> None:
    """A server that goes away takes all its connections along: those made before the last loss count with it."""
    if made_at <= request.lost_at:
        return
    request.lost, request.lost_at = request.lost + 1, time.monotonic()
    if request.lost == _TRIES:
        raise UserError(
            f"{address} closed the connection instead of an answer, {_TRIES} times with the same frame"
            f"{loss.perhaps}: see what that server says."
        )
