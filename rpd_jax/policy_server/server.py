"""A policy of ours behind openpi's WebSocket: requests of all connections are gathered into batches."""

import asyncio
import dataclasses
import errno
import hmac
import os
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from rpd_jax.errors import UserError
from rpd_jax.policy_server import wire
from rpd_jax.policy_server.seeding import FRAME, KEY, SAMPLES, STEPS

IMAGE, STATE, PROMPT, ACTIONS = "observation/image", "observation/state", "prompt", "actions"
# Frames that go through the policy at a time.
_LARGEST_BATCH = 64
_MOST_SAMPLES = 1000
_MOST_PIXELS = 4096 * 4096
_LONGEST_PROMPT = 4096


@dataclasses.dataclass(frozen=True)
class ServedPolicy:
    """What a server needs to know of a policy.

    Attributes:
        act: gives, for frames uint8 [B, H, W, 3] or None, states float32 [B, D] or None, an instruction, words of a
            random key (uint32, or None), the number of samples S, the number of the first frame and the number of steps
            H, actions float32 [S, B, H, A]. It is called in one thread, one call at a time.
        metadata: what each client is told first.
        frame_shape: (H, W, 3) that frames must have; any height and width if (); frames are not seen if None.
        state_dim: D of the states that it sees, or None.
        prompted: whether it reads the instruction.
        horizon: actions of a chunk, all of which a client gets that does not say how many it wants.
    """

    act: Callable[[np.ndarray | None, np.ndarray | None, str, np.ndarray | None, int, int, int], np.ndarray]
    metadata: Mapping[str, Any]
    frame_shape: tuple[int, ...] | None
    state_dim: int | None
    prompted: bool
    horizon: int = 1


class _BadObservation(Exception):
    """A request that cannot be answered; says what it lacks."""


@dataclasses.dataclass(eq=False)
class _Question:
    """One observation, and whoever waits for its answer."""

    frame: np.ndarray | None
    state: np.ndarray | None
    prompt: str
    key: np.ndarray | None
    number: int
    samples: int
    steps: int
    answer: asyncio.Future

    @property
    def company(self) -> tuple:
        """What those have in common that can be answered together."""
        shape = None if self.frame is None else self.frame.shape
        return shape, self.prompt, None if self.key is None else self.key.tobytes(), self.samples, self.steps


