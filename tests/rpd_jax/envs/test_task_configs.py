import importlib
import pathlib
import re

import pytest

from rpd_jax import settings
from rpd_jax.envs.factory import camera_arguments
from rpd_jax.tasks import TASKS

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"
REWARD_MODES = {"dense": "normalized_dense", "sparse": "sparse"}


def _file_name(env_id: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", env_id.removesuffix("-v1")).lower()


@pytest.mark.parametrize("kind", REWARD_MODES)
@pytest.mark.parametrize("env_id", TASKS)
def test_each_task_and_reward_has_a_config_that_resolves(env_id, kind):
    name = f"{_file_name(env_id)}_{kind}"
    module = importlib.import_module(f"configs.{name}")
    assert f"python train.py --config=configs/{name}.py\n" in module.__doc__
    assert module.__doc__.startswith(env_id)
    for profile in ("paper", "cpu", "cpu_begun", "cpu_state"):
        config = module.get_config()
        config.profile = profile
        config = settings.resolve(config)
        assert (config.env.task, config.env.reward_mode) == (env_id, REWARD_MODES[kind])
        assert config.ppo.gamma == {"dense": 0.8, "sparse": 0.98 if profile == "cpu_begun" else 0.99}[kind]
        assert camera_arguments(config.env) == {"eye_offset": (0.0, 0.0, 0.0), "target_offset": (0.0, 0.0, 0.0)}


def test_the_camera_shift_is_sparse_push_cube_but_for_the_camera():
    shifted = importlib.import_module("configs.push_cube_camera_shift").get_config()
    plain = importlib.import_module("configs.push_cube_sparse").get_config()
    assert any(shifted.env.camera.eye_offset)
    shifted.env.camera = plain.env.camera
    assert shifted.to_dict() == plain.to_dict()
