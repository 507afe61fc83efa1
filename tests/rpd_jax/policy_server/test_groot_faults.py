"""GR00T's servers that are not there, are something else, or misbehave: waited for, asked again, or one sentence."""

import contextlib
import re
import socket
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from groot_peers import USUAL, groot_peer, groot_teacher
from peers import peer, random_frames
from test_groot_teacher import small_policy_s_actions

from rpd_jax.errors import UserError
from rpd_jax.policy_server.groot_observation import GrootMap
from rpd_jax.robot_state import told_state

KEY = jax.random.key(3)


def is_one_sentence(error):
    sentence = str(error)
    return "\n" not in sentence and "Traceback" not in sentence and len(sentence) < 500 and sentence.endswith(".")


def refusal_of(*addresses, frames=0, **options):
    """The sentence that a teacher, or its labels of so many frames, end in."""
    with pytest.raises(UserError) as refusal, groot_teacher(*addresses, **options) as teacher:
        assert frames, "the teacher was made"
        teacher.act(random_frames(frames), "push", KEY)
    assert is_one_sentence(refusal.value)
    return str(refusal.value)


def test_nothing_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    said = []
    expected = f"{address}: connection refused, for teacher.start_timeout=0.5 seconds: start the policy server there"
    assert refusal_of(address, start_timeout=0.5, said=said).startswith(expected)
    assert said == [f"{address}: connection refused; waiting for it, 0.5 seconds at most."]


def test_another_kind_of_zeromq_s_sockets():
    with groot_peer("is a PUB socket") as server:
        found = refusal_of(server.address, start_timeout=2.0)
    assert "its ZeroMQ closes the connection of one who asks for answers, for teacher.start_timeout=2 sec" in found


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:99999", "tcp://[::1", "http://127.0.0.1:5555"])
def test_what_is_no_address(address):
    assert refusal_of(address) == (
        f"{address} is no address of GR00T's protocol: give teacher.address as tcp://host:5555."
    )


def test_an_http_server_is_no_policy_server(tmp_path):
    command = [sys.executable, "-u", "-m", "http.server", "--bind=127.0.0.1", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        port = re.search(r"port (\d+)", server.stdout.readline().decode())[1]
        found = refusal_of(f"tcp://127.0.0.1:{port}")
        server.kill()
    assert found.startswith(f"tcp://127.0.0.1:{port} is no policy server of GR00T's protocol (it speaks HTTP): give")


def test_openpi_s_server_is_no_policy_server():
    with peer("rogue_peer.py", "usual", scheme="tcp") as server:
        assert "is no policy server of GR00T's protocol (it speaks HTTP)" in refusal_of(server.address)


# ZeroMQ's greeting and its READY, by hand (RFC 23).
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL".ljust(55, b"\x00")
READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x03REP\x08Identity\x00\x00\x00\x00"


def refusal_of_one_who_says(words, answer=b"", **options):
    """The sentence on a server that says that to everybody, and that to a request, and how often somebody came."""

    def converse(connection):
        with contextlib.suppress(OSError):
            connection.sendall(words)
            heard = b""
            while answer and b"endpoint" not in heard:
                heard += connection.recv(1024) or b"endpoint"  # the other end is gone
            connection.sendall(answer)

    def speak(listener):
        with contextlib.suppress(OSError):
            while True:
                came.append(listener.accept()[0])
                threading.Thread(target=converse, args=(came[-1],), daemon=True).start()

    came = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=speak, args=(listener,), daemon=True).start()
        return refusal_of(f"tcp://127.0.0.1:{listener.getsockname()[1]}", **options), len(came)


def test_a_message_that_claims_2_to_the_40_bytes_is_not_waited_for():
    hello = GREETING + b"\x04" + bytes([len(READY)]) + READY
    found, times = refusal_of_one_who_says(hello, b"\x01\x00\x02" + (2**40).to_bytes(8, "big"), start_timeout=2.0)
    assert "the connection was closed (or answers more than 64 MiB), for teacher.start_timeout=2 seconds" in found
    assert times >= 4  # that connection was left, and another one made


