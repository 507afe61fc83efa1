"""Scripted experts solve their tasks within the limit, and act on the current poses alone."""

import gymnasium as gym
import mani_skill.envs  # noqa: F401
import numpy as np
import pytest

from octo_teacher.demos.experts import find_expert, read_poses
from rpd_jax.errors import UserError
from rpd_jax.tasks import find_task


def play(task: str, seeds: range) -> list[int]:
    """Returns the lengths of the successful ones among episodes with `seeds`."""
    env = gym.make(
        task, obs_mode="none", control_mode="pd_ee_delta_pose", reward_mode="sparse", sim_backend="physx_cpu"
    )
    expert, lengths = find_expert(task), []
    for seed in seeds:
        env.reset(seed=seed)
        for step in range(1, find_task(task).max_episode_steps + 1):
            action = expert.act(read_poses(env, expert))
            assert action.dtype == np.float32 and action.shape == (7,) and np.abs(action).max() <= 1.0
            _, _, _, _, info = env.step(action)
            if info["success"]:
                lengths.append(step)
                break
    env.close()
    return lengths


def test_push_cube_expert_succeeds_every_time_in_about_ten_steps():
    lengths = play("PushCube-v1", range(500, 520))
    assert len(lengths) == 20
    assert np.mean(lengths) < 13


@pytest.mark.parametrize("task", ["PickCube-v1", "PullCube-v1", "StackCube-v1"])
def test_cube_experts_succeed_every_time(task):
    assert len(play(task, range(500, 506))) == 6


@pytest.mark.slow
@pytest.mark.parametrize(("task", "least"), [("LiftPegUpright-v1", 7), ("RollBall-v1", 3)])
def test_the_other_experts_succeed_often_enough_to_record(task, least):
    assert len(play(task, range(500, 510))) >= least


def test_push_cube_expert_goes_behind_the_cube_before_it_pushes():
    act = find_expert("PushCube-v1").act
    cube = np.array([0.05, 0.02, 0.02, 1, 0, 0, 0])
    before = act({"tcp": np.array([0.06, 0.0, 0.17, 0, 1, 0, 0]), "obj": cube})
    assert before[0] < 0 < before[1]
    behind = act({"tcp": np.array([-0.01, 0.02, 0.02, 0, 1, 0, 0]), "obj": cube})
    assert behind[0] > 0.5 and abs(behind[1]) < 1e-6
    assert before[6] == behind[6] == -1.0


def test_a_task_without_an_expert_is_named():
    with pytest.raises(UserError, match=r"no scripted expert for 'PokeCube-v1'.*PushCube-v1"):
        find_expert("PokeCube-v1")
