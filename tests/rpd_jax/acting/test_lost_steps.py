"""Steps that were lost with their worker teach nothing and leave all others as they would be without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from rpd_jax import settings
from rpd_jax.acting.collect import cut_lost_steps
from rpd_jax.learning import schedules
from rpd_jax.learning.advantages import gae
from rpd_jax.learning.learner import Learner
from rpd_jax.learning.rollout import Rollout
from rpd_jax.student.networks import ActorCritic

T, N = 8, 4


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "rewards": rng.normal(size=(T, N)).astype(np.float32),
        "values": rng.normal(size=(T, N)).astype(np.float32),
        "dones": np.zeros((T, N), bool),
        "next_value": rng.normal(size=N).astype(np.float32),
        "next_done": np.zeros(N, bool),
        "final_values": np.zeros((T, N), np.float32),
    }


def _with_lost_steps() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Environment 0 loses step 3, environment 1 step 3 right after an episode's end, 2 its first and 3 its last."""
    arrays, valid = _arrays(), np.ones((T, N), bool)
    arrays["dones"][3, 1], arrays["final_values"][2, 1] = True, 0.5
    for t, n in ((3, 0), (3, 1), (0, 2), (T - 1, 3)):
        valid[t, n] = False
        if t + 1 < T:
            arrays["dones"][t + 1, n] = True
        else:
            arrays["next_done"][n] = True
    cut = cut_lost_steps(arrays["dones"], arrays["values"], arrays["final_values"], valid)
    return arrays | dict(zip(("dones", "final_values"), cut, strict=True)), valid


@pytest.mark.parametrize("finite_horizon", [False, True])
def test_returns_end_before_a_lost_step_and_begin_anew_after_it(finite_horizon):
    arrays, _ = _with_lost_steps()
    computed = gae(**arrays, gamma=0.9, gae_lambda=0.8, finite_horizon=finite_horizon)
    plain = _arrays()

    def piece(n, begin, end, next_value, final_value=None):
        """Advantages of steps begin..end-1 as a rollout of their own."""
        part = {name: plain[name][begin:end, n : n + 1] for name in ("rewards", "values", "dones", "final_values")}
        ended = np.full(1, final_value is not None)
        if final_value is not None:
            part["final_values"] = part["final_values"].copy()
            part["final_values"][-1] = final_value
        part |= {"next_value": np.full(1, next_value, np.float32), "next_done": ended}
        return gae(**part, gamma=0.9, gae_lambda=0.8, finite_horizon=finite_horizon)[:, 0]

    values, last = plain["values"], plain["next_value"]
    expected = {
        (0, 0, 3): piece(0, 0, 3, values[3, 0]),
        (0, 4, T): piece(0, 4, T, last[0]),
        (1, 0, 3): piece(1, 0, 3, 0.0, final_value=0.5),
        (1, 4, T): piece(1, 4, T, last[1]),
        (2, 1, T): piece(2, 1, T, last[2]),
        (3, 0, T - 1): piece(3, 0, T - 1, values[T - 1, 3]),
    }
    for (n, begin, end), advantages in expected.items():
        np.testing.assert_allclose(computed[begin:end, n], advantages, rtol=1e-5, atol=1e-6)


def _update(learner, params, valid, arrays, **changes):
    rng = np.random.default_rng(1)
    rollout = {
        "rgb": None,
        "state": rng.normal(size=(T, N, 5)).astype(np.float32),
        "actions": rng.normal(size=(T, N, 7)).astype(np.float32),
        "logprobs": rng.normal(size=(T, N)).astype(np.float32),
        "teacher_actions": rng.normal(size=(1, 1, T, N, 7)).astype(np.float32),
        "valid": valid,
        **arrays,
    }
    for name, change in changes.items():
        rollout[name] = change(rollout[name])
    rollout = {name: None if array is None else jnp.asarray(array) for name, array in rollout.items()}
    coefficients = schedules.coefficients(learner.config, 0)
    state, metrics = learner.update(learner.init_from(params), Rollout(**rollout), jax.random.key(3), coefficients)
    assert learner.nonfinite_term(metrics) is None
    return jax.tree.leaves(state.params["params"]), jax.tree.leaves(state.params["statistics"]), metrics


def test_a_lost_step_changes_no_parameter_whatever_its_sample_holds():
    config = default.get_config()
    config.profile = "cpu_state"
    config.student.observation = "state"
    config.env.num_envs, config.ppo.rollout_steps, config.ppo.num_minibatches, config.ppo.update_epochs = N, T, 2, 2
    config = settings.resolve(config)
    learner = Learner(ActorCritic.from_config(config.student), config)
    params = learner.init(jax.random.key(0), None, np.zeros((1, 5), np.float32)).params
    arrays, valid = _with_lost_steps()

    def spoil(array):
        """Adds a large number at the lost steps."""
        shape = (*valid.shape, *[1] * (array.ndim - 2)) if array.shape[:2] == (T, N) else (1, 1, T, N, 1)
        return array + 100.0 * ~valid.reshape(shape).astype(bool)

    fields = ("state", "actions", "logprobs", "teacher_actions", "rewards")
    one, seen, metrics = _update(learner, params, valid, arrays)
    other, seen_by_other, other_metrics = _update(learner, params, valid, arrays, **dict.fromkeys(fields, spoil))
    for a, b in zip([*one, *seen], [*other, *seen_by_other], strict=True):
        np.testing.assert_array_equal(a, b)
    assert metrics["advantage_std"] == other_metrics["advantage_std"]
    assert metrics["explained_variance"] == other_metrics["explained_variance"]

    plain = _arrays()
    all_valid, seen, _ = _update(learner, params, np.ones((T, N), bool), plain)
    unmasked, seen_unmasked, _ = _update(learner, params, None, plain)
    for a, b in zip(all_valid, unmasked, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(seen, seen_unmasked, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)  # where all count, XLA sums in another order
    assert any(not np.array_equal(a, b) for a, b in zip(all_valid, one, strict=True))