def test_a_server_that_speaks_first_is_no_policy_server():
    found, _ = refusal_of_one_who_says(b"SSH-2.0-OpenSSH_9\r\n")
    assert "is no policy server of GR00T's protocol (it speaks first, with b'SSH-2.0-Op')" in found
    found, _ = refusal_of_one_who_says(GREETING + b"\x04\x05READY")
    assert "is no policy server of GR00T's protocol (it does not shake hands as ZeroMQ does)" in found


REFUSED_AT_START = {
    "is encrypted": "is no policy server of GR00T's protocol (its ZeroMQ wants an encrypted connection)",
    "wants a key": "refuses the API key (Unauthorized: Invalid API token): put the right one in the file that teacher.",
    "says odd modalities": "does not say what its policy sees: it is no policy server of GR00T's protocol",
    "two cameras": "sees the video front, wrist, and it would be shown front: set teacher.observation.image, or serve",
    "two moments": "sees 2 moments of its video at a time, and it would be shown one",
    "wants a state": "sees the state joints, and it would be shown nothing: set teacher.observation.state and",
}


@pytest.mark.parametrize("behaviour", REFUSED_AT_START)
def test_what_cannot_be_a_teacher_is_refused_at_the_start(behaviour):
    with groot_peer(behaviour) as server:
        found = refusal_of(server.address, api_key="sesame")
    assert server.address in found and REFUSED_AT_START[behaviour] in found and "sesame" not in found


def test_names_that_the_policy_does_not_have_are_refused_at_the_start():
    with groot_peer("usual") as server:
        found = refusal_of(server.address, action_keys=("actions",))
        assert "gives the actions eef_position, eef_rotation, gripper, and 'actions' is none of them: set" in found
        found = refusal_of(server.address, observation=GrootMap("front", ("prompt",)))
        assert "sees the language annotation.human.task, and it would be shown prompt: set teacher.obs" in found
        wrong = GrootMap("front", USUAL.language, (("arm", None),), told_state("joints"))
        assert "sees the state nothing, and it would be shown arm: set" in refusal_of(server.address, observation=wrong)


def test_the_right_key_opens():
    with groot_peer("wants a key") as server, groot_teacher(server.address, api_key="right") as teacher:
        assert teacher.act(random_frames(2), "push", KEY).shape == (1, 2, 7)


REFUSED_ANSWERS = {
    "claims 2^40 numbers": "sent an array that claims 30,786,325,577,728 bytes and has 28",
    "sends objects": "sent an array of type '|O', which is not in the protocol",
    "sends no msgpack": "sent bytes that are no msgpack",
    "sends a pickle": "sent bytes that are no msgpack",
    "sends a number": "holds no 'eef_position' (it holds: int): set teacher.action_key",
    "sends ERROR": "failed (ERROR): see what that server says, and whether teacher.observation has the names",
    "sends an empty error": "failed (an empty text)",
    "closes at once": "closed the connection instead of an answer, 4 times with the same frame (or answers more",
    "sends too much": "closed the connection instead of an answer, 4 times with the same frame (or answers more",
    "raises": "failed (ValueError: Video key 'front' must be there): see what that server says",
    "eight numbers": "answers actions of float32 [3, 2, 3], float32 [3, 2, 3], float32 [3, 2, 2]; a teacher's",
    "a frame less": "answers actions of float32 [2, 2, 3], float32 [2, 2, 3], float32 [2, 2, 1]; a teacher's",
    "no chunk": "answers actions of float32 [3, 0, 3]",
    "no batch": "answers actions of float32 [2, 3]",
    "text": "answers actions of <U1 [3, 2, 3]",
    "lists": "answers actions of float32 [3, 2, 3], float32 [3, 2, 3], list;",
    "NaN": "answers actions that are not finite (",
    "other keys": "holds no 'eef_position' (it holds: action.eef_position, action.eef_rotation, action.gripper): set",
}


