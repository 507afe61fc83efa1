"""openpi's WebSocket, from the asking end: implements `protocol.PolicyProtocol`."""

from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, WebSocketException

from rpd_jax.errors import UserError
from rpd_jax.policy_server import wire
from rpd_jax.policy_server.protocol import Lost, cause, failed, first_word, refuses_key
from rpd_jax.policy_server.seeding import SEEDED

# Of HTTP: a proxy in front of a server that is about to come back.
_FOR_NOW = (502, 503, 504)
# With these codes our end closes a connection whose other end broke the rules (RFC 6455, section 7.4.1).
_BROKEN_RULES = (1002, 1003, 1007)
_TOO_BIG = 1009
# What a teacher reads of a server's metadata, and the name that ours give.
_IDENTITY = ("policy", "action_dim", "action_horizon", SEEDED)


class _ImpatientConnection(ClientConnection):
    """Does not wait for a server that broke the rules to close the connection."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.protocol.parser_exc is not None:
            self.transport.abort()


class OpenPi:
    """Speaks to servers at ws://host:port or wss://host:port.

    Args:
        api_key: for the header `Authorization: Api-Key KEY`, or None.
    """

    def __init__(self, api_key: str | None):
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None

    async def connect(self, address: str) -> tuple["_OpenPiLink", dict]:
        """See `protocol.PolicyProtocol`; what a server says of itself is its metadata."""
        link = None
        try:
            # No pings: a server that computes in its event loop, as openpi's does, answers none meanwhile. And no
            # proxy: these are machines nearby.
            socket = await connect(
                address,
                additional_headers=self._headers,
                compression=None,
                max_size=wire.MAX_MESSAGE,
                open_timeout=None,
                ping_interval=None,
                proxy=None,
                create_connection=_ImpatientConnection,
                close_timeout=1.0,
            ).__aenter__()
            link = _OpenPiLink(socket, address)
            metadata = _content(await socket.recv(), address)
            if not isinstance(metadata, dict):
                raise UserError(
                    f"{address} introduces itself with a {type(metadata).__name__} instead of a map: it is no policy "
                    "server of openpi's protocol, so mend teacher.address."
                )
        except BaseException as error:
            if link is not None:
                link.abort()
            raise _explained(error, address) from None
        return link, metadata

    def identity(self, said: dict) -> dict[str, str]:
        """See `protocol.PolicyProtocol`."""
        return {name: repr(said.get(name)) for name in _IDENTITY}

    async def stranger(self, address: str) -> UserError | None:
        """See `protocol.PolicyProtocol`: a WebSocket says nothing first, ZeroMQ (GR00T's) its greeting."""
        place = urlsplit(address)
        first = await first_word(place.hostname, place.port or (443 if place.scheme == "wss" else 80))
        return _no_policy_server(address, f"it speaks first, with {first!r}") if first else None

    def close(self) -> None:
        """Links share nothing."""


class _OpenPiLink:
    """See `protocol.Link`."""

    def __init__(self, socket: ClientConnection, address: str):
        self._socket, self._address = socket, address

    async def ask(self, message: Any) -> Any:
        try:
            await self._socket.send(wire.encode(message))
            return _content(await self._socket.recv(), self._address)
        except (OSError, WebSocketException) as error:
            raise _explained(error, self._address) from None

    def abort(self) -> None:
        self._socket.transport.abort()


def _explained(error: BaseException, address: str) -> BaseException:
    """What an error of a connection means: Lost, if another attempt may succeed, or a UserError."""
    if isinstance(error, TimeoutError):
        return Lost("it does not answer")
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        if status in (401, 403):
            return refuses_key(address, f"HTTP {status}")
        if status in _FOR_NOW:
            return Lost(f"HTTP {status}")
        return _no_policy_server(address, f"HTTP {status}")
    if isinstance(error, ConnectionClosed):
        code = error.sent.code if error.sent else None
        if code == _TOO_BIG:
            return UserError(
                f"{address} sent a message of more than {wire.MAX_MESSAGE >> 20} MiB, which no policy's answer is: "
                "mend teacher.address, or that server."
            )
        if code in _BROKEN_RULES:
            return _no_policy_server(address, error.sent.reason or "no WebSocket")
        return Lost("the connection was closed")
    if isinstance(error, OSError):
        return Lost(cause(error))
    if isinstance(error, InvalidMessage) and isinstance(error.__cause__, EOFError | ConnectionError):
        return Lost(str(error).split("\n")[0])
    if isinstance(error, InvalidHandshake | WebSocketException):
        return _no_policy_server(address, str(error.__cause__ or error).split("\n")[0])
    return error


def _content(frame: bytes | str, address: str) -> Any:
    """What a message holds; a text is the server's error."""
    if isinstance(frame, str):
        raise failed(address, frame)
    try:
        return wire.decode(frame)
    except wire.WireError as error:
        raise UserError(
            f"{address} sent {error}: it does not keep openpi's protocol, so mend teacher.address, or that server."
        ) from None


def _no_policy_server(address: str, cause: str) -> UserError:
    return UserError(
        f"{address} is no policy server of openpi's protocol ({cause}): give teacher.address one, such as "
        "ws://127.0.0.1:8000."
    )
