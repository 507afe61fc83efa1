"""What `--measure` times is a whole update, not one that numbers which are not finite have ended."""

import dataclasses

import jax
import pytest

from configs.default import get_config
from rpd_jax import plan
from rpd_jax.settings import resolve


@pytest.fixture(scope="module")
def programs():
    config = get_config()
    config.profile = "cpu_state"
    config.env.backend, config.student.observation = "cpu", "state"
    config.env.num_envs, config.ppo.rollout_steps = 4, 8
    return plan.student_programs(resolve(config))


def test_a_measured_update_takes_all_its_steps(programs):
    found = plan.measure(programs, repeats=1)
    assert set(found) == {"student acts", "update"} and all(milliseconds > 0 for milliseconds in found.values())


def test_an_update_that_ended_early_is_not_measured(programs):
    _, update = programs
    state, rollout, *others = update.arguments
    broken = jax.tree.map(lambda leaf: jax.numpy.full(leaf.shape, jax.numpy.nan, leaf.dtype), rollout.rewards)
    broken = dataclasses.replace(update, arguments=(state, rollout.replace(rewards=broken), *others))
    with pytest.raises(FloatingPointError, match="ended at a rewards"):
        plan.measure([broken], repeats=1)