@pytest.mark.parametrize("behaviour", REFUSED_ANSWERS)
def test_an_answer_that_cannot_be_one_ends_in_a_sentence(behaviour):
    with groot_peer(behaviour) as server, groot_teacher(server.address, connections=2) as teacher:
        with pytest.raises(UserError, match=re.escape(REFUSED_ANSWERS[behaviour])) as refusal:
            teacher.act(random_frames(3), "push", KEY)
        assert is_one_sentence(refusal.value) and server.address in str(refusal.value)
        assert ("Traceback" in refusal.value.details) == (behaviour == "raises")
        with pytest.raises(UserError):  # and it stays so
            teacher.act(random_frames(1), "push", KEY)


def test_a_server_that_closes_every_third_time_is_asked_again():
    frames, options = random_frames(20), {"connections": 2, "batch_size": 2}
    with groot_peer("closes every third") as server, groot_teacher(server.address, **options) as teacher:
        found = teacher.act(frames, "push", KEY)
    np.testing.assert_array_equal(found[0], small_policy_s_actions(frames, "push", 2))
    assert f"{server.address}: the connection was closed; connecting again." in teacher.said


def test_a_server_slower_than_the_timeout_ends_in_a_sentence():
    with groot_peer("a second each") as server:
        found = refusal_of(server.address, frames=1, connections=1, request_timeout=0.3)
    assert "did not answer within teacher.request_timeout=0.3 seconds, 4 times with the same frame: raise it" in found


def test_a_frozen_server_s_batches_are_asked_elsewhere_and_alone_it_is_given_up():
    frames = random_frames(12)
    with groot_peer("usual") as first, groot_peer("usual") as second:
        options = {"request_timeout": 0.5, "batch_size": 2}
        with groot_teacher(first.address, second.address, start_timeout=60.0, **options) as teacher:
            expected = teacher.act(frames, "push", KEY)
            first.freeze()
            np.testing.assert_array_equal(teacher.act(frames, "push", KEY), expected)
        found = refusal_of(first.address, start_timeout=1.0)
    assert f"{first.address}: it does not answer, for teacher.start_timeout=1 seconds: start the policy server" in found


def test_a_server_that_restarts_is_waited_for_while_another_one_goes_on():
    frames = random_frames(80)
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(groot_peer("50 ms")) for _ in range(2)]
        options = {"connections": 2, "batch_size": 4}
        teacher = stack.enter_context(groot_teacher(*(server.address for server in servers), **options))
        finish = teacher.begin(frames, "push", KEY)
        for server in servers:  # when the second one is gone, all depends on the one that is back
            server.kill()
            stack.enter_context(groot_peer("usual", server.port))
        found = finish()
    np.testing.assert_array_equal(found[0], small_policy_s_actions(frames, "push", 4))


def test_a_server_that_does_not_come_back_ends_in_a_sentence():
    with groot_peer("50 ms") as server, groot_teacher(server.address, start_timeout=4.0, batch_size=1) as teacher:
        finish = teacher.begin(random_frames(40), "push", KEY)
        server.kill()
        with pytest.raises(UserError, match=r"connection refused, for teacher.start_timeout=4 seconds: start the"):
            finish()


def test_a_server_that_comes_back_as_another_policy_ends_in_a_sentence():
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(groot_peer("usual"))
        teacher = stack.enter_context(groot_teacher(server.address))
        teacher.act(random_frames(2), "push", KEY)
        server.kill()
        stack.enter_context(groot_peer("two moments", server.port))
        change = "(its video was front (moments: 1) and is front (moments: 2)): serve the same one there again"
        with pytest.raises(UserError, match=re.escape(change)) as refusal:
            teacher.act(random_frames(2), "push", KEY)
        assert is_one_sentence(refusal.value) and str(refusal.value).startswith(server.address)


def test_a_closed_teacher_says_so():
    with groot_peer("usual") as server:
        with groot_teacher(server.address) as teacher:
            pass
        with pytest.raises(UserError, match="This teacher was closed: load it again"):
            teacher.act(random_frames(1), "push", KEY)
