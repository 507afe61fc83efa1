"""The update on a CUDA device: the numbers of a CPU, and no round trip to the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_learner import EXPECTED, METRICS, coefficients, make_learner, make_rollout, params_from_torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX sees no CUDA device"),
]


def run(learner, permutations):
    rollout = jax.block_until_ready(jax.device_put(make_rollout()))
    state = learner.init_from(params_from_torch())
    arguments = state, rollout, jax.random.key(0), coefficients(learner)
    options = {"permutations": permutations, "per_minibatch": True}
    learner.update(*arguments, **options)  # compiles
    with jax.transfer_guard_device_to_host("disallow"):
        return jax.block_until_ready(learner.update(*arguments, **options))


def test_update_in_full_precision_equals_expected_numbers():
    order = jnp.asarray(EXPECTED["permutations"].astype(np.int32))
    with jax.default_matmul_precision("highest"):
        _, metrics = run(make_learner(), order)
    expected = EXPECTED["rpd_mse/minibatch_metrics"]
    for column, name in enumerate(METRICS):
        computed = metrics["minibatches"][name]
        np.testing.assert_allclose(computed, expected[:, column], rtol=1e-3, atol=1e-5, err_msg=name)


def test_bfloat16_convolutions_stay_close():
    order = jnp.asarray(EXPECTED["permutations"].astype(np.int32))
    _, metrics = run(make_learner(**{"student.precision": "bfloat16"}), order)
    expected = EXPECTED["rpd_mse/minibatch_metrics"][:, METRICS.index("distill_loss")]
    np.testing.assert_allclose(metrics["minibatches"]["distill_loss"], expected, rtol=0.02)
