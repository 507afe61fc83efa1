"""A server that keeps openpi's protocol until it does what the test asks: rogue_peer.py BEHAVIOUR [PORT]."""

import asyncio
import sys

import msgpack
import numpy as np
from websockets.asyncio.server import serve

from rpd_jax.policy_server import wire

ANSWER = wire.encode({"actions": np.zeros((2, 7), np.float32)})


def answer_of(behaviour):
    huge = {b"__ndarray__": True, b"data": bytes(56), b"dtype": "<f4", b"shape": [2**40]}
    return {
        "claims 2^40 numbers": msgpack.packb({"actions": huge}),
        "sends too much": bytes(wire.MAX_MESSAGE + 1),
        "sends no msgpack": b"\xc1",
        "sends a list": wire.encode([1.0] * 7),
        "sends an empty text": "",
    }.get(behaviour, ANSWER)


async def handle(socket, behaviour):
    await socket.send(
        {
            "introduces itself as a list": wire.encode(["pi0"]),
            "introduces itself as text": "Traceback:\nValueError: no weights",
            "introduces itself as a pickle": b"\x80\x04K\x01.",
            "says seven": wire.encode({"action_dim": "seven"}),
            "is iteration 3": wire.encode({"policy": "run, iteration 3", "started": 3.5}),
            "is iteration 3 anew": wire.encode({"policy": "run, iteration 3", "started": 7.5}),
            "is iteration 4": wire.encode({"policy": "run, iteration 4"}),
            "is seeded": wire.encode({"rpd/seeded": 1}),
        }.get(behaviour, wire.encode({}))
    )
    count = 0
    async for _ in socket:
        if behaviour == "closes after 7":
            count += 1
        if behaviour == "closes at once":
            return
        if behaviour == "a second each":
            await asyncio.sleep(1.0)
        await socket.send(answer_of(behaviour))
        if count == 7:
            return


def allow(connection, request, behaviour):
    if behaviour == "wants a key" and request.headers.get("Authorization") != "Api-Key right":
        return connection.respond(401, "no\n")
    return connection.respond(418, "a teapot\n") if behaviour == "is a teapot" else None


async def speak_raw(reader, writer, behaviour):
    """No WebSocket, or one whose frame claims 2^40 bytes."""
    if behaviour == "is a GR00T server":  # ZeroMQ greets with this, and waits for the same
        writer.write(b"\xff" + bytes(7) + b"\x01\x7f")
        await reader.read()
        return
    request = await reader.readuntil(b"\r\n\r\n")
    if behaviour == "claims 2^40 bytes":
        from websockets.utils import accept_key

        (key,) = (line.split(": ")[1] for line in request.decode().split("\r\n") if "sec-websocket-key" in line.lower())
        head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write(f"{head}Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n".encode())
        writer.write(b"\x82\x7f" + (2**40).to_bytes(8, "big"))
    await writer.drain()
    await reader.read()
    writer.close()


async def main(behaviour, port=0):
    if behaviour in ("is a GR00T server", "claims 2^40 bytes"):
        server = await asyncio.start_server(lambda *ends: speak_raw(*ends, behaviour), "127.0.0.1", int(port))
    else:
        server = await serve(
            lambda socket: handle(socket, behaviour),
            "127.0.0.1",
            int(port),
            compression=None,
            max_size=None,
            process_request=lambda *request: allow(*request, behaviour),
        )
    print(f"listening {server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
