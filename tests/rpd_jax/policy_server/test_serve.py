"""Our teachers and students behind openpi's protocol, asked by openpi's own client and by a teacher of ours."""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import jax
import numpy as np
import pytest
from peers import ROOT, random_frames
from random_student import STATE_DIM, make_run

from octo_teacher.teacher import OctoTeacher
from rpd_jax.errors import UserError
from rpd_jax.policy_server.server import PolicyServer, ServedPolicy, listen_at

KEY = jax.random.key(3)

# Asks for actions as the robots of openpi's users do: for each line of JSON, the answer or the error.
OPENPI_CLIENT = """
import json, sys
import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy
policy = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]), *sys.argv[2:])
print(json.dumps(policy.get_server_metadata()), flush=True)
for line in sys.stdin:
    observation = json.loads(line)
    if "frame" in observation:
        observation["observation/image"] = np.array(observation.pop("frame"), np.uint8)
    if "state" in observation:
        observation["observation/state"] = np.array(observation.pop("state"), np.float64)
    try:
        answer = policy.infer(observation)
        answer["actions"] = [str(answer["actions"].dtype), answer["actions"].tolist()]
        print(json.dumps(answer), flush=True)
    except RuntimeError as error:
        print(json.dumps(str(error)), flush=True)
        policy = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]), *sys.argv[2:])
"""


class Served:
    """`python -m rpd_jax.serve` with arguments, on a free port."""

    def __init__(self, *arguments, **environment):
        command = [sys.executable, "-m", "rpd_jax.serve", "--port=0", *map(str, arguments)]
        environment = {**os.environ, **environment}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        self.line = self.process.stdout.readline()
        self.port = int(re.search(r":(\d+);", self.line)[1])
        self.address = f"ws://127.0.0.1:{self.port}"

    def close(self):
        self.process.terminate()
        assert self.process.wait(60) == 130
        self.process.stdout.close()


@pytest.fixture(scope="module")
def octo_server(micro_octo):
    server = Served(f"--teacher={micro_octo}")
    yield server
    server.close()


@pytest.fixture
def asked(python_of_openpi):
    """A function that asks a server through openpi's own client; returns its metadata and its answers."""

    def ask(port, *observations, key=()):
        lines = "".join(json.dumps(observation) + "\n" for observation in observations)
        command = [python_of_openpi, "-c", OPENPI_CLIENT, str(port), *key]
        run = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
        return [json.loads(line) for line in run.stdout.splitlines()]

    return ask


def test_labels_through_our_server_are_those_in_process(octo_server, micro_octo, teacher_of):
    here, frames = OctoTeacher.load(micro_octo, chunk_size=1), random_frames(21)
    expected = here.act(frames, "push the cube", KEY, 3, 5)
    alone = teacher_of(octo_server.address, connections=1, gripper="auto")
    np.testing.assert_array_equal(alone.act(frames, "push the cube", KEY, 3, 5), expected)
    assert alone.horizon == 4
    chunks = alone.act(frames, "push the cube", KEY, 2, 5, steps=3)
    np.testing.assert_array_equal(chunks, here.act(frames, "push the cube", KEY, 2, 5, steps=3))
    # Gathered from several connections they differ as differently sized batches do in process.
    together = teacher_of(octo_server.address, connections=4, gripper="auto")
    np.testing.assert_allclose(together.act(frames, "push the cube", KEY, 3, 5), expected, atol=1e-4)


def test_openpi_s_own_client_is_answered(octo_server, micro_octo, asked):
    frame = np.asarray(random_frames(1)[0])
    observation = {"frame": frame.tolist(), "prompt": "push the cube", "what/else": [1, 2]}
    metadata, first, second = asked(octo_server.port, observation, observation)
    assert metadata == {"policy": str(micro_octo), "action_dim": 7, "action_horizon": 4, "rpd/seeded": 1}
    assert first["actions"][0] == "float32" and np.shape(first["actions"][1]) == (4, 7)
    assert np.abs(first["actions"][1]).max() <= 1.0 and first["server_timing"]["infer_ms"] > 0
    assert first["actions"] != second["actions"]  # each question has noise of its own


@pytest.mark.parametrize("observation", ["rgb", "rgb+state"])
def test_a_student_is_served(observation, tmp_path, asked):
    network, params = make_run(tmp_path / "run", observation)
    frames, states = np.asarray(random_frames(2, 40, 40)), np.random.default_rng(0).normal(size=(2, STATE_DIM))
    questions = [{"frame": frame.tolist()} for frame in frames]
    if "state" in observation:
        questions = [question | {"state": state.tolist()} for question, state in zip(questions, states, strict=True)]
    server = Served(f"--run={tmp_path / 'run'}")
    try:
        metadata, *answers, wrong_size = asked(server.port, *questions, {"frame": frames[0, :, :30].tolist()})
    finally:
        server.close()
    assert (metadata["policy"], metadata["image_size"]) == ("run, iteration 3", [40, 40])
    states = states.astype(np.float32) if "state" in observation else None
    expected = np.clip(network.apply(params, frames, states)[0], -1.0, 1.0)
    np.testing.assert_allclose([answer["actions"][1][0] for answer in answers], expected, atol=1e-5)
    if "state" in observation:  # other clients do not have it as the teacher's own settings mean it
        command = [sys.executable, "-m", "rpd_jax.serve", f"--teacher={tmp_path / 'run'}"]
        refused = subprocess.run([*command, "--config.teacher.name=student"], cwd=ROOT, capture_output=True, text=True)
        assert refused.returncode == 2 and "sees the simulator's state: serve a student by --run" in refused.stderr
    assert wrong_size.endswith("observation/image must be uint8 [40, 40, 3]; this is uint8 [40, 30, 3].")


