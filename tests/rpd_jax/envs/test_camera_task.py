import gymnasium as gym
import numpy as np
import pytest
import torch
from mani_skill.utils import sapien_utils
from mani_skill.utils.registration import REGISTERED_ENVS

from rpd_jax.envs.camera_task import CameraChange, frames, make_task_env, states
from rpd_jax.errors import UserError
from rpd_jax.robot_state import told_state
from rpd_jax.tasks import TASKS


def _unmodified(env_id, image_size, **kwargs):
    return gym.make(
        env_id,
        obs_mode="state",
        render_mode="rgb_array",
        control_mode="pd_ee_delta_pose",
        sim_backend="physx_cpu",
        render_backend="cpu",
        enhanced_determinism=True,
        human_render_camera_configs={"render_camera": {"width": image_size, "height": image_size}},
        **kwargs,
    )


@pytest.fixture(scope="module", autouse=True)
def what_draws_stays():
    """With the last of its users goes what draws ManiSkill's own frames, and it takes five seconds to compile."""
    env = _unmodified("PushCube-v1", 64)
    env.reset(seed=0)
    env.render()
    yield
    env.close()


@pytest.mark.parametrize("env_id", TASKS)
def test_frames_states_and_rewards_are_those_of_the_unmodified_task(env_id):
    ours = make_task_env(env_id, 64, "normalized_dense")
    theirs = _unmodified(env_id, 64, reward_mode="normalized_dense")
    obs, _ = ours.reset(seed=3)
    state, _ = theirs.reset(seed=3)
    rng = np.random.default_rng(0)
    for _ in range(3):
        assert frames(obs).shape == (1, 64, 64, 4) and frames(obs).dtype == torch.uint8
        np.testing.assert_array_equal(frames(obs)[..., :3], theirs.render())
        np.testing.assert_array_equal(states(obs), state)
        tcp, fingers = theirs.unwrapped.agent.tcp.pose.raw_pose, theirs.unwrapped.agent.robot.get_qpos()[:, 7:]
        told = told_state("pose", env_id).of(states(obs), 1)
        np.testing.assert_array_equal(told, np.concatenate([tcp, fingers], axis=1))
        action = rng.uniform(-1, 1, 7).astype(np.float32)
        obs, reward, *_ = ours.step(action)
        state, expected_reward, *_ = theirs.step(action)
        assert reward == expected_reward
    ours.close()
    theirs.close()


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.env_id)
def test_episode_limits_are_maniskills(task):
    assert task.max_episode_steps == REGISTERED_ENVS[task.env_id].max_episode_steps


def _camera_pose(env):
    return env.unwrapped.scene.sensors["human_camera"].camera.global_pose.raw_pose


@pytest.mark.parametrize("env_id", ["PushCube-v1", "PokeCube-v1", "RollBall-v1"])
def test_a_target_offset_starts_from_the_point_that_the_task_looks_at(env_id):
    moved = make_task_env(env_id, 16, mesh_detail=0.1, camera=CameraChange(target_offset=(1e-6, 0.0, 0.0)))
    own = make_task_env(env_id, 16, mesh_detail=0.1)
    np.testing.assert_allclose(_camera_pose(moved), _camera_pose(own), atol=1e-5)
    moved.close()
    own.close()


def test_camera_change_shows_what_a_camera_put_there_shows():
    change = CameraChange(eye_offset=(0.1, -0.2, 0.05), target_offset=(0.0, 0.1, -0.1), fov=0.8)
    ours = make_task_env("PushCube-v1", 64, camera=change)
    pose = sapien_utils.look_at([0.7, 0.5, 0.65], [0.0, 0.1, 0.25]).raw_pose[0].tolist()
    theirs = gym.make(
        "PushCube-v1",
        obs_mode="state",
        render_mode="rgb_array",
        sim_backend="physx_cpu",
        render_backend="cpu",
        enhanced_determinism=True,
        human_render_camera_configs={"render_camera": {"width": 64, "height": 64, "pose": pose, "fov": 0.8}},
    )
    obs, _ = ours.reset(seed=0)
    theirs.reset(seed=0)
    expected = theirs.render().numpy().astype(int)
    difference = np.abs(frames(obs)[..., :3].numpy() - expected)
    assert difference.mean() < 0.05  # the pose passes through float32 twice
    ours.close()
    theirs.close()


def test_without_state_nothing_but_the_picture_is_observed():
    env = make_task_env("PickCube-v1", 16, with_state=False)
    obs, _ = env.reset(seed=0)
    leaves = [(path, leaf) for path, leaf in _leaves(obs)]
    assert [path for path, _ in leaves] == [("sensor_data", "human_camera", "rgba")]
    env.close()


def _leaves(tree, path=()):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, (*path, key))
    else:
        yield path, tree


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env_id": "PushCub-v1"}, "did you mean 'PushCube-v1'"),
        ({"env_id": "PushCube-v1", "reward_mode": "dense"}, "'sparse', 'normalized_dense'"),
        ({"env_id": "PushCube-v1", "mesh_detail": 0.0}, "env.mesh_detail=0.0"),
        ({"env_id": "PushCube-v1", "image_size": 0}, "env.image_size=0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        make_task_env(**arguments)
