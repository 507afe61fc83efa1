import numpy as np
import pytest

from rpd_jax.envs.cpu_env import CpuVectorEnv
from rpd_jax.envs.soak import Soak, growth

TASK = {"env_id": "PickCube-v1", "image_size": 16, "reward_mode": "sparse", "mesh_detail": 0.07, "camera": {}}


def test_random_actions_show_nothing_wrong_and_a_wrong_number_is_seen():
    with CpuVectorEnv(TASK, 2, max_episode_steps=50, workers=1) as env:
        soak = Soak(env, 102, seed=0)
        soak.run()
        assert soak.wrong == set()
        assert soak.cells()[:4] == ["102", "2", "0.0%", "50.0"]
        step = env.step(np.zeros((2, 7)))
    step.state[1, 0] = np.nan
    soak._check(step, step.rgb, np.ones(2), np.array([2, 50]), np.array([True, False]))
    expected = {
        "a state is not finite",
        "frames stand still",
        "returns differ",
        "success differs",
        "a limit is not kept",
    }
    assert soak.wrong == expected


def test_growth_is_that_of_the_second_half():
    memory = [(0, 100.0), (500, 400.0), (1000, 400.0), (1500, 401.0), (2000, 402.0)]
    assert growth(memory) == pytest.approx(2.0)
