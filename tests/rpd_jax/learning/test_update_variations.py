"""Whole updates with settings other than the paper's equal a plain implementation in PyTorch (plain_update.py).

They are compared in float64: Adam divides by the size of a gradient, so that in float32 the rounding of small ones,
which is another on every processor, moves parameters visibly.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_in_a_hurry import IN_A_HURRY
from plain_update import TERMS, VARIATIONS, plain_loss, plain_minibatch, plain_params, plain_samples, prepare

from rpd_jax.learning import minibatches, schedules
from rpd_jax.learning.advantages import gae
from rpd_jax.learning.objective import objective

SCRIPT = Path(__file__).with_name("plain_update.py")
ROOT = SCRIPT.parents[3]


@pytest.fixture(scope="module")
def in_float64():
    """The differences of all variations, from a process of their own; how that compiles does not show at 1e-9."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {IN_A_HURRY}"
    run = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", VARIATIONS)
def test_update_equals_plain_float64(name, in_float64):
    found = in_float64[name]
    assert found["types"] == ["float64"]
    assert found["steps"] == found["expected steps"] > 0
    for term in (*TERMS, "parameters"):
        assert found[term] <= 1e-9, (term, found)
    if "stops" in name:
        assert found["steps"] < 6
    if "floored PPD" in name:
        assert 0 < found["floored"] < 1 and found["floored"] == pytest.approx(found["expected floored"], abs=1e-6)


@pytest.mark.parametrize("name", VARIATIONS)
def test_gradients_of_the_first_minibatch_in_float32(name):
    learner, params, rollout, order = prepare(name, np.float32)
    config = learner.config
    indices = np.split(order[0], config.ppo.num_minibatches)[0]
    plain = plain_params(params)
    batch = plain_minibatch(plain_samples(rollout, config.ppo), rollout, indices, 0)
    plain_loss(plain, batch, config)[0].backward()

    arrays = rollout.rewards, rollout.values, rollout.dones, rollout.next_value, rollout.next_done, rollout.final_values
    advantages = gae(*arrays, config.ppo.gamma, config.ppo.gae_lambda, config.ppo.finite_horizon)
    minibatch = minibatches.make_samples(rollout, advantages, 0).minibatch(jnp.asarray(indices), jnp.asarray(0))
    coefficients = schedules.coefficients(config, 0)

    @jax.jit
    def gradient(params, minibatch):
        return jax.grad(objective, has_aux=True)(params, learner.network, config, minibatch, None, coefficients)

    gradients, _ = gradient(params, minibatch)

    def difference(ours, theirs):
        theirs = theirs.grad.numpy()
        return np.linalg.norm(np.asarray(ours, np.float64) - theirs) / max(np.linalg.norm(theirs), 1e-3)

    assert max(jax.tree.leaves(jax.tree.map(difference, gradients["params"], plain))) <= 1e-5
