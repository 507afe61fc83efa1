"""How busy a policy server that needs 50 ms a call is kept while environments step: by 1, 4 and 16 connections.

python tests/benchmarks/busy_server.py [--num_envs=16] [--steps=20] [--connections=1,4,16] [--repeats=3]

The server is openpi's own (`make openpi-env`) and computes one frame at a time, by sleeping; simulator, client and
server share this machine's processors. Frames of each step are asked for as training does with teacher.overlap. Busy is
the share of the time from the first frame asked for until the last environment's step in which the server computes; the
rest is its own reading and writing of messages, and waiting for the next one. The numbers of connections take turns.
"""

import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from configs import default
from rpd_jax.envs.factory import make_vector_env
from rpd_jax.policy_server.observation import ObservationMap
from rpd_jax.policy_server.served import Servers
from rpd_jax.policy_server.teacher import PolicyServerTeacher

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "rpd_jax" / "policy_server"))
from peers import openpi_python, peer  # noqa: E402

_NUM_ENVS = flags.DEFINE_integer("num_envs", 16, "Environments.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 20, "Steps of each environment in a round.", lower_bound=1)
_CONNECTIONS = flags.DEFINE_list("connections", ["1", "4", "16"], "Connections, separated by commas.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Rounds.", lower_bound=1)


def main(_):
    config = default.get_config().env
    config.update(image_size=128, mesh_detail=0.15, backend="cpu")
    envs = make_vector_env(config, _NUM_ENVS.value)
    counts = [int(count) for count in _CONNECTIONS.value]
    shares, rates = ({count: [] for count in counts} for _ in range(2))
    try:
        for round_number in range(-1, _REPEATS.value):  # the first one warms up
            for count in counts:
                share, rate = busy_share(envs, count)
                if round_number >= 0:
                    shares[count].append(share)
                    rates[count].append(rate)
    finally:
        envs.close()
    print("| connections | server busy, % | steps per second meanwhile |\n|---|---|---|")
    for count in counts:
        print(f"| {count} | {statistics.median(shares[count]):.1f} | {statistics.median(rates[count]):.1f} |")


def busy_share(envs, connections):
    """Percent of the time of a rollout in which the server computes, and the rollout's steps per second."""
    actions = np.random.default_rng(0).uniform(-1, 1, (_STEPS.value, envs.num_envs, 7)).astype(np.float32)
    names = ObservationMap("observation/image", "prompt")
    with peer("openpi_peer.py", "50 ms, told", python=openpi_python()) as server:
        servers = Servers([server.address], connections, say=lambda text: None)
        teacher = PolicyServerTeacher(servers, names, gripper="signed")
        rgb, answers = envs.reset(0), []
        begin = time.monotonic()
        for action in actions:
            answers.append(teacher.begin(rgb, "push the cube", jax.random.key(0)))
            rgb = envs.step(action).rgb
        end = time.monotonic()
        for answer in answers:
            answer()
        teacher.close()
        calls = [tuple(map(float, line.split())) for line in server.lines()]  # CLOCK_MONOTONIC is the machine's
    assert len(calls) == _STEPS.value * envs.num_envs
    computed = sum(max(0.0, min(until, end) - since) for since, until in calls)
    return 100.0 * computed / (end - begin), actions[..., 0].size / (end - begin)


if __name__ == "__main__":
    app.run(main)
