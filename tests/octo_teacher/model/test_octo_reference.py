"""The model against numbers computed by the original implementation (tests/data/octo)."""

import json
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from octo_teacher.action_statistics import NormalizationType, read_statistics
from octo_teacher.model.action_heads import SamplingNoise
from octo_teacher.model.architectures import architecture
from octo_teacher.model.octo_module import create_module, param_shapes
from octo_teacher.octo_model import OctoModel

DATA = Path(__file__).parents[2] / "data" / "octo"
CASES = ["a", "b", "b_nopadmask", "c", "c_nolang"]


@cache
def load_model(correct_attention: bool = True) -> OctoModel:
    model = OctoModel.load_pretrained(DATA / "tiny")
    if correct_attention:
        return model
    config = {**model.config, "model": {**model.config["model"], "use_correct_attention": False}}
    return model.replace(module=create_module(config, DATA / "tiny"))


@cache
def load_arrays(name: str) -> dict:
    with np.load(DATA / f"{name}.npz") as arrays:
        return dict(arrays)


def subtree(name: str, prefix: str) -> dict:
    flat = {key.removeprefix(prefix): value for key, value in load_arrays(name).items() if key.startswith(prefix)}
    return unflatten_dict(flat, sep="/")


def inputs_of(case: str) -> tuple[dict, dict]:
    inputs = subtree("tiny_io", f"{case}/in/")
    return inputs["observation"], inputs["task"]


@cache
def outputs_of(case: str, correct_attention: bool):
    """Transformer outputs, and all intermediate values by module."""
    model = load_model(correct_attention)
    observations, tasks = inputs_of(case)

    @jax.jit
    def run(params, observations, tasks):
        return model.module.apply(
            {"params": params},
            observations,
            tasks,
            jnp.asarray(observations["timestep_pad_mask"]),
            capture_intermediates=lambda module, _: "Tokenizer" in type(module).__name__,
            mutable=["intermediates"],
            method=lambda m, *args: m.octo_transformer(*args),
        )

    return run(model.params, observations, tasks)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("correct_attention", [True, False], ids=["correct", "old"])
