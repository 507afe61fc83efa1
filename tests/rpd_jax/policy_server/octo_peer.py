"""openpi's own server with an Octo of ours: octo_peer.py CHECKPOINT SITE_PACKAGES.

Run by this project's interpreter; of openpi's environment it takes the server's code alone.
"""

import asyncio
import socket
import sys

import jax
import numpy as np

from octo_teacher.teacher import OctoTeacher

sys.path.append(sys.argv[2])
import openpi_server.websocket_policy_server as openpi


class Policy:
    def __init__(self, checkpoint):
        self.teacher = OctoTeacher.load(checkpoint)

    def infer(self, observation):
        key = jax.random.wrap_key_data(observation["rpd/key"])
        frames, samples = observation["observation/image"][None], observation["rpd/samples"]
        actions = self.teacher.act(frames, observation["prompt"], key, samples, observation["rpd/frame"])
        return {"actions": np.asarray(actions)}  # [samples, 1, 7]


def main(checkpoint):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = openpi.WebsocketPolicyServer(Policy(checkpoint), "127.0.0.1", port, {"rpd/seeded": 1})

    async def announced():
        task = asyncio.create_task(server.run())
        await asyncio.sleep(0.3)
        print(f"listening {port}", flush=True)
        await task

    asyncio.run(announced())


if __name__ == "__main__":
    main(sys.argv[1])
