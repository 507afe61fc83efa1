"""The student's convolutions beside PyTorch's, compiled as users compile them, and the resizing of frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rpd_jax.student.convolution import conv_stack, resize_frames
from rpd_jax.student.networks import ENCODERS, ConvEncoder

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("height", [64, 61, 36])
@pytest.mark.parametrize("strides", [(4, 2, 1), (3, 2, 1)])  # of kernels that they divide, and of one that they do not
def test_convolutions_and_their_gradients_are_torchs(height, strides):
    frames = RNG.integers(0, 256, (6, height, height, 3), dtype=np.uint8)
    shapes = [(8, 8, 3, 16), (4, 4, 16, 32), (3, 3, 32, 24)]
    layers = [(RNG.normal(size=shape).astype(np.float32) / 8, RNG.normal(size=shape[3:]) / 8) for shape in shapes]
    layers = [(kernel, bias.astype(np.float32)) for kernel, bias in layers]
    theirs = [
        (torch.tensor(k.transpose(3, 2, 0, 1), requires_grad=True), torch.tensor(b, requires_grad=True))
        for k, b in layers
    ]
    hidden = torch.tensor(frames.transpose(0, 3, 1, 2)).float() / 255.0
    for (kernel, bias), stride in zip(theirs, strides, strict=True):
        hidden = torch.relu(torch.nn.functional.conv2d(hidden, kernel, bias, stride))
    cotangent = RNG.normal(size=hidden.shape).astype(np.float32)
    hidden.backward(torch.tensor(cotangent))

    @jax.jit  # one program to compile
    def output_and_gradients(layers):
        output, vjp = jax.vjp(lambda layers: conv_stack(frames, layers, strides, jnp.float32), layers)
        return output, *vjp(cotangent.transpose(0, 2, 3, 1))

    output, grads = output_and_gradients(layers)
    np.testing.assert_allclose(output, hidden.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-5)
    for (kernel_grad, bias_grad), (kernel, bias) in zip(grads, theirs, strict=True):
        np.testing.assert_allclose(kernel_grad, kernel.grad.numpy().transpose(2, 3, 1, 0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(bias_grad, bias.grad.numpy(), rtol=1e-4, atol=1e-4)


def test_a_scaled_encoder_sees_frames_around_zero_through_kernels_that_its_gain_has_made_larger():
    encoder = ConvEncoder(ENCODERS["small_scaled"])
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), FRAMES)["params"]
    params = jax.tree.map(lambda leaf: RNG.uniform(-1, 1, leaf.shape).astype(np.float32) / leaf.size**0.4, shapes)
    hidden = torch.tensor(FRAMES.transpose(0, 3, 1, 2)).float() / 255.0 - 0.5
    for name, stride in (("conv1", 4), ("conv2", 2), ("conv3", 1)):
        kernel = torch.tensor(np.sqrt(6.0) * params[name]["kernel"].transpose(3, 2, 0, 1), dtype=torch.float32)
        hidden = torch.relu(torch.nn.functional.conv2d(hidden, kernel, torch.tensor(params[name]["bias"]), stride))
    hidden = hidden.permute(0, 2, 3, 1).reshape(len(FRAMES), -1).numpy()
    expected = np.maximum(hidden @ params["dense"]["kernel"] + params["dense"]["bias"], 0.0)
    assert np.abs(expected).mean() > 0.01
    np.testing.assert_allclose(encoder.apply({"params": params}, FRAMES), expected, rtol=1e-4, atol=1e-5)


def test_convolutions_are_no_further_from_float64_than_torchs():
    shapes = [(8, 8, 3, 32), (4, 4, 32, 64), (3, 3, 64, 64)]
    layers = [
        (RNG.normal(size=shape) / np.sqrt(np.prod(shape[:3])), RNG.normal(size=shape[3:]) / 8) for shape in shapes
    ]
    layers = [(kernel.astype(np.float32), bias.astype(np.float32)) for kernel, bias in layers]

    def in_torch(dtype):
        hidden = torch.tensor(FRAMES.transpose(0, 3, 1, 2)).to(dtype) / 255.0
        for (kernel, bias), stride in zip(layers, (4, 2, 1), strict=True):
            kernel = torch.tensor(kernel.transpose(3, 2, 0, 1)).to(dtype)
            hidden = torch.relu(torch.nn.functional.conv2d(hidden, kernel, torch.tensor(bias).to(dtype), stride))
        return hidden.permute(0, 2, 3, 1).numpy()

    exact = in_torch(torch.float64)
    error = lambda output: np.sqrt(np.mean((np.asarray(output, np.float64) - exact) ** 2))  # noqa: E731
    assert error(conv_stack(FRAMES, layers, (4, 2, 1), jnp.float32)) < 1.5 * error(in_torch(torch.float32))


def test_bfloat16_convolutions_are_rounded_but_close():
    layers = [(RNG.normal(size=shape).astype(np.float32) / 16, np.zeros(16, np.float32)) for shape in [(8, 8, 3, 16)]]
    layers += [(RNG.normal(size=(4, 4, 16, 16)).astype(np.float32) / 16, np.zeros(16, np.float32))]

    def loss(layers, dtype):
        output = conv_stack(FRAMES, layers, (4, 2), dtype)
        return jnp.sum(output.astype(jnp.float32) ** 2), output

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, coarse), coarse_grads = gradient(layers, jnp.bfloat16)
    (_, fine), fine_grads = gradient(layers, jnp.float32)
    assert coarse.dtype == jnp.bfloat16
    for ours, theirs in zip(jax.tree.leaves((coarse, coarse_grads)), jax.tree.leaves((fine, fine_grads)), strict=True):
        difference = np.linalg.norm(np.asarray(ours, np.float32) - theirs) / np.linalg.norm(theirs)
        assert 1e-4 < difference < 2e-2  # bfloat16 has 8 bits


def test_resized_pixel_is_the_mean_over_its_area():
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    frames[0, :2, :2, 0] = [[10, 20], [30, 41]]
    resized = resize_frames(frames, 2)
    assert resized.dtype == jnp.uint8 and resized.shape == (1, 2, 2, 3)
    assert resized[0, :, :, 0].tolist() == [[25, 0], [0, 0]]
    assert resize_frames(frames, 4) is frames
    flat = np.full((2, 50, 50, 3), 77, np.uint8)
    np.testing.assert_array_equal(resize_frames(flat, 32), np.full((2, 32, 32, 3), 77))


def test_a_pixel_halfway_between_two_levels_goes_up_whatever_rounding_has_made_of_its_sum():
    frames = RNG.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    centres = (np.arange(48) + 0.5) * 4 / 3 - 0.5
    weights = np.maximum(1 - np.abs(np.arange(64) - centres[:, None]) * 3 / 4, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    exact = np.einsum("yh,bhwc,xw->byxc", weights, frames, weights)
    halves = np.abs(exact - np.floor(exact) - 0.5) < 1e-9
    assert halves.mean() > 0.02
    resized = np.asarray(resize_frames(frames, 48))
    np.testing.assert_array_equal(resized[halves], np.ceil(exact[halves]))
    assert np.abs(resized - exact).max() < 0.51
