import imageio.v2 as imageio
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict
from scipy.stats import binomtest

from octo_teacher.demos.experts import find_expert
from rpd_jax.acting.episodes import run_episodes, wilson_interval
from rpd_jax.acting.video import write_filmstrip, write_video
from rpd_jax.envs.cpu_env import CpuVectorEnv
from rpd_jax.envs.factory import make_vector_env
from rpd_jax.errors import UserError


def test_wilson_interval_against_the_published_example():
    # 50 of 100: centre 0.5, half width z sqrt(0.25/100 + z²/40000) / (1 + z²/100) = 0.0962
    assert wilson_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


@given(st.integers(1, 1000), st.data())
def test_wilson_interval_holds_the_rate_and_is_scipys(episodes, data):
    successes = data.draw(st.integers(0, episodes))
    low, high = wilson_interval(successes, episodes)
    assert 0.0 <= low <= successes / episodes <= high <= 1.0
    assert (low, high) == tuple(binomtest(successes, episodes).proportion_ci(0.95, method="wilson"))


@pytest.mark.slow
def test_every_environment_runs_its_share_of_whole_episodes(tmp_path):
    expert = find_expert("PushCube-v1")

    def act(rgb, state, key):
        # ManiSkill's state: qpos 9, qvel 9, tool pose 7, goal 3, cube pose 7.
        poses = [{"fingers": row[7:9], "tcp": row[18:25], "obj": row[28:35]} for row in np.asarray(state, np.float64)]
        return jnp.asarray(np.stack([expert.act(pose) for pose in poses]))

    env = ConfigDict({"task": "PushCube-v1", "num_envs": 2, "workers": 1, "image_size": 16, "reward_mode": "sparse"})
    env.mesh_detail = 0.15
    with make_vector_env(env, backend="cpu") as envs:
        episodes = run_episodes(envs, act, num_episodes=3, seed=1, video_episodes=2)
    # 3 rounded up to 2 each; the expert succeeds, sparse reward 1 on the last step only.
    assert len(episodes.success) == 4
    np.testing.assert_array_equal(episodes.success, 1.0)
    np.testing.assert_array_equal(episodes.episode_return, 1.0)
    assert (episodes.length < 25).all()
    # One frame before the first step and one after each; the last is that of the success, not the next episode's.
    assert sorted(len(video) for video in episodes.videos)[0] >= episodes.length.min() + 1
    assert (episodes.videos[0][-1] != episodes.videos[0][0]).any()
    summary = episodes.summary()
    assert (summary["success"], summary["episodes"]) == (1.0, 4.0)

    write_filmstrip(tmp_path / "strip.png", episodes.videos[0], frames=3)
    strip = imageio.imread(tmp_path / "strip.png")
    np.testing.assert_array_equal(strip[:, :16], episodes.videos[0][0])
    np.testing.assert_array_equal(strip[:, -16:], episodes.videos[0][-1])
    path = tmp_path / "videos" / "expert.mp4"
    write_video(path, episodes.videos)
    frames = imageio.mimread(path)
    assert len(frames) == max(len(video) for video in episodes.videos)
    assert frames[0].shape == (16, 32, 3)


def test_an_action_that_is_no_number_is_named():
    task = {"env_id": "PushCube-v1", "image_size": 16, "reward_mode": "sparse", "mesh_detail": 0.07, "camera": {}}

    def act(rgb, state, key):
        actions = np.zeros((2, 7), np.float32)
        actions[1, 3] = np.nan
        return actions

    with (
        CpuVectorEnv(task, 2, max_episode_steps=50, workers=1) as envs,
        pytest.raises(UserError, match="gave nan as dimension 3 of its action in environment 1 at step 0"),
    ):
        run_episodes(envs, act, 2, seed=0)
