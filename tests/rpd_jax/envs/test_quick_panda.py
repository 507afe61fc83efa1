"""The quicker Panda does what ManiSkill's does, to the last bit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mani_skill.utils.geometry import rotation_conversions as theirs
from mani_skill.utils.structs import Pose
from plain_panda import give_back

from octo_teacher.demos.experts import EXPERTS, read_poses
from rpd_jax.envs import quick_panda
from rpd_jax.envs.camera_task import make_task_env, set_drawing, states

ANGLES = hnp.arrays(np.float32, 3, elements=st.floats(-4, 4, width=32))
POSES = hnp.arrays(np.float32, 7, elements=st.floats(-2, 2, width=32)).filter(lambda pose: np.abs(pose[3:]).max() > 0.1)


@given(ANGLES)
def test_angles_become_the_same_quaternion(angles):
    matrix = theirs.euler_angles_to_matrix(torch.from_numpy(angles)[None], "XYZ")
    np.testing.assert_array_equal(quick_panda._matrix(angles), matrix.numpy().ravel())
    quaternion = quick_panda._standard(quick_panda._quaternion(matrix.numpy().ravel()))
    np.testing.assert_array_equal(quaternion, theirs.matrix_to_quaternion(matrix)[0].numpy())
    assert np.array(quaternion).dtype == np.float32


@given(POSES, POSES)
def test_a_pose_seen_from_another_is_the_same(base, hand):
    expected = Pose.create(torch.from_numpy(base)).inv() * Pose.create(torch.from_numpy(hand))
    position, rotation = quick_panda._seen_from(base[:3], tuple(base[3:]), tuple(hand[:3]), tuple(hand[3:]))
    np.testing.assert_array_equal(position, expected.p[0].numpy())
    np.testing.assert_array_equal(rotation, expected.q[0].numpy())


def made(env_id, quick):
    env = make_task_env(env_id, 16, mesh_detail=0.07)
    agent = env.unwrapped.agent
    assert type(agent.controller.controllers["arm"]) is quick_panda.QuickPoseController
    if not quick:
        give_back(env)
    return env


@pytest.mark.parametrize("env_id", ["PickCube-v1", "LiftPegUpright-v1"])
def test_episodes_are_the_same(env_id):
    """With the scripted expert, who grasps, and with actions far outside, whose turns are cut to their length."""
    rng, grasped = np.random.default_rng(0), set()
    quick, plain = (made(env_id, quick) for quick in (True, False))
    for env in (quick, plain):
        env.reset(seed=1)
        set_drawing(env, False)
    for t in range(60):
        action = rng.uniform(-2, 2, 7).astype(np.float32)
        if t < 40 and env_id == "PickCube-v1":
            action = np.float32(EXPERTS[env_id].act(read_poses(quick, EXPERTS[env_id])))
        outcomes = [env.step(action) for env in (quick, plain)]
        ours, expected = (states(outcome[0])[0].numpy() for outcome in outcomes)
        np.testing.assert_array_equal(ours, expected)
        for name, value in outcomes[0][4].items():
            np.testing.assert_array_equal(value, outcomes[1][4][name])
        grasped.add(bool(outcomes[0][4].get("is_grasped", False)))
    assert grasped == ({True, False} if env_id == "PickCube-v1" else {False})
    quick.close()
    plain.close()
