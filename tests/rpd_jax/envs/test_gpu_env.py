"""What only a CUDA device can show; the behaviour itself is checked in test_vector_env.py on both kinds of wrapper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rpd_jax.envs import gpu_physics
from rpd_jax.envs.camera_task import frames, make_task_env, states
from rpd_jax.envs.maniskill_env import ManiSkillEnv

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or jax.default_backend() != "gpu", reason="no CUDA device"),
    pytest.mark.skipif(not gpu_physics.is_there(), reason=f"SAPIEN has not fetched {gpu_physics.LIBRARY}"),
]

TASK = {"env_id": "PushCube-v1", "image_size": 64, "reward_mode": "sparse", "mesh_detail": 1.0, "camera": {}}
N = 8


@pytest.fixture(scope="module")
def env():
    with ManiSkillEnv(TASK, N, max_episode_steps=50) as env:
        yield env


def test_frames_and_actions_cross_without_a_copy(env):
    env.reset(0)
    rgba = frames(env._env.unwrapped.get_obs())
    assert rgba.is_cuda and rgba.is_contiguous()
    assert jnp.from_dlpack(rgba).unsafe_buffer_pointer() == rgba.data_ptr()
    actions = jnp.zeros((N, 7)).block_until_ready()
    assert torch.from_dlpack(actions).data_ptr() == actions.unsafe_buffer_pointer()


def test_what_a_step_returns_is_that_step_and_stays_so(env):
    """The simulator draws into the same buffer again and again: a frame is read when it is done, and not later."""
    env.reset(0)
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(20):
        step = env.step(jnp.asarray(rng.uniform(-1, 1, (N, 7)), jnp.float32))
        obs = env._env.unwrapped.get_obs()
        kept.append((step, frames(obs)[..., :3].cpu().numpy(), states(obs).cpu().numpy()))
    for step, rgb, state in kept:
        assert step.rgb.devices() == {jax.devices("gpu")[0]}
        np.testing.assert_array_equal(step.rgb, rgb)
        np.testing.assert_array_equal(step.state, state)
    assert len({rgb.tobytes() for _, rgb, _ in kept}) == len(kept)


def test_only_ended_episodes_restart(env):
    """The pushes succeed at different steps."""
    from octo_teacher.demos.experts import EXPERTS

    env.reset(1)
    length, partial = np.zeros(N, int), 0
    for _ in range(50):
        state = np.asarray(env.state)
        poses = [{"tcp": row[18:25], "obj": row[28:35], "fingers": row[7:9]} for row in state]
        step = env.step(jnp.asarray(np.stack([EXPERTS["PushCube-v1"].act(pose) for pose in poses])))
        length += 1
        done = np.asarray(step.terminated | step.truncated)
        np.testing.assert_array_equal(np.asarray(step.episode.length)[done], length[done])
        moved = np.abs(np.asarray(step.state)[:, :7] - state[:, :7]).max(axis=1)
        assert (moved[~done] < 0.3).all(), "an environment that had not ended jumped"
        partial += 0 < done.sum() < N
        length[done] = 0
    assert partial > 0


def test_a_rebuilt_scene_is_drawn(env):
    """As evaluation environments with a reconfiguration at every reset do."""
    rebuilt = make_task_env("PushCube-v1", 64, num_envs=2, sim_backend="physx_cuda", render_backend="gpu")
    first, _ = rebuilt.reset(seed=[1, 2], options={"reconfigure": True})
    first = frames(first).cpu().numpy().copy()
    again, _ = rebuilt.reset(seed=[1, 2], options={"reconfigure": True})
    np.testing.assert_array_equal(frames(again).cpu().numpy(), first)
    assert first[..., :3].max() > 0
    rebuilt.close()
