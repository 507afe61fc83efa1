"""What `--plan` counts, and what `--measure` times: a whole update, not one that has ended before."""

import dataclasses

import jax
import pytest
from ml_collections import ConfigDict

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
    assert set(found) == {"student acts", "update"}
    for milliseconds, kernels in found.values():
        assert milliseconds > 0 and kernels
    assert any("transpose(jvp" in kernel.source for kernel in found["update"][1]), "no kernel of the gradients"


def test_an_update_that_ended_early_is_not_measured(programs):
    _, update = programs
    state, rollout, *others = update.arguments
    broken = jax.tree.map(lambda leaf: jax.numpy.full(leaf.shape, jax.numpy.nan, leaf.dtype), rollout.rewards)
    broken = dataclasses.replace(update, arguments=(state, rollout.replace(rewards=broken), *others))
    with pytest.raises(FloatingPointError, match="ended at a rewards"):
        plan.measure([broken], repeats=1)


@pytest.mark.parametrize(
    "student",
    [{"observation": "state"}, {"observation": "rgb+state"}, {"observation": "rgb", "critic": "state"}],
    ids=lambda student: "-".join(student.values()),
)
def test_the_memory_of_a_student_that_reads_the_state_is_told(student):
    config = get_config()
    config.refine, config.profile, config.env.backend = "pixels", "cpu", "cpu"
    config.student.update(student)
    config = resolve(config)
    table = plan.memory_table(config, plan.student_programs(config), plan.DEVICES["h100"])
    minibatches = [float(cell) for cell in table.columns[3].cells]
    assert len(minibatches) == len(plan.ENVIRONMENTS) and minibatches == sorted(minibatches)
    assert (minibatches[0] > 0.1) == ("rgb" in student["observation"])


def test_an_update_that_the_target_kl_ended_counts_by_what_it_did():
    ppo = ConfigDict({"update_epochs": 2, "num_minibatches": 4})
    assert plan.part_done({"optimizer_steps": 8, "target_kl_stop": 0.0}, ppo) == 1.0
    # The fourth minibatch's gradient was taken, and its step was not.
    assert plan.part_done({"optimizer_steps": 3, "target_kl_stop": 1.0}, ppo) == 0.5
