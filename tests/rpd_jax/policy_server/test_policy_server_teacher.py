"""A policy behind openpi's own server as a teacher: its labels, their order, and several connections."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import peer, random_frames

from configs import default
from octo_teacher.teacher import OctoTeacher
from rpd_jax import tasks
from rpd_jax.errors import UserError
from rpd_jax.evaluate.policies import teacher_policy
from rpd_jax.policy_server.observation import ObservationMap
from rpd_jax.robot_state import told_state
from rpd_jax.teachers import sees_state

KEY = jax.random.key(3)


def small_policy_s_actions(frames, prompt, height=None, width=None):
    """What openpi_peer.py answers."""
    rest = [len(prompt) / 100, (width or frames.shape[2]) / 100, (height or frames.shape[1]) / 100, 1.0]
    rest = np.broadcast_to(np.array(rest, np.float32), (len(frames), 4))
    return np.concatenate([np.asarray(frames)[:, 0, 0] / np.float32(255), rest], axis=1)


def test_labels_of_an_octo_through_openpi_s_own_server_are_those_in_process_bit_for_bit(
    micro_octo, openpi_site_packages, teacher_of
):
    here = OctoTeacher.load(micro_octo, chunk_size=1)  # as openpi's server asks: sizes of batches differ in rounding
    frames = random_frames(5)
    with peer("octo_peer.py", micro_octo, openpi_site_packages) as server:
        there = teacher_of(server.address, gripper="auto")
        for samples, first in ((1, 0), (3, 70)):
            served = there.act(frames, "push the cube", KEY, samples, first)
            assert served.shape == (samples, 5, 7) and served.dtype == jnp.float32
            np.testing.assert_array_equal(served, here.act(frames, "push the cube", KEY, samples, first))
    assert there.said == ["Policy server: gripper from -1 (closed) to 1 (open), as the server says."]


def test_answers_are_put_back_in_order_and_each_frame_has_its_own(openpi_peer, teacher_of):
    frames = random_frames(40)
    with openpi_peer("usual") as server:
        teacher = teacher_of(server.address, connections=4)
        later = [teacher.begin(frames[i : i + 10], "push", KEY, 2) for i in range(0, 40, 10)]
        found = np.concatenate([answer() for answer in reversed(later)][::-1], axis=1)
    np.testing.assert_allclose(found, np.broadcast_to(small_policy_s_actions(frames, "push"), (2, 40, 7)), rtol=1e-6)


def test_the_gripper_is_turned_and_all_is_clipped(openpi_peer, teacher_of):
    frames = random_frames(2, height=200)
    with openpi_peer("one action") as server:
        found = teacher_of(server.address, gripper="closed").act(frames, "push", KEY)
    expected = small_policy_s_actions(frames, "push")
    np.testing.assert_allclose(found[0, :, :5], expected[:, :5], rtol=1e-6)
    np.testing.assert_array_equal(found[0, :, 5:], [[1.0, -1.0]] * 2)  # 200 pixels: 2.0, clipped; 1 is closed


def test_a_policy_gets_the_size_that_it_wants(openpi_peer, teacher_of):
    with openpi_peer("usual") as server:
        observation = ObservationMap("observation/image", "prompt", size=(24, 48))
        found = teacher_of(server.address, observation=observation).act(random_frames(1), "push", KEY)
    np.testing.assert_allclose(found[0, 0], [0, 0, 0, 0.04, 0.48, 0.24, 1], rtol=1e-6)  # a black border


TOLD = {"joints": range(9), "pose": [*range(19, 26), 7, 8], "simulator": range(42)}


@pytest.mark.parametrize("kind", TOLD)
def test_a_policy_is_told_the_state_that_it_wants_bit_for_bit(kind, openpi_peer, teacher_of):
    """The states are PickCube's 42 numbers; each frame's own arrives, whatever the order of answers."""
    states = np.random.default_rng(5).uniform(-1, 1, (6, 42)).astype(np.float32)
    observation = ObservationMap("observation/image", "prompt", told=told_state(kind, "PickCube-v1"))
    with openpi_peer("tells the state") as server:
        teacher = teacher_of(server.address, observation=observation)
        assert sees_state(teacher)
        numbers = states[:, TOLD[kind]]
        found = np.asarray(teacher.act(random_frames(6), "push", KEY, 2, steps=-(-len(numbers[0]) // 7), state=states))
        np.testing.assert_array_equal(found.reshape(2, 6, -1)[:, :, : numbers.shape[1]], [numbers, numbers])
        with pytest.raises(UserError, match="looks at the state: give it one beside the frames"):
            teacher.act(random_frames(6), "push", KEY)
        with pytest.raises(UserError, match=r"needs states of 6 frames with \d+ numbers or more; these are \[5, 42\]"):
            teacher.act(random_frames(6), "push", KEY, state=states[:5])


def test_a_pose_that_stands_elsewhere_in_another_task_s_states_is_not_evaluated_there(openpi_peer):
    """One teacher is loaded for all tasks of a command, for env.task."""
    config = default.get_config("PushCube-v1")
    with openpi_peer("tells the state") as server:
        settings = {"name": "openpi", "address": server.address, "gripper": "signed", "state": "pose"}
        config.teacher.update(settings)
        policy = teacher_policy(config)
        try:
            for way in policy.ways_to_act.values():
                way(tasks.find_task("PullCube-v1"))
                with pytest.raises(
                    UserError, match=r"'pose' stands elsewhere in the states of PickCube-v1 than in those"
                ):
                    way(tasks.find_task("PickCube-v1"))
        finally:
            policy.close()


def test_a_policy_is_not_told_what_it_is_not_to_be_told(openpi_peer, teacher_of):
    with openpi_peer("tells the state") as server:
        teacher = teacher_of(server.address)
        assert not sees_state(teacher)
        with pytest.raises(UserError, match="KeyError: 'observation/state'"):
            teacher.act(random_frames(1), "push", KEY)


def test_a_pose_that_a_task_does_not_know_is_refused(monkeypatch):
    with pytest.raises(UserError, match=r"teacher.state='torques' is not one of none, joints, pose, simulator"):
        told_state("torques")
    monkeypatch.setitem(tasks.TASKS, "Other-v1", tasks.Task("Other-v1", "do it"))
    with pytest.raises(UserError, match=r"teacher.state='pose' is not known in Other-v1: set tcp_pose of that Task"):
        told_state("pose", "Other-v1")


def test_a_chunk_is_given_as_far_as_it_is_asked_for(openpi_peer, teacher_of):
    frames = random_frames(3)
    with openpi_peer("usual") as server:
        teacher = teacher_of(server.address)
        assert teacher.horizon == 2
        chunks = teacher.act(frames, "push", KEY, steps=2)
        np.testing.assert_array_equal(chunks[:, :, 0], teacher.act(frames, "push", KEY))
        np.testing.assert_array_equal(chunks[0, :, 1], np.ones((3, 7)))  # 9, clipped
        with pytest.raises(UserError, match=r"answers 2 actions at a time, and 3 are wanted: lower teacher.chunk"):
            teacher.act(frames, "push", KEY, steps=3)


def test_no_frames_have_no_labels(openpi_peer, teacher_of):
    with openpi_peer("usual") as server:
        assert teacher_of(server.address).act(random_frames(0), "push", KEY, 2).shape == (2, 0, 7)


def test_the_wrong_gripper_s_meaning_is_not_guessed(openpi_peer, teacher_of):
    with openpi_peer("usual") as server, pytest.raises(UserError, match=r"no range of the gripper in what ws://127"):
        teacher_of(server.address, gripper="auto")


def test_all_connections_to_all_servers_are_busy(openpi_peer, teacher_of):
    """A server of openpi computes one answer at a time, 50 ms each: two of them take half the time of one."""
    with openpi_peer("50 ms") as first, openpi_peer("50 ms") as second:
        frames, seconds = random_frames(24), []
        for addresses in ([first.address], [first.address, second.address]):
            teacher = teacher_of(*addresses, connections=2)
            teacher.act(frames[:4], "push", KEY)
            begin = time.monotonic()
            teacher.act(frames, "push", KEY)
            seconds.append(time.monotonic() - begin)
    assert seconds[1] < 0.75 * seconds[0]
    assert seconds[0] >= 24 * 0.05
