"""Rarely used parts against numbers computed by the original implementation (tests/original_octo/part_cases.py)."""

import json
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from octo_teacher.model.action_heads import SamplingNoise
from octo_teacher.model.module_spec import parse_spec
from octo_teacher.model.named_parts import ENCODERS, OBSERVATION_TOKENIZERS
from octo_teacher.model.resnet import ResNet26FILM, ViTResnet
from octo_teacher.model.token_groups import TokenGroup
from octo_teacher.model.unet_head import UNetDDPMActionHead
from rpd_jax.errors import UserError
from tests.original_octo import part_cases

DATA = Path(__file__).parents[2] / "data" / "octo"


@cache
def recorded() -> dict[str, np.ndarray]:
    with np.load(DATA / "parts.npz") as arrays:
        return dict(arrays)


# Quick to compile; these networks are small.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def shapes_of(module, *args, **kwargs) -> dict[str, list[int]]:
    variables = jax.eval_shape(partial(module.init, **kwargs), jax.random.key(0), *args)
    return {name: list(leaf.shape) for name, leaf in flatten_dict(variables.get("params", {}), sep="/").items()}


def filled(module, *args, **kwargs) -> dict:
    shapes = shapes_of(module, *args, **kwargs)
    flat = {name: part_cases.weight(name, tuple(shape)) for name, shape in shapes.items()}
    return {"params": unflatten_dict(flat, sep="/")}


@pytest.mark.parametrize("name", part_cases.ENCODERS)
def test_encoders(name):
    spec, shape, numbers = part_cases.ENCODERS[name]
    encoder = parse_spec(spec, ENCODERS, name).build()
    condition = part_cases.drawn(name, shape[0], numbers) if numbers else None
    frames = part_cases.images(name, *shape)
    params = filled(encoder, frames, condition=condition)
    features = compiled(encoder.apply)(params, frames, condition=condition)
    np.testing.assert_allclose(features, recorded()[f"encoder/{name}"], atol=1e-4)


@pytest.mark.parametrize("name", part_cases.TOKENIZERS)
def test_tokenizers(name):
    parsed = parse_spec(part_cases.TOKENIZERS[name], OBSERVATION_TOKENIZERS, name)
    own = {}
    if "encoder" in dict(parsed.kwargs):
        own["encoder"] = parse_spec(dict(parsed.kwargs)["encoder"].to_dict(), ENCODERS, name)
    tokenizer, args = parsed.build(**own), part_cases.tokenizer_inputs()
    group = compiled(partial(tokenizer.apply, train=False))(filled(tokenizer, *args, train=False), *args)
    np.testing.assert_allclose(group.tokens, recorded()[f"tokenizer/{name}/tokens"], atol=1e-4)
    np.testing.assert_array_equal(group.mask, recorded()[f"tokenizer/{name}/mask"].astype(bool))


class SmallUNetHead(UNetDDPMActionHead):
    """The head with the network of part_cases."""

    down_features = part_cases.UNET["down_features"]
    time_features = part_cases.UNET["time_features"]


def head_and_inputs(name: str, batch: int, window: int):
    head = SmallUNetHead(**part_cases.HEAD, **part_cases.HEADS[name])
    inputs = part_cases.head_inputs(batch, window)
    tokens = jnp.asarray(inputs["tokens"])
    outputs = {"readout_action": TokenGroup(tokens, jnp.ones(tokens.shape[:-1], bool))}
    return head, inputs, outputs, filled(head, outputs)


def expected_of(name: str) -> dict[str, np.ndarray]:
    prefix = f"head/{name}/"
    return {key.removeprefix(prefix): value for key, value in recorded().items() if key.startswith(prefix)}


def test_noise_predicted_by_the_unet_in_a_window_of_two():
    head, inputs, outputs, params = head_and_inputs("mean", 2, 2)
    predicted = compiled(head.apply)(params, outputs, inputs["time"], inputs["noisy_actions"])
    np.testing.assert_allclose(predicted, expected_of("mean")["called"], atol=1e-4)


def test_loss_of_the_unet():
    head, inputs, outputs, params = head_and_inputs("flat", 2, 1)
    expected = expected_of("flat")
    loss = compiled(partial(head.apply, train=True, method="loss"))
    args = [inputs[key] for key in ("actions", "timestep_pad_mask", "action_pad_mask")]
    value, metrics = loss(params, outputs, *args, time=expected["time"], noise=expected["noise"])
    np.testing.assert_allclose([value, metrics["mse"]], expected["loss"], rtol=1e-4)


