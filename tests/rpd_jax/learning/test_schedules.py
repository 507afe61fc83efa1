import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs import default
from rpd_jax import settings
from rpd_jax.learning import schedules


def test_cosine_falls_from_coef_to_coef_final():
    distill = ConfigDict({"coef": 1.0, "coef_final": 0.0, "schedule": "cosine", "anneal_steps": 1000})
    values = [schedules.distill_coef(distill, step) for step in (0, 500, 1000, 5000)]
    assert values == pytest.approx([1.0, 0.5, 0.0, 0.0])
    distill.coef_final = 0.2
    # halfway between 1.0 and 0.2
    assert schedules.distill_coef(distill, 500) == pytest.approx(0.6)


def test_constant_stays():
    distill = ConfigDict({"coef": 0.7, "coef_final": 0.0, "schedule": "constant", "anneal_steps": 10})
    assert schedules.distill_coef(distill, 10**9) == 0.7


def test_learning_rate_is_linear():
    ppo = ConfigDict({"learning_rate": 3e-4, "learning_rate_final": 1e-4})
    assert schedules.learning_rate(ppo, 50, 100) == pytest.approx(2e-4)
    assert schedules.learning_rate(ppo, 100, 100) == pytest.approx(1e-4)


def test_the_critic_learns_first_and_then_adam_begins_anew():
    config = default.get_config()
    config.profile, config.student.observation = "cpu_state", "state"
    config.env.num_envs, config.ppo.rollout_steps, config.ppo.num_minibatches = 4, 8, 2
    config.ppo.critic_first = 48
    config = settings.resolve(config)
    found = [schedules.coefficients(config, step) for step in (0, 32, 64, 96)]
    assert [c.policy for c in found] == [0.0, 0.0, 1.0, 1.0]
    assert [c.distill > 0 for c in found] == [False, False, True, True]
    assert [c.restart for c in found] == [False, False, True, False]
    config.ppo.critic_first = 0
    assert not schedules.coefficients(config, 0).restart and schedules.coefficients(config, 0).policy == 1.0
    # Imitation has no critic to wait for.
    config.algorithm, config.ppo.critic_first = "dagger", 48
    assert schedules.coefficients(config, 0).distill > 0


@given(success=st.floats(0, 1), threshold=st.floats(0.01, 1), step=st.integers(0, 10**9))
def test_with_success_lambda_falls_while_the_sampled_actions_get_better(success, threshold, step):
    """And is back where they get worse, whatever the step."""
    kind = {"schedule": "success", "anneal_success": threshold}
    distill = ConfigDict({"coef": 2.0, "coef_final": 0.5, "anneal_steps": 1} | kind)
    found = schedules.distill_coef(distill, step, success)
    assert 0.5 <= found <= 2.0
    if success >= threshold:
        assert found == 0.5
    elif success < 0.99 * threshold:
        assert found > 0.5
    assert schedules.distill_coef(distill, step, 0.0) == 2.0
    assert schedules.distill_coef(distill, step, threshold / 2) == pytest.approx(1.25)
    assert schedules.distill_coef(distill, step, success / 2) >= found
