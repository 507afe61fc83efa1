import pytest
import torch
from ml_collections import ConfigDict

from rpd_jax.envs.factory import make_vector_env
from rpd_jax.errors import UserError


def _config(**changes) -> ConfigDict:
    config = ConfigDict(
        {
            "task": "PushCube-v1",
            "num_envs": 2,
            "reward_mode": "sparse",
            "backend": "cpu",
            "workers": 1,
            "image_size": 8,
            "mesh_detail": 0.07,
            "step_timeout": 60.0,
            "camera": {"eye_offset": (0.0, 0.0, 0.0), "target_offset": (0.0, 0.0, 0.1), "fov": None},
        }
    )
    config.update(changes)
    return config


def test_a_config_becomes_environments():
    with make_vector_env(_config()) as env:
        assert env.reset(0).shape == (2, 8, 8, 3)
        assert (env.num_envs, env.image_size, env.action_dim, env.state_dim) == (2, 8, 7, 35)
        assert (env.max_episode_steps, env.step_timeout) == (50, 60.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "PushCub-v1"}, "did you mean 'PushCube-v1'"),
        ({"backend": "tpu"}, "env.backend='tpu' is not one of 'auto', 'cpu', 'gpu'"),
        ({"num_envs": 0}, "env.num_envs=0"),
        ({"mesh_detail": 0.0}, "env.mesh_detail=0.0"),
        ({"reward_mode": "dense"}, "env.reward_mode='dense' is not one of"),
    ],
)
def test_wrong_fields_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        make_vector_env(_config(**changes))


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_gpu_backend_without_a_gpu_is_refused():
    with pytest.raises(UserError, match=r"env.backend='gpu' needs a CUDA device"):
        make_vector_env(_config(backend="gpu"))
