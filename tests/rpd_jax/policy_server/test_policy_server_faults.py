"""Servers that are not there, are something else, or misbehave: waited for, asked again elsewhere, or one sentence."""

import contextlib
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from peers import Peer, peer, random_frames

from rpd_jax.errors import UserError

KEY = jax.random.key(3)


def is_one_sentence(error):
    sentence = str(error)
    return "\n" not in sentence and "Traceback" not in sentence and len(sentence) < 500 and sentence.endswith(".")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_nothing_listens(teacher_of):
    address, said = f"ws://127.0.0.1:{free_port()}", []
    expected = f"{address}: connection refused, for teacher.start_timeout=0.5 seconds: start the policy server there"
    with pytest.raises(UserError, match=re.escape(expected)) as refusal:
        teacher_of(address, start_timeout=0.5, said=said)
    assert is_one_sentence(refusal.value)
    assert said == [f"{address}: connection refused; waiting for it, 0.5 seconds at most."]


def test_an_http_server_is_no_policy_server(teacher_of, tmp_path):
    command = [sys.executable, "-u", "-m", "http.server", "--bind=127.0.0.1", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        port = re.search(r"port (\d+)", server.stdout.readline().decode())[1]
        expected = f"ws://127.0.0.1:{port} is no policy server of openpi's protocol ("
        with pytest.raises(UserError, match=re.escape(expected)) as refusal:
            teacher_of(f"ws://127.0.0.1:{port}")
        server.kill()
    assert is_one_sentence(refusal.value)


REFUSED_AT_START = {
    "is a GR00T server": "is no policy server of openpi's protocol",
    "is a teapot": r"is no policy server of openpi's protocol \(HTTP 418\)",
    "claims 2^40 bytes": "sent a message of more than 64 MiB",
    "introduces itself as a list": "introduces itself with a list instead of a map",
    "introduces itself as text": r"failed \(ValueError: no weights\)",
    "introduces itself as a pickle": "sent bytes that are no msgpack",
    "says seven": "says that its actions have 'seven' numbers, which is no whole number",
    "wants a key": r"refuses the API key \(HTTP 401\): put the right one in the file that teacher.api_key_file names",
}


@pytest.mark.parametrize("behaviour", REFUSED_AT_START)
def test_what_is_no_policy_server_is_refused_at_the_start(behaviour, teacher_of):
    refused = pytest.raises(UserError, match=REFUSED_AT_START[behaviour])
    with peer("rogue_peer.py", behaviour) as server, refused as refusal:
        teacher_of(server.address, api_key="wrong")
    assert is_one_sentence(refusal.value) and str(refusal.value).startswith(server.address)


def test_the_right_key_opens_and_stands_in_no_sentence(teacher_of):
    with peer("rogue_peer.py", "wants a key") as server:
        assert teacher_of(server.address, api_key="right").act(random_frames(2), "push", KEY).shape == (1, 2, 7)
        with pytest.raises(UserError) as refusal:
            teacher_of(server.address, api_key="sesame")
    assert "sesame" not in str(refusal.value)


REFUSED_ANSWERS = {
    "claims 2^40 numbers": "sent an array that claims 4,398,046,511,104 bytes and has 56",
    "sends too much": "sent a message of more than 64 MiB",
    "sends no msgpack": "sent bytes that are no msgpack",
    "sends a list": r"holds no 'actions' \(it holds: list\)",
    "sends an empty text": r"failed \(an empty text\)",
    "closes at once": "closed the connection instead of an answer, 4 times with the same frame",
}


@pytest.mark.parametrize("behaviour", REFUSED_ANSWERS)
def test_an_answer_that_cannot_be_one_ends_in_a_sentence(behaviour, teacher_of):
    with peer("rogue_peer.py", behaviour) as server:
        teacher = teacher_of(server.address, connections=2)
        with pytest.raises(UserError, match=REFUSED_ANSWERS[behaviour]) as refusal:
            teacher.act(random_frames(3), "push", KEY)
        assert is_one_sentence(refusal.value) and server.address in str(refusal.value)
        with pytest.raises(UserError):  # and it stays so
            teacher.act(random_frames(1), "push", KEY)


REFUSED_ACTIONS = {
    "eight numbers": r"answers actions of float32 \[2, 8\]; a teacher's are numbers of the shape \[horizon, 7\]",
    "no chunk": r"answers actions of float32 \[0, 7\]",
    "text": r"answers actions of <U1 \[1, 7\]",
    "NaN": r"answers actions that are not finite \(.*, nan, ",
    "other key": r"holds no 'actions' \(it holds: action, server_timing\): set teacher.action_key",
    "raises": r"failed \(KeyError: 'observation/wrist_image'\): see what that server says, and whether teacher.observ",
}


@pytest.mark.parametrize("behaviour", REFUSED_ACTIONS)
def test_what_a_policy_of_openpi_s_server_should_not_answer(behaviour, openpi_peer, teacher_of):
    with openpi_peer(behaviour) as server, pytest.raises(UserError, match=REFUSED_ACTIONS[behaviour]) as refusal:
        teacher_of(server.address).act(random_frames(3), "push", KEY)
    assert is_one_sentence(refusal.value)
    assert ("Traceback" in refusal.value.details) == (behaviour == "raises")


def test_a_policy_of_eight_numbers_that_says_so_is_refused_before_it_is_asked(openpi_peer, teacher_of):
    with openpi_peer("says eight") as server, pytest.raises(UserError, match="gives actions of 8 numbers"):
        teacher_of(server.address)


def test_a_server_that_closes_after_every_seventh_answer_is_asked_again(teacher_of):
    with peer("rogue_peer.py", "closes after 7") as server:
        teacher = teacher_of(server.address, connections=2)
        assert teacher.act(random_frames(50), "push", KEY).shape == (1, 50, 7)
    assert f"{server.address}: the connection was closed; connecting again." in teacher.said


def test_a_server_slower_than_the_timeout_ends_in_a_sentence(openpi_peer, teacher_of):
    with peer("rogue_peer.py", "a second each") as server:
        teacher = teacher_of(server.address, request_timeout=0.3)
        expected = r"did not answer within teacher.request_timeout=0.3 seconds, 4 times with the same frame: raise it"
        with pytest.raises(UserError, match=expected):
            teacher.act(random_frames(1), "push", KEY)
    with openpi_peer("slow") as server:  # and while it computes it does not even let anybody in
        teacher = teacher_of(server.address, connections=1, request_timeout=0.3, start_timeout=2.0)
        expected = (
            "no answer within teacher.request_timeout=0.3 seconds, and then it does not answer, for teacher.start"
        )
        with pytest.raises(UserError, match=expected):
            teacher.act(random_frames(1), "push", KEY)


def test_a_frozen_server_s_frames_are_asked_elsewhere(openpi_peer, teacher_of):
    frames = random_frames(30)
    with openpi_peer("usual") as first, openpi_peer("usual") as second:
        teacher = teacher_of(first.address, second.address, request_timeout=0.5, start_timeout=60.0)
        expected = teacher.act(frames, "push", KEY)
        first.freeze()
        np.testing.assert_array_equal(teacher.act(frames, "push", KEY), expected)


def test_a_server_that_restarts_is_waited_for_while_another_one_goes_on(openpi_peer, python_of_openpi, teacher_of):
    frames = random_frames(300)
    with openpi_peer("50 ms") as first, openpi_peer("50 ms") as second, contextlib.ExitStack() as stack:
        teacher = teacher_of(first.address, second.address, connections=2)
        finish = teacher.begin(frames, "push", KEY)
        first.kill()
        again = Peer("openpi_peer.py", "usual", first.port, python=python_of_openpi)
        stack.callback(again.kill)
        second.kill()  # now all depends on the one that is back
        again_too = Peer("openpi_peer.py", "usual", second.port, python=python_of_openpi)
        stack.callback(again_too.kill)
        found = finish()
    np.testing.assert_allclose(found[0, :, :3], np.asarray(frames)[:, 0, 0] / np.float32(255), rtol=1e-6)


def test_a_server_that_does_not_come_back_ends_in_a_sentence(openpi_peer, teacher_of):
    with openpi_peer("50 ms") as server:
        teacher = teacher_of(server.address, start_timeout=4.0)
        finish = teacher.begin(random_frames(100), "push", KEY)
        server.kill()
        with pytest.raises(UserError, match=r"connection refused, for teacher.start_timeout=4 seconds: start the"):
            finish()


OTHERS = {
    "usual": ("is seeded", "its rpd/seeded was None and is 1"),
    "is iteration 3": ("is iteration 4", "its policy was 'run, iteration 3' and is 'run, iteration 4'"),
}


@pytest.mark.parametrize("behaviour", OTHERS)
def test_a_server_that_comes_back_as_another_policy_ends_in_a_sentence(behaviour, teacher_of):
    """What the teacher does with its answers was decided by what it said of itself first."""
    other, change = OTHERS[behaviour]
    with peer("rogue_peer.py", behaviour) as server:
        teacher = teacher_of(server.address)
        teacher.act(random_frames(2), "push", KEY)
    sentence = f"{server.address} is another policy than it was at the first connection ({change}): serve the same"
    with peer("rogue_peer.py", other, server.port), pytest.raises(UserError, match=re.escape(sentence)) as refusal:
        teacher.act(random_frames(20), "push", KEY)
    assert is_one_sentence(refusal.value)


@pytest.mark.parametrize("gripper", ["open", "closed"])
def test_the_environment_s_actions_are_not_turned(gripper, teacher_of):
    """Not even those of one server among others."""
    with peer("rogue_peer.py", "is seeded") as ours, peer("rogue_peer.py", "usual") as other:
        sentence = (
            f"{ours.address} gives the environment's actions, as its rpd/seeded says, and teacher.gripper={gripper!r}"
        )
        for addresses in ([ours.address], [other.address, ours.address]):
            with pytest.raises(UserError, match=re.escape(sentence)) as refusal:
                teacher_of(*addresses, gripper=gripper)
            assert is_one_sentence(refusal.value)


def test_a_server_that_says_more_or_less_besides_is_the_same_policy(teacher_of):
    with peer("rogue_peer.py", "is iteration 3") as server:
        teacher = teacher_of(server.address)
        before = teacher.act(random_frames(2), "push", KEY)
    with peer("rogue_peer.py", "is iteration 3 anew", server.port):
        np.testing.assert_array_equal(teacher.act(random_frames(2), "push", KEY), before)


def test_a_closed_teacher_says_so(openpi_peer, teacher_of):
    with openpi_peer("usual") as server:
        teacher = teacher_of(server.address)
        teacher.close()
        with pytest.raises(UserError, match="This teacher was closed: load it again"):
            teacher.act(random_frames(1), "push", KEY)
