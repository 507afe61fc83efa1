"""A worker that keeps the protocol until it does what the test asks: rogue_worker.py BEHAVIOUR COMMANDS MEMORY."""

import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from openvla_bridge import protocol
from openvla_bridge.ring import RingLayout, map_slots


def main(behaviour, commands, memory):
    connection = Connection(commands)
    print("out of luck", flush=True)

    def say(event, **content):
        protocol.send(connection, event=event, **content)

    if behaviour == "never greets":
        time.sleep(600)
    while True:
        message = protocol.receive(connection)
        action = message.pop("do")
        if action == "hello":
            if behaviour == "speaks no JSON":
                connection.send_bytes(b"\x80\x04K\x01.")
            if behaviour == "sends too much":
                connection.send_bytes(bytes(2 << 20))
            say("hello", version=999 if behaviour == "other version" else protocol.VERSION)
        elif action == "load":
            if behaviour == "slow but talking":
                for step in range(5):
                    time.sleep(1.3)
                    say("note", text=f"step {step}")
            if behaviour == "slow and silent":
                time.sleep(600)
            gripper = {"min": 0.0, "max": 1.0} if behaviour != "strange gripper" else "wide"
            action_dim = "seven" if behaviour == "strange ready" else 7
            say("known", action_dim=action_dim, gripper=gripper, image_size=[0, 0], state_dim=0)
            say("ready", horizon=1)
        elif action == "attach":
            slots = map_slots(memory, RingLayout(**message))
            say("attached")
        else:
            count, actions = message["count"], slots[message["slot"]].actions
            actions[:] = slots[message["slot"]].frames[:, :1, 0, :1] / 255.0
            if behaviour == "dies":
                os._exit(3)
            if behaviour == "writes NaN":
                actions[:, count - 1, 0, 3] = float("nan")
            if behaviour == "writes large numbers":
                actions[:, 0, 0] = 1.5
            seconds = 0.001 * count
            if behaviour == "slower":
                time.sleep(0.02 * count)
                seconds = 0.02 * count
            answer = {"slot": message["slot"], "count": count, "seconds": seconds, "other_tokens": 0}
            if behaviour == "answers too few":
                answer["count"] -= 1
            if behaviour == "answers another slot":
                answer["slot"] += 1
            if behaviour == "answers without count":
                del answer["count"]
            say("done", **answer)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
