"""openpi's own server with a small policy: openpi_peer.py BEHAVIOUR [PORT], run by what `make openpi-env` makes.

Its action says what it was shown: the first pixel's red, green and blue, the prompt's length, width and height, 1.
One that "tells the state" answers with the state instead, seven numbers an action.
"""

import asyncio
import socket
import sys
import time

import numpy as np
import openpi_server.websocket_policy_server as openpi


class Policy:
    def __init__(self, behaviour):
        self.behaviour, self.calls = behaviour, 0

    def infer(self, observation):
        self.calls += 1
        image = observation["observation/image"]
        first = [*image[0, 0] / 255, len(observation["prompt"]) / 100, image.shape[1] / 100, image.shape[0] / 100, 1.0]
        actions = np.stack([np.array(first, np.float32), np.full(7, 9, np.float32)])
        if self.behaviour == "tells the state":
            state = observation["observation/state"]
            assert state.dtype == np.float32 and state.ndim == 1, state
            actions = np.pad(state, (0, -len(state) % 7)).reshape(-1, 7)
        if self.behaviour == "raises":
            raise KeyError("observation/wrist_image")
        if self.behaviour == "fails":
            assert observation["observation/state"].shape == (9,)
        if self.behaviour == "fails" and self.calls > 80:
            raise RuntimeError("out of luck")
        if self.behaviour == "slow":
            time.sleep(60)
        if self.behaviour in ("50 ms", "50 ms, told"):
            begin = time.monotonic()
            time.sleep(0.05)
        if self.behaviour == "50 ms, told":
            print(begin, time.monotonic(), flush=True)
        if self.behaviour == "NaN":
            actions[0, 3] = np.nan
        if self.behaviour == "eight numbers":
            actions = np.zeros((2, 8), np.float32)
        if self.behaviour == "no chunk":
            actions = actions[:0]
        if self.behaviour == "text":
            actions = np.array([["a"] * 7])
        if self.behaviour == "one action":
            actions = actions[0].astype(np.float64)
        if self.behaviour == "other key":
            return {"action": actions}
        return {"actions": actions, "policy_timing": {"infer_ms": np.float64(1.0)}}


def main(behaviour, port=0):
    with socket.create_server(("127.0.0.1", int(port))) as listener:
        port = listener.getsockname()[1]
    metadata = {"action_dim": 8} if behaviour == "says eight" else {"action_horizon": 2, "policy": "small"}
    server = openpi.WebsocketPolicyServer(Policy(behaviour), "127.0.0.1", port, metadata)

    async def announced():
        task = asyncio.create_task(server.run())
        await asyncio.sleep(0.3)
        print(f"listening {port}", flush=True)
        await task

    asyncio.run(announced())


if __name__ == "__main__":
    main(*sys.argv[1:])
