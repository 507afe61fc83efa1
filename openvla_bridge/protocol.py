"""What client and worker say to each other: JSON messages over a Unix socket pair, arrays in shared memory.

The client starts `python -m openvla_bridge.worker COMMANDS MEMORY` with two inherited file descriptors: its end of the
socket pair, and memory without a name. Only the standard library is imported here, so that a worker whose environment
lacks everything else can still say so.

Client to worker, {"do": ...}:
    hello    version, die_with_parent           must come first
    load     model, checkpoint, device, precision, batch_size, threads, options: model is "openvla" or "lerobot",
             options are what its `load` takes besides
    attach   slots, batch, height, width, samples, action_dim, steps, state_dim: see `ring.RingLayout`
    label    slot, count, instruction, samples, steps, temperature, gripper, sampled: frames, states and, if sampled,
             uniforms of a slot to actions in it; see `request.Request`
    echo     slot: is only answered
Worker to client, {"event": ...}:
    hello    version
    note     text: progress, for the user to see; comes at any time
    known    what `request.Known` has            the first answer to load, before weights are read
    ready    horizon: actions of a chunk        the second answer to load
    attached                                    the answer to attach
    done     slot, count, seconds, other_tokens the answer to label and echo, in their order
    error    text, user: whether the text alone tells the user what to do
"""

import json
from multiprocessing.connection import Connection
from typing import Any

VERSION = 3
MAX_MESSAGE = 1 << 20


class ProtocolError(Exception):
    """The other side said something that is not in the protocol."""


def send(connection: Connection, **message: Any) -> None:
    """Sends one message; raises OSError if the other side is gone."""
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection) -> dict[str, Any]:
    """Waits for one message.

    Raises:
        EOFError, ConnectionError: the other side is gone.
        ProtocolError: it is no JSON object, or too long.
    """
    try:
        data = connection.recv_bytes(MAX_MESSAGE)
    except ConnectionError:
        raise
    except OSError as error:
        raise ProtocolError(f"a message of more than {MAX_MESSAGE} bytes") from error
    try:
        message = json.loads(data)
    except ValueError:
        raise ProtocolError(f"{data[:40]!r}, which is not JSON") from None
    if not isinstance(message, dict):
        raise ProtocolError(f"{data[:40]!r}, which is no JSON object")
    return message
