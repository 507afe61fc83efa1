"""GR00T's ZeroMQ, from the asking end: implements `protocol.PolicyProtocol`."""

import asyncio
import contextlib
from typing import Any
from urllib.parse import urlsplit

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from rpd_jax.errors import UserError
from rpd_jax.policy_server import groot_wire
from rpd_jax.policy_server.groot_wire import Modality
from rpd_jax.policy_server.protocol import Lost, cause, failed, first_word, refuses_key
from rpd_jax.policy_server.wire import MAX_MESSAGE, WireError

PORT = 5555  # if an address names none
_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | _REFUSED
_OTHER_MECHANISM = zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
_ENCRYPTED = "its ZeroMQ wants an encrypted connection"
# The signature, ten bytes, and version 3.0: a peer answers with the rest of its own greeting, and closes when it hears
# of another mechanism than its own.
_GREETING, _REST = b"\xff" + bytes(8) + b"\x7f\x03\x00", 54
_MECHANISM = slice(2, 22)  # of that rest
_REST_OF_GREETING = 2.0  # seconds
# libzmq closes a connection for both reasons, and does not say which.
_CLOSED = ("the connection was closed", f" (or answers more than {MAX_MESSAGE >> 20} MiB)")


class Groot:
    """Speaks to servers at tcp://host:port.

    Args:
        token: sent with each request, or None.
    """

    def __init__(self, token: str | None):
        self._token, self._context = token, zmq.asyncio.Context()

    async def connect(self, address: str) -> tuple["_GrootLink", dict[str, Modality]]:
        """See `protocol.PolicyProtocol`; what a server says of itself is its modalities by name, or nothing."""
        place = await self._greeted(address)
        link = _GrootLink(self._context, address, self._token)
        try:
            await link.open(place)
            return link, await link.modalities()
        except BaseException:
            link.abort()
            raise

    def identity(self, said: dict[str, Modality]) -> dict[str, str]:
        """See `protocol.PolicyProtocol`."""
        return {kind: f"{', '.join(one.names)} (moments: {one.moments})" for kind, one in said.items()}

    async def stranger(self, address: str) -> UserError | None:
        """See `protocol.PolicyProtocol`: a server of HTTP, and so a WebSocket, waits for a question."""
        answer = await first_word(*_host_and_port(address), b"GET / HTTP/1.0\r\n\r\n")
        return _no_policy_server(address, "it speaks HTTP") if answer.startswith(b"HTTP/") else None

    def close(self) -> None:
        """See `protocol.PolicyProtocol`."""
        self._context.destroy(linger=0)

    async def _greeted(self, address: str) -> str:
        """Where to connect, once somebody there has greeted as ZeroMQ does, without encryption (RFC 23).

        libzmq itself does not always say why there is no connection.
        """
        host, port = _host_and_port(address)
        writer, rest = None, b""
        try:
            reader, writer = await asyncio.open_connection(host, port)
            first = await reader.readexactly(10)
            if first[0] != 0xFF or first[9] != 0x7F:
                raise _no_policy_server(address, f"it speaks first, with {first!r}")
            writer.write(_GREETING)
            # Without the rest, as from an older ZeroMQ, libzmq will find out.
            with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(_REST_OF_GREETING):
                    rest = await reader.readexactly(_REST)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise _no_policy_server(address, f"it speaks first, with {error.partial!r}") from None
            raise Lost("the connection was closed") from None
        except OSError as error:
            raise Lost(cause(error)) from None
        finally:
            if writer is not None:
                writer.close()
        if rest and rest[_MECHANISM].rstrip(b"\0") != b"NULL":
            raise _no_policy_server(address, _ENCRYPTED)
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


