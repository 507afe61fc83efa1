"""What `Connections` needs of a protocol, and how it is told that a connection is gone."""

import asyncio
import errno
import os
from typing import Any, Protocol

from rpd_jax.errors import UserError
from rpd_jax.policy_server.api_key import VARIABLE

PATIENCE = 2.0  # seconds that a server takes to answer until that is told


class Lost(Exception):
    """A connection that may be made again; says why it is gone.

    Args:
        why: in a few words.
        perhaps: what else may be behind that, for a sentence: " or ..."; "" if nothing.
    """

    def __init__(self, why: str, perhaps: str = ""):
        super().__init__(why)
        self.perhaps = perhaps


class Link(Protocol):
    """A connection to one server, which answers one request at a time."""

    async def ask(self, message: Any) -> Any:
        """Sends a request and returns its answer, both decoded.

        Raises Lost, or a UserError where no other try helps.
        """

    def abort(self) -> None:
        """Closes it without a farewell."""


class PolicyProtocol(Protocol):
    """How a kind of policy server is spoken to; all of it runs in the thread of `Connections`."""

    async def connect(self, address: str) -> tuple[Link, dict]:
        """One attempt: a link to a server that has introduced itself, and what it said.

        Raises Lost where another attempt may succeed, a UserError where none will.
        """

    def identity(self, said: dict) -> dict[str, str]:
        """What tells policies apart in what a server said of itself: its points, each with what it said to that."""

    async def stranger(self, address: str) -> UserError | None:
        """Why a server that takes long to answer is none of this protocol; None if it may be one."""

    def close(self) -> None:
        """Releases what all links share, after they were aborted."""


def failed(address: str, text: str) -> UserError:
    """The sentence for what a server says of its own failure, at length in `details`."""
    last = text.strip().splitlines()[-1].strip() if text.strip() else "an empty text"
    return UserError(
        f"{address} failed ({last[:300]}): see what that server says, and whether teacher.observation has the names "
        "that its policy wants.",
        details=text,
    )


def refuses_key(address: str, why: str) -> UserError:
    """The sentence for a server that wants another API key."""
    return UserError(
        f"{address} refuses the API key ({why}): put the right one in the file that teacher.api_key_file names, or in "
        f"{VARIABLE}."
    )


def cause(error: OSError) -> str:
    """What the operating system says of an error, in a few words."""
    told = os.strerror(error.errno).lower() if error.errno in errno.errorcode else str(error)
    return (told or "the connection was closed").split("\n")[0]


async def first_word(host: str, port: int, question: bytes = b"") -> bytes:
    """What a server says to somebody who says nothing, or what it answers to a question; b"" where that is nothing."""
    writer = None
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(question)
            return await reader.read(10)
    except OSError:  # TimeoutError is one
        return b""
    finally:
        if writer is not None:
            writer.close()
