"""A policy behind GR00T's ZeroMQ as a teacher: its labels, their order, batches, chunks and the state."""

import time

import jax
import numpy as np
import pytest
from groot_peers import groot_peer, groot_teacher
from ml_collections import ConfigDict
from peers import random_frames

from configs import default
from rpd_jax import settings
from rpd_jax.errors import UserError
from rpd_jax.policy_server.groot_observation import GrootMap, state_parts
from rpd_jax.robot_state import told_state
from rpd_jax.teachers import load_teacher, sees_state

KEY = jax.random.key(3)


def small_policy_s_actions(frames, prompt, batch_size, width=None):
    """What groot_peer.py answers, as it computes it: in float64, rounded once."""
    frames = np.asarray(frames)
    begins = np.arange(len(frames)) // batch_size * batch_size
    sizes = np.minimum(batch_size, len(frames) - begins)
    rest = [[len(prompt) / 100, (width or frames.shape[2]) / 100, size / 100, 1.0] for size in sizes]
    return np.concatenate([frames[:, 0, 0] / 255, rest], axis=1).astype(np.float32)


@pytest.mark.parametrize("behaviour", ["usual", "newer", "modalities as text", "no modalities"])
def test_labels_are_the_policy_s_own_bit_for_bit_and_in_order(behaviour):
    """Ten frames in batches of four, twice: of either way to write arrays, whatever is said of modalities."""
    frames = random_frames(10)
    with groot_peer(behaviour) as server, groot_teacher(server.address, batch_size=4, connections=3) as teacher:
        later = [teacher.begin(frames, prompt, KEY, 2) for prompt in ("push", "lift it")]
        found = [answer() for answer in reversed(later)][::-1]
        assert teacher.horizon == (None if behaviour == "no modalities" else 2)
        assert teacher.worthwhile_batch == 4 and not sees_state(teacher)
        assert teacher.act(frames[:0], "push", KEY, 2).shape == (2, 0, 7)
    for labels, prompt in zip(found, ("push", "lift it"), strict=True):
        expected = small_policy_s_actions(frames, prompt, 4)
        np.testing.assert_array_equal(labels, [expected, expected])
        assert isinstance(labels, jax.Array) and labels.dtype == np.float32


def test_a_chunk_is_given_as_far_as_it_is_asked_for():
    frames = random_frames(3)
    with groot_peer("usual") as server, groot_teacher(server.address) as teacher:
        chunks = teacher.act(frames, "push", KEY, steps=2)
        np.testing.assert_array_equal(chunks[:, :, 0], teacher.act(frames, "push", KEY))
        np.testing.assert_array_equal(chunks[0, :, 1], np.ones((3, 7)))  # 9, clipped
        with pytest.raises(UserError, match=r"answers 2 actions at a time, and 3 are wanted: lower teacher.chunk"):
            teacher.act(frames, "push", KEY, steps=3)


def test_the_gripper_is_turned_and_a_policy_gets_the_size_that_it_wants():
    observation = GrootMap("front", ("annotation.human.task",), size=(24, 48))
    with groot_peer("usual") as server:
        with groot_teacher(server.address, observation=observation, gripper="closed") as teacher:
            found = teacher.act(random_frames(1), "push", KEY)
        with pytest.raises(UserError, match=r"no range of the gripper in what tcp://127"):
            groot_teacher(server.address, gripper="auto").__enter__()
    expected = np.array([0, 0, 0, 0.04, 0.48, 0.01, -1], np.float32)  # a black border; 1 is closed
    np.testing.assert_array_equal(found[0, 0], expected)


TOLD = {"joints": [*range(9)], "pose": [*range(18, 25), 7, 8]}


@pytest.mark.parametrize("kind", TOLD)
def test_a_policy_is_told_the_state_that_it_wants_bit_for_bit(kind):
    """By the way of a resolved config: nine numbers, shared out to the policy's two parts of the state."""
    states = np.random.default_rng(5).uniform(-1, 1, (6, 35)).astype(np.float32)
    with groot_peer("tells the state") as server:
        config = ConfigDict(default.get_config().to_dict())
        config.teacher.update(name="groot", address=server.address, gripper="signed", state=kind, batch_size=4)
        config.teacher.update(action_key="action.eef_position, eef_rotation, gripper")
        config.teacher.observation.update(image="video.front", prompt="annotation.human.task")
        config.teacher.observation.state = "state.arm:7,gripper:2"
        teacher = load_teacher(settings.resolve(config))
        try:
            assert sees_state(teacher)
            found = np.asarray(teacher.act(random_frames(6), "push", KEY, 2, steps=2, state=states))
            expected = states[:, TOLD[kind]]
            np.testing.assert_array_equal(found.reshape(2, 6, 14)[:, :, :9], [expected, expected])
            with pytest.raises(UserError, match="looks at the state: give it one beside the frames"):
                teacher.act(random_frames(6), "push", KEY)
        finally:
            teacher.close()


def test_an_instruction_is_sent_under_all_names_that_a_policy_has_for_it():
    frames, names = random_frames(2), ("annotation.human.task", "annotation.human.other")
    with groot_peer("two instructions") as server:
        with pytest.raises(UserError, match=r"language annotation.human.task, annotation.human.other, and it would be"):
            groot_teacher(server.address).__enter__()
        with groot_teacher(server.address, observation=GrootMap("front", names)) as teacher:
            found = teacher.act(frames, "push", KEY)
    np.testing.assert_array_equal(found[0], small_policy_s_actions(frames, "push", 2))


@pytest.mark.parametrize(
    "setting", ["arm:7,gripper:3", "arm:7,gripper", "arm,gripper", "arm:7,arm:2", "arm:7", "arm:x"]
)
def test_parts_that_do_not_share_out_the_state_are_refused(setting):
    with pytest.raises(UserError, match=r"does not share out teacher.state='joints': give one name, or several with"):
        state_parts(setting, told_state("joints"))
    assert state_parts("all", told_state("joints")) == (("all", None),)
    assert state_parts(setting, told_state("none")) == ()


def test_batches_go_to_all_servers():
    """A server computes one batch at a time, 50 ms each: two of them have served six batches after three of those."""
    with groot_peer("50 ms") as first, groot_peer("50 ms") as second:
        frames, seconds = random_frames(24), []
        for addresses in ([first.address], [first.address, second.address]):
            with groot_teacher(*addresses, connections=2, batch_size=2) as teacher:
                teacher.act(frames[:4], "push", KEY)
                begin = time.monotonic()
                teacher.act(frames, "push", KEY)
                seconds.append(time.monotonic() - begin)
    assert seconds[1] < 0.75 * seconds[0]
    assert seconds[0] >= 12 * 0.05