class _GrootLink:
    """See `protocol.Link`; one that is lost is not made again by libzmq, which would wait for its answer for ever."""

    def __init__(self, context: zmq.asyncio.Context, address: str, token: str | None):
        self._address, self._token, self._msgpack_numpy = address, token, False
        self._lost: asyncio.Task | None = None
        self._socket = context.socket(zmq.REQ)
        self._socket.linger = 0
        self._socket.ipv6 = True
        self._socket.reconnect_ivl = -1
        self._socket.maxmsgsize = MAX_MESSAGE
        self._monitor = self._socket.get_monitor_socket(_EVENTS)

    async def open(self, place: str) -> None:
        """Connects; raises Lost if nobody shakes hands."""
        self._socket.connect(place)
        event, number = await self._event()
        if event & _REFUSED:
            encrypted = event != zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL or number == _OTHER_MECHANISM
            why = _ENCRYPTED if encrypted else "it does not shake hands as ZeroMQ does"
            raise _no_policy_server(self._address, why)
        if event != zmq.EVENT_HANDSHAKE_SUCCEEDED:
            raise Lost("its ZeroMQ closes the connection of one who asks for answers")
        self._lost = asyncio.create_task(self._event())

    async def modalities(self) -> dict[str, Modality]:
        """Asks what the policy sees and gives; {} where a server does not know that question."""
        found = await self._call({"endpoint": "get_modality_config"})
        if isinstance(found, dict) and str(found.get("error", "")).startswith("Unknown endpoint"):
            return {}
        self._raise_error(found)
        if not isinstance(found, dict) or not all(isinstance(one, Modality) for one in found.values()):
            raise UserError(
                f"{self._address} does not say what its policy sees: it is no policy server of GR00T's protocol, so "
                "mend teacher.address."
            )
        self._msgpack_numpy = any(one.msgpack_numpy for one in found.values())
        return found

    async def ask(self, message: Any) -> Any:
        """Asks for the actions of an observation."""
        answer = await self._call({"endpoint": "get_action", "data": {"observation": message, "options": None}})
        self._raise_error(answer)
        return answer

    def abort(self) -> None:
        if self._lost is not None:
            self._lost.cancel()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)

    async def _event(self) -> tuple[int, int]:
        """The next event of the connection, and its number, such as an error's."""
        found = parse_monitor_message(await self._monitor.recv_multipart())
        return found["event"], found["value"]

    async def _call(self, request: dict) -> Any:
        if self._token:
            request["api_token"] = self._token
        message = groot_wire.encode(request, msgpack_numpy=self._msgpack_numpy)
        exchange = asyncio.create_task(self._exchange(message))
        try:
            await asyncio.wait({exchange, self._lost}, return_when=asyncio.FIRST_COMPLETED)
            if not exchange.done():
                raise Lost(*_CLOSED)
            answer = exchange.result()
        finally:
            exchange.cancel()
        if answer == [b"ERROR"]:  # of servers before N1.6
            return {"error": "ERROR"}
        try:
            return groot_wire.decode(b"".join(answer))
        except WireError as error:
            raise UserError(
                f"{self._address} sent {error}: it does not keep GR00T's protocol, so mend teacher.address, or that "
                "server."
            ) from None

    async def _exchange(self, message: bytes) -> list[bytes]:
        await self._socket.send(message)
        return await self._socket.recv_multipart()

    def _raise_error(self, answer: Any) -> None:
        if not isinstance(answer, dict) or "error" not in answer:
            return
        text = str(answer["error"])
        if text.startswith("Unauthorized"):
            raise refuses_key(self._address, text[:100])
        raise failed(self._address, text)


def _host_and_port(address: str) -> tuple[str, int]:
    try:
        place = urlsplit(address)
        if place.scheme == "tcp" and place.hostname:
            return place.hostname, place.port or PORT
    except ValueError:  # a port beyond 65535, brackets that do not close
        pass
    raise UserError(f"{address} is no address of GR00T's protocol: give teacher.address as tcp://host:{PORT}.")


def _no_policy_server(address: str, why: str) -> UserError:
    return UserError(
        f"{address} is no policy server of GR00T's protocol ({why}): give teacher.address one, such as "
        f"tcp://127.0.0.1:{PORT}."
    )