SMALL = np.zeros((8, 8, 3)).tolist()
BAD_OBSERVATIONS = {
    "no frame": ({"prompt": "push"}, "The observation holds no 'observation/image'; it holds prompt."),
    "grey": ({"frame": np.zeros((8, 8)).tolist()}, "must be uint8 [height, width, 3]; this is uint8 [8, 8]."),
    "empty": ({"frame": np.zeros((0, 8, 3)).tolist()}, "must be uint8 [height, width, 3]; this is uint8 [0]."),
    "a text": ({"observation/image": "me"}, "must be uint8 [height, width, 3]; this is a str."),
    "a key that is none": (
        {"frame": SMALL, "rpd/key": [1, 2], "rpd/frame": 0},
        "rpd/key must be the words of a random key (uint32), rpd/frame a whole number.",
    ),
    "more than a chunk": ({"rpd/steps": 5}, "rpd/steps must be a whole number from 1 to 4."),
    "many samples": ({"rpd/samples": 10**9}, "rpd/samples must be a whole number from 1 to 1000."),
    "no prompt": (
        {"frame": SMALL, "task": "push"},
        "The observation holds no 'prompt'; it holds task, observation/image.",
    ),
    "no text": ({"frame": SMALL, "prompt": None}, "prompt must be a text; this is a NoneType."),
    "several prompts": ({"frame": SMALL, "prompt": ["push", "pull"]}, "prompt must be a text; this is a list."),
    "a long prompt": ({"frame": SMALL, "prompt": "push" * 10**4}, "prompt has more than 4096 characters."),
}


def test_a_bad_observation_is_told_and_the_server_goes_on(octo_server, asked):
    good = {"frame": np.zeros((32, 32, 3)).tolist(), "prompt": "push"}
    _, *answers, last = asked(octo_server.port, *(bad for bad, _ in BAD_OBSERVATIONS.values()), good)
    for answer, (_, sentence) in zip(answers, BAD_OBSERVATIONS.values(), strict=True):
        assert answer.startswith("Error in inference server:\n") and answer.endswith(sentence), answer
    assert np.shape(last["actions"][1]) == (4, 7)


def test_requests_of_several_connections_go_through_the_policy_together(teacher_of):
    """While a policy computes for 20 ms the requests of all others arrive; each gets the answer to its own."""
    sizes = []

    def act(frames, states, instruction, words, samples, number, steps):
        sizes.append(len(frames))
        time.sleep(0.02)
        actions = np.pad(frames[:, None, 0, 0] / np.float32(255), ((0, 0), (0, 0), (0, 4)))
        return np.broadcast_to(actions, (samples, len(frames), 1, 7))

    policy = ServedPolicy(act, {"rpd/seeded": 1}, frame_shape=(), state_dim=None, prompted=True)
    listener = listen_at("127.0.0.1", 0)
    threading.Thread(target=lambda: asyncio.run(PolicyServer(policy, None).run(listener)), daemon=True).start()
    address, frames = f"ws://127.0.0.1:{listener.getsockname()[1]}", random_frames(160)
    actions = teacher_of(address, connections=16, gripper="auto").act(frames, "push", KEY, 2)
    np.testing.assert_allclose(actions[:, :, :3], np.asarray(frames)[None, :, 0, 0].repeat(2, 0) / 255, rtol=1e-6)
    assert len(sizes) < 30  # 160 one by one; 10 or 11 if nobody is ever late
    assert set(sizes) <= {1, 2, 4, 8, 16}


def test_health_is_told_without_a_key_and_nothing_else_is(micro_octo, asked, teacher_of, tmp_path):
    key = tmp_path / "key"
    key.write_text("open-sesame\n")
    server = Served(f"--teacher={micro_octo}", "--host=0.0.0.0", f"--api_key_file={key}")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz") as answer:
            assert (answer.status, answer.read()) == (200, b"OK\n")
        with pytest.raises(UserError, match=r"refuses the API key \(HTTP 401\)"):
            teacher_of(server.address, api_key="sesame")
        with pytest.raises(UserError, match=r"refuses the API key \(HTTP 401\)"):
            teacher_of(server.address)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/")
        observation = {"frame": np.zeros((32, 32, 3)).tolist(), "prompt": "push"}
        assert np.shape(asked(server.port, observation, key=["open-sesame"])[1]["actions"][1]) == (4, 7)
    finally:
        server.close()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--host=0.0.0.0"], "--host=0.0.0.0 lets other machines in, which needs an API key: put one in a file"),
        (["--host=192.0.2.1"], "--host=192.0.2.1 lets other machines in"),
        (["--teacher=a", "--run=b"], "--teacher and --run exclude each other"),
        (["--run=nowhere"], "nowhere"),
        (["--checkpoint=3"], "--checkpoint=3 is one of a run: name that with --run, or leave it out."),
        (["--run=a", "--config.teacher.temperature=0.0"], "--config.teacher.temperature has no effect on the student"),
        (["--run=a", "--seed=1"], "--seed has no effect on the student of --run: leave it out."),
        (["--api_key_file=nowhere"], "--api_key_file=nowhere cannot be read (No such file or directory): name a file"),
    ],
)
def test_what_cannot_be_served_is_refused(arguments, sentence):
    command = [sys.executable, "-m", "rpd_jax.serve", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    (line,) = (line for line in run.stderr.splitlines() if line.startswith("error: "))
    assert run.returncode == 2 and sentence in line


def test_a_port_that_is_taken_is_refused(octo_server, micro_octo):
    command = [sys.executable, "-m", "rpd_jax.serve", f"--teacher={micro_octo}", f"--port={octo_server.port}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert f"127.0.0.1:{octo_server.port} cannot be listened at (" in run.stderr and "Traceback" not in run.stderr
