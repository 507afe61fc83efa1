"""Losses equal numbers worked out by hand or by torch.distributions."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rpd_jax.learning import losses
from rpd_jax.student.gaussian import gaussian_entropy, gaussian_log_prob

RNG = np.random.default_rng(0)
MEAN, ACTIONS = RNG.normal(size=(2, 5, 7)).astype(np.float32)
LOG_STD = RNG.normal(size=7).astype(np.float32) * 0.3
SAMPLES = RNG.normal(size=(10, 5, 7)).astype(np.float32)
STUDENT = torch.distributions.Normal(torch.tensor(MEAN), torch.tensor(LOG_STD).exp())


def test_log_prob_and_entropy_are_torchs():
    expected = STUDENT.log_prob(torch.tensor(ACTIONS)).sum(-1)
    np.testing.assert_allclose(gaussian_log_prob(ACTIONS, MEAN, LOG_STD), expected, rtol=1e-5)
    np.testing.assert_allclose(gaussian_entropy(LOG_STD), STUDENT.entropy().sum(-1)[0], rtol=1e-6)


def test_normalized_advantages_use_the_unbiased_std():
    # mean 2, unbiased std sqrt((1 + 0 + 1) / 2) = 1
    np.testing.assert_allclose(losses.normalize_advantages(jnp.array([1.0, 2.0, 3.0])), [-1.0, 0.0, 1.0], rtol=1e-6)


def test_advantage_std_floor_keeps_noise_small():
    np.testing.assert_allclose(losses.normalize_advantages(jnp.array([1.0, 2.0, 3.0]), 4.0), [-0.25, 0.0, 0.25])


def test_clipped_surrogate_by_hand():
    ratio, advantages = jnp.array([1.5, 1.5, 0.5, 0.5]), jnp.array([1.0, -1.0, 1.0, -1.0])
    # Good action made likelier: clipped at 1.2; bad one made likelier: 1.5 counts in full;
    # good one made rarer: 0.5 counts in full; bad one made rarer: clipped at 0.8.
    expected = (-1.2 + 1.5 - 0.5 + 0.8) / 4
    assert losses.clipped_surrogate(jnp.log(ratio), advantages, 0.2) == pytest.approx(expected, rel=1e-6)
    assert losses.clip_fraction(jnp.log(jnp.array([1.5, 1.1, 0.5, 0.9])), 0.2) == pytest.approx(0.5)


def test_value_losses_by_hand():
    values, old, returns = jnp.array([2.0, 0.0]), jnp.array([1.0, 0.0]), jnp.array([2.0, 1.0])
    assert losses.value_loss(values, returns) == pytest.approx(0.5 * (0.0 + 1.0) / 2)
    # The first value moved by 1, clipped to 1.2: error 0.8.
    assert losses.clipped_value_loss(values, old, returns, 0.2) == pytest.approx(0.5 * (0.64 + 1.0) / 2)


def test_approx_kl_by_hand():
    expected = ((2 - 1) - math.log(2) + (0.5 - 1) - math.log(0.5)) / 2
    assert losses.approx_kl(jnp.log(jnp.array([2.0, 0.5]))) == pytest.approx(expected, rel=1e-6)


def test_rpd_terms():
    difference = MEAN - SAMPLES[0]
    args = (MEAN, LOG_STD, np.zeros(5, np.float32), SAMPLES, 0.2)
    assert losses.distillation_loss("mse", *args) == pytest.approx((difference**2).mean(), rel=1e-5)
    assert losses.distillation_loss("l1", *args) == pytest.approx(np.abs(difference).mean(), rel=1e-5)
    expected_bc = -STUDENT.log_prob(torch.tensor(SAMPLES[0])).sum(-1).mean()
    assert losses.distillation_loss("bc", *args) == pytest.approx(float(expected_bc), rel=1e-5)


def test_ppd_is_torchs_kl_of_normals_weighted_by_the_ratio():
    ratio = np.array([0.5, 0.8, 1.0, 1.5, 3.0], np.float32)
    samples = torch.tensor(SAMPLES)
    teacher = torch.distributions.Normal(samples.mean(0), samples.std(0, correction=0))
    kl = torch.distributions.kl_divergence(STUDENT, teacher).sum(-1).numpy()
    expected = (kl * np.maximum(ratio, 0.8)).mean()
    computed = losses.distillation_loss("ppd", MEAN, LOG_STD, np.log(ratio), SAMPLES, 0.2)
    assert computed == pytest.approx(expected, rel=1e-5)


def test_ppd_std_floor_keeps_a_repeating_teacher_finite():
    repeated = np.repeat(SAMPLES[:1], 10, axis=0)
    args = (MEAN, LOG_STD, np.zeros(5, np.float32), repeated, 0.2)
    assert not np.isfinite(losses.ppd(*args))
    floored = torch.distributions.Normal(torch.tensor(SAMPLES[0]), 0.1)
    expected = torch.distributions.kl_divergence(STUDENT, floored).sum(-1).mean()
    assert losses.ppd(*args, std_floor=0.1) == pytest.approx(float(expected), rel=1e-4)


def test_unknown_distillation_loss_is_an_error():
    with pytest.raises(ValueError, match="cosine"):
        losses.distillation_loss("cosine", MEAN, LOG_STD, np.zeros(5), SAMPLES, 0.2)