def listen_at(host: str, port: int) -> socket.socket:
    """Returns a socket to which clients can connect, though they are not answered yet; port 0 takes a free one.

    Raises:
        UserError: there is none.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        cause = os.strerror(error.errno) if error.errno in errno.errorcode else str(error)
        raise UserError(f"{host}:{port} cannot be listened at ({cause}): choose another --port or --host.") from None


class PolicyServer:
    """Answers openpi's clients; see docs/policy_servers.md for what is in the messages.

    While a batch is computed the next one gathers, so that a batch has about as many frames as there are connections.

    Args:
        policy: the policy.
        api_key: that clients have to send, or None.
    """

    def __init__(self, policy: ServedPolicy, api_key: str | None):
        self._policy, self._api_key = policy, api_key
        self._waiting: deque[_Question] = deque()
        self._arrived = asyncio.Event()
        self._asked = 0  # questions without a number of their own, for their noise

    async def run(self, listener: socket.socket) -> None:
        """Serves those who connect to `listener`, until it is cancelled."""
        async with serve(
            self._converse,
            sock=listener,
            compression=None,
            max_size=wire.MAX_MESSAGE,
            process_request=self._admit,
            ping_interval=None,  # clients of openpi wait without reading while they move the robot
        ):
            await self._answer_all()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answers what is no WebSocket, and who has not got the key."""
        if request.path == "/healthz":
            return connection.respond(200, "OK\n")
        given = (request.headers.get("Authorization") or "").encode()
        if self._api_key is not None and not hmac.compare_digest(given, f"Api-Key {self._api_key}".encode()):
            return connection.respond(401, "The API key is missing or wrong.\n")
        return None

    async def _converse(self, client: ServerConnection) -> None:
        try:
            await client.send(wire.encode(dict(self._policy.metadata)))
            async for message in client:
                begin = time.monotonic()
                question = self._question(message)
                self._waiting.append(question)
                self._arrived.set()
                actions = await question.answer
                timing = {"infer_ms": 1000.0 * (time.monotonic() - begin)}
                await client.send(wire.encode({ACTIONS: actions, "server_timing": timing}))
        except ConnectionClosed:
            return
        except Exception as error:  # whatever it is, the protocol has a way to tell the client
            told = f"{error}" if isinstance(error, _BadObservation) else traceback.format_exc()
            await client.send(told)
            await client.close(CloseCode.INTERNAL_ERROR, "The reason is in the previous frame.")

    def _question(self, message: bytes | str) -> _Question:
        try:
            found = wire.decode(message) if isinstance(message, bytes) else message
        except wire.WireError as error:
            raise _BadObservation(f"The observation is {error}.") from None
        if not isinstance(found, dict):
            raise _BadObservation(f"An observation is a map; this is a {type(found).__name__}.")
        key, number, samples = found.get(KEY), found.get(FRAME), found.get(SAMPLES, 1)
        if key is None:
            number, self._asked = self._asked, self._asked + 1
        elif not (_is(key, "u", 1, 4) and 1 <= key.size <= 4) or type(number) is not int or not 0 <= number < 2**31:
            raise _BadObservation(f"{KEY} must be the words of a random key (uint32), {FRAME} a whole number.")
        if type(samples) is not int or not 1 <= samples <= _MOST_SAMPLES:
            raise _BadObservation(f"{SAMPLES} must be a whole number from 1 to {_MOST_SAMPLES}.")
        steps = found.get(STEPS, self._policy.horizon if key is None else 1)
        if type(steps) is not int or not 1 <= steps <= self._policy.horizon:
            raise _BadObservation(f"{STEPS} must be a whole number from 1 to {self._policy.horizon}.")
        frame, state, prompt = self._frame(found), self._state(found), self._prompt(found)
        answer = asyncio.get_running_loop().create_future()
        return _Question(frame, state, prompt, key, number, samples, steps, answer)

    def _frame(self, found: dict) -> np.ndarray | None:
        shape = self._policy.frame_shape
        if shape is None:
            return None
        frame = _entry(found, IMAGE)
        fits = _is(frame, "u", 3, 1) and frame.shape[2] == 3 and 0 < frame.size <= 3 * _MOST_PIXELS
        if not fits or (shape and frame.shape != shape):
            wanted = list(shape) if shape else "[height, width, 3]"
            raise _BadObservation(f"{IMAGE} must be uint8 {wanted}; this is {_described(frame)}.")
        return frame

    def _state(self, found: dict) -> np.ndarray | None:
        dims = self._policy.state_dim
        if dims is None:
            return None
        state = _entry(found, STATE)
        if not _is(state, "fiu", 1) or state.shape != (dims,) or not np.isfinite(state).all():
            raise _BadObservation(f"{STATE} must be {dims} finite numbers; this is {_described(state)}.")
        return state.astype(np.float32)

    def _prompt(self, found: dict) -> str:
        if not self._policy.prompted:
            return ""
        prompt = _entry(found, PROMPT)
        if not isinstance(prompt, str):
            raise _BadObservation(f"{PROMPT} must be a text; this is {_described(prompt)}.")
        if len(prompt) > _LONGEST_PROMPT:
            raise _BadObservation(f"{PROMPT} has more than {_LONGEST_PROMPT} characters.")
        return prompt

    async def _answer_all(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                batch = self._take()
                try:
                    actions = await asyncio.to_thread(self._act, batch)
                except Exception as error:
                    for question in batch:
                        if not question.answer.done():
                            question.answer.set_exception(error)
                    continue
                for question, own in zip(batch, actions, strict=True):
                    if not question.answer.done():  # its connection may be gone
                        question.answer.set_result(own)

    def _take(self) -> list[_Question]:
        """Takes those that can be answered together with the one that waits longest."""
        company = self._waiting[0].company
        batch = [question for question in self._waiting if question.company == company]
        batch = sorted(batch[:_LARGEST_BATCH], key=lambda question: question.number)
        if batch[0].key is not None:  # samples follow from the number of the first frame: no gaps
            rest = (i for i in range(1, len(batch)) if batch[i].number != batch[0].number + i)
            batch = batch[: next(rest, len(batch))]
        taken = set(map(id, batch))
        self._waiting = deque(question for question in self._waiting if id(question) not in taken)
        return batch

    def _act(self, batch: list[_Question]) -> list[np.ndarray]:
        """The answers: [H, A] each, or [S, H, A] where a key was given."""
        first = batch[0]
        size = 1 << (len(batch) - 1).bit_length()  # so that few sizes are compiled
        rows = np.minimum(np.arange(size), len(batch) - 1)
        frames = None if first.frame is None else np.stack([question.frame for question in batch])[rows]
        states = None if first.state is None else np.stack([question.state for question in batch])[rows]
        actions = self._policy.act(frames, states, first.prompt, first.key, first.samples, first.number, first.steps)
        return [actions[0, i] if first.key is None else actions[:, i] for i in range(len(batch))]


def _entry(found: dict, name: str) -> Any:
    if name not in found:
        there = ", ".join(map(str, found))[:200] or "nothing"
        raise _BadObservation(f"The observation holds no {name!r}; it holds {there}.")
    return found[name]


def _is(value: Any, kinds: str, dimensions: int, itemsize: int | None = None) -> bool:
    fits = isinstance(value, np.ndarray) and value.dtype.kind in kinds and value.ndim == dimensions
    return fits and itemsize in (None, value.dtype.itemsize)


def _described(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
