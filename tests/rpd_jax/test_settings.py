import importlib.util

import pytest

from configs import default
from rpd_jax import settings
from rpd_jax.errors import UserError


def test_paper_profile_has_the_published_values():
    config = default.get_config("PushCube-v1", "normalized_dense")
    config.profile = "paper"
    config = settings.resolve(config)
    assert (config.env.num_envs, config.ppo.rollout_steps, config.total_steps) == (128, 50, 30_000_000)
    assert (config.ppo.update_epochs, config.ppo.num_minibatches, config.ppo.learning_rate) == (8, 48, 3e-4)
    assert (config.ppo.gamma, config.ppo.gae_lambda, config.ppo.target_kl) == (0.8, 0.9, 0.2)
    assert (config.env.image_size, config.student.image_size, config.student.encoder) == (256, 256, "nature")
    assert (config.distill.coef, config.distill.schedule, config.distill.replay, config.distill.augment) == (
        1,
        "constant",
        0,
        0,
    )


def test_sparse_rewards_discount_less():
    assert default.get_config("PushCube-v1", "sparse").ppo.gamma == 0.99


def test_auto_is_the_cpu_profile_without_a_gpu():
    assert settings.resolve(default.get_config()).profile == "cpu"
    state = default.get_config()
    state.student.observation = "state"
    assert settings.resolve(state).profile == "cpu_state"


def test_departures_name_what_differs_from_the_paper():
    config = default.get_config()
    paper = config.profiles.paper
    config.profile = "paper"
    config.env.num_envs = 64
    assert settings.departures(settings.resolve(config), paper) == ["env.num_envs=64"]
    assert "distill.augment=6" in settings.departures(settings.resolve(default.get_config()), paper)


def test_explicit_values_win_over_the_profile():
    config = default.get_config()
    config.env.num_envs = 4
    config.ppo.num_minibatches = 2
    resolved = settings.resolve(config)
    assert resolved.env.num_envs == 4
    assert resolved.ppo.num_minibatches == 2
    assert resolved.env.image_size == 128


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("algorithm", "rpd_mes", "did you mean 'rpd_mse'"),
        ("env.task", "PushCub-v1", "did you mean 'PushCube-v1'"),
        ("student.observation", "rbg", "did you mean 'rgb'"),
        ("ppo.num_minibatches", 1000, "is too many"),
        ("env.mesh_detail", 1.5, "env.mesh_detail"),
        ("env.camera.eye_offset", (0.2,), r"env.camera.eye_offset=\(0.2,\) must be three numbers"),
        ("total_steps", 10, "less than one iteration"),
        ("distill.replay", 0, "go together"),
        ("profile", "laptop", "profile='laptop'"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(field, value, sentence):
    config = default.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=sentence):
        settings.resolve(config)


def test_wandb_is_off_and_its_absence_is_told_before_work():
    config = default.get_config()
    assert settings.resolve(config).log.wandb is False
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed here")
    config.log.wandb = True
    with pytest.raises(UserError, match=r"pip install 'rpd-jax\[wandb\]'"):
        settings.resolve(config)