def test_transformer_outputs_and_masks(case, correct_attention):
    expected = subtree("tiny_io", f"{case}/{'out' if correct_attention else 'out_oldattn'}/")
    if not expected:
        pytest.skip("the original was not run on this combination")
    groups, state = outputs_of(case, correct_attention)
    mask = state["intermediates"]["octo_transformer"]["BlockTransformer_0"]["attention_mask"][0]
    np.testing.assert_array_equal(mask, expected.pop("attention_mask"))
    assert set(groups) == set(expected)
    for name, group in expected.items():
        np.testing.assert_array_equal(np.asarray(groups[name].mask, bool), group["mask"].astype(bool), err_msg=name)
        np.testing.assert_allclose(groups[name].tokens, group["tokens"], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_tokenizer_outputs(case):
    _, state = outputs_of(case, True)
    captured = state["intermediates"]["octo_transformer"]
    for name, group in subtree("tiny_io", f"{case}/tokenizer/").items():
        kind, short = name.split("_", 1)
        tokenizer = captured[f"{'task' if kind == 'task' else 'observation'}_tokenizers_{short}"]["__call__"][0]
        np.testing.assert_allclose(tokenizer.tokens, group["tokens"], atol=1e-4, err_msg=name)
        np.testing.assert_array_equal(tokenizer.mask, group["mask"].astype(bool), err_msg=name)


def test_missing_goals_are_black_images():
    groups, _ = outputs_of("a_nogoalkeys", True)
    expected = subtree("tiny_io", "a/out/readout_action/")["tokens"]
    np.testing.assert_allclose(groups["readout_action"].tokens, expected, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_noise_prediction(case):
    arrays = subtree("tiny_io", f"{case}/eps/")
    if not arrays:
        pytest.skip("the original was not run on this combination")
    model, (groups, _) = load_model(), outputs_of(case, True)
    prediction = model.module.apply(
        {"params": model.params},
        groups,
        arrays["time"],
        arrays["noisy_actions"],
        method=lambda m, *args: m.heads["action"](*args),
    )
    np.testing.assert_allclose(prediction, arrays["pred"], atol=1e-4)


@pytest.mark.parametrize("case", ["a", "b", "b_nopadmask", "c", "c_nolang", "d", "e", "f_clip"])
def test_sampled_actions(case):
    expected = subtree("tiny_io", f"{case}/sample/")
    if not expected:
        pytest.skip("the original was not run on this combination")
    model = load_model()
    observations, tasks = inputs_of("a" if case == "f_clip" else case)
    statistics = subtree("tiny_io", "stats/")
    if case == "e":
        statistics = {key: value[:5] for key, value in statistics.items()}
    noise = SamplingNoise(jnp.asarray(expected["initial_noise"]), jnp.asarray(expected["step_noise"]))
    sample_shape = (5,) if case == "d" else ()
    sample = partial(model.sample_actions, observations, tasks, sample_shape=sample_shape, noise=noise)
    if case != "e":
        np.testing.assert_allclose(sample(), expected["action_normalized"], atol=1e-4)
    for kind, name in (
        (NormalizationType.NORMAL, "action_unnormalized"),
        (NormalizationType.BOUNDS, "action_unnormalized_bounds"),
    ):
        if name in expected:
            actions = sample(unnormalization_statistics=statistics, normalization_type=kind)
            np.testing.assert_allclose(actions, expected[name], atol=1e-4)
            full = read_statistics(statistics, kind).unnormalize(jnp.asarray(expected["action_normalized"]))
            np.testing.assert_allclose(full, expected[name], atol=2e-5)


def test_clip_is_active_at_many_steps():
    trajectory = subtree("tiny_io", "f_clip/sample/")["x_trajectory"]
    assert (np.abs(trajectory[1:]) == 5.0).any(axis=(1, 2, 3)).sum() > 10


def test_noise_schedule():
    head = load_model().module.heads["action"]
    expected = subtree("tiny_io", "schedule/")
    for values, name in zip(head.schedule(), ("betas", "alphas", "alpha_hats"), strict=True):
        np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_training_loss_and_gradients():
    model = load_model()
    batch = subtree("tiny_train", "in/")
    time, noise = jnp.asarray(batch.pop("time")), jnp.asarray(batch.pop("noise"))
    loss_and_grad = jax.jit(
        jax.value_and_grad(lambda p: model.loss(p, batch, jax.random.key(0), time=time, noise=noise), has_aux=True)
    )
    (loss, metrics), grads = loss_and_grad(model.params)
    expected = load_arrays("tiny_train")
    np.testing.assert_allclose(loss, expected["out/loss"], rtol=1e-4)
    np.testing.assert_allclose(metrics["mse"], expected["out/mse"], rtol=1e-4)
    grads = flatten_dict(grads, sep="/")
    norm = np.sqrt(sum(np.square(np.asarray(g, np.float64)).sum() for g in grads.values()))
    np.testing.assert_allclose(norm, expected["out/grad_norm"], rtol=1e-4)
    assert {f"grad_l2/{name}" for name in grads} == {name for name in expected if name.startswith("grad_l2/")}
    for name, grad in grads.items():
        size = expected[f"grad_l2/{name}"]
        if "hf_model" in name:
            assert not np.any(grad), name
        else:
            np.testing.assert_allclose(grad, expected[f"grad/{name}"], atol=1e-4 * max(size, 1e-2), err_msg=name)


def test_loss_with_three_draws():
    model = load_model()
    batch, draws = subtree("tiny_train", "in/"), subtree("tiny_train", "n3/")
    time, noise = jnp.asarray(draws["time"]), jnp.asarray(draws["noise"])
    loss, _ = jax.jit(lambda params: model.loss(params, batch, jax.random.key(0), time=time, noise=noise))(model.params)
    np.testing.assert_allclose(loss, draws["loss"], rtol=1e-4)


@pytest.mark.parametrize("size", ["small", "base"])
def test_parameter_tree_of_published_sizes(size):
    config, batch = architecture(f"octo-{size}-1.5")
    shapes = flatten_dict(param_shapes(create_module(config), batch), sep="/")
    expected = json.loads((DATA / f"tree_octo_{size}_1_5.json").read_text())
    assert {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in shapes.items()} == expected
