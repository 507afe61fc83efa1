import pytest
from ml_collections import ConfigDict

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