@pytest.mark.parametrize("name", part_cases.DIMENSIONS)
def test_actions_sampled_by_the_unet(name):
    head, _, outputs, params = head_and_inputs(name, 1, 1)
    expected, dimensions = expected_of(name), part_cases.DIMENSIONS[name]
    # Rows and samples, which the original has one of, do not see each other: the recorded one is one of four.
    other = part_cases.drawn("other row", *outputs["readout_action"].tokens.shape)
    tokens = jnp.concatenate([other, outputs["readout_action"].tokens])
    outputs = {"readout_action": TokenGroup(tokens, jnp.ones(tokens.shape[:-1], bool))}
    initial, steps = (part_cases.drawn("noise", *shape, 24) for shape in ((2, 2, 1), (head.diffusion_steps, 2, 2, 1)))
    initial[1, 1], steps[:, 1, 1] = expected["initial_noise"].reshape(1, 24), expected["step_noise"].reshape(-1, 1, 24)

    def sample(params, noise):
        return head.apply(
            params,
            outputs,
            noise=noise,
            sample_shape=(2,),
            embodiment_action_dim=dimensions,
            method="predict_action",
        )

    actions = np.asarray(compiled(sample)(params, SamplingNoise(initial, steps)))
    assert actions.shape == (2, 2, 8, 3)
    recorded_actions = expected["actions"][0, -1]
    # Without clip_sample the numbers grow: 713 at most.
    np.testing.assert_allclose(actions[1, 1], recorded_actions, atol=1e-5 * max(10, np.abs(recorded_actions).max()))
    assert not np.allclose(actions[0, 1], actions[1, 1], rtol=0.1)


def test_parameter_trees_of_the_published_sizes():
    expected = json.loads((DATA / "tree_parts.json").read_text())
    frames, condition = np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 512), np.float32)
    encoder = jax.eval_shape(
        lambda key, condition: ResNet26FILM().init(key, frames, 3, condition), jax.random.key(0), condition
    )["params"]
    found = {name: list(leaf.shape) for name, leaf in flatten_dict(encoder, sep="/").items()}
    assert found == expected["ResNet26FILM"]
    tokens = jnp.zeros((1, 1, 1, 384))
    outputs = {"readout_action": TokenGroup(tokens, jnp.ones((1, 1, 1), bool))}
    head = UNetDDPMActionHead("readout_action", 7, 4, use_map=False)
    assert shapes_of(head, outputs) == expected["UNetDDPMActionHead"]


def test_black_goals_behind_the_images_of_a_residual_network():
    encoder, frames = ViTResnet(width=0.5), part_cases.images("frames", 1, 16, 16, 3)
    stacked = np.concatenate([frames, np.zeros_like(frames)], axis=-1)
    params = filled(encoder, stacked)
    np.testing.assert_array_equal(encoder.apply(params, frames, 3), encoder.apply(params, stacked))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no attention pooling, and needs use_map=false"),
        ({"use_map": False, "action_horizon": 6}, "action_horizon=6 does not fit .* a multiple of 4"),
        ({"use_map": False, "variance_type": "learned"}, "variance_type='learned'"),
    ],
)
def test_what_the_original_cannot_run_either(settings, message):
    head = SmallUNetHead(**{**part_cases.HEAD, **settings})
    tokens = jnp.zeros((1, 1, 1, 8))
    with pytest.raises(UserError, match=message):
        shapes_of(head, {"readout_action": TokenGroup(tokens, jnp.ones((1, 1, 1), bool))})


@pytest.mark.parametrize(
    ("key", "message"),
    [("speed", "the task's 'speed' .*, which the inputs lack: there are goal"), ("language", "it is a dict")],
)
def test_a_condition_that_is_missing_or_token_ids(key, message):
    observations, tasks = part_cases.tokenizer_inputs()
    tasks = {"goal": tasks["goal"], "language": {"input_ids": np.zeros((2, 4), int)}, "pad_mask_dict": {}}
    spec = {**part_cases.TOKENIZERS["film_of_two"]["kwargs"], "task_film_keys": (key,), "task_stack_keys": ()}
    spec["encoder"] = parse_spec(spec["encoder"], ENCODERS, "encoder")
    tokenizer = OBSERVATION_TOKENIZERS["ImageTokenizer"](**spec)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(partial(tokenizer.init, train=False), jax.random.key(0), observations, tasks)
