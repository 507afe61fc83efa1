"""Other members of the family than the example: numbers as tokens, attention pooling, other heads, other stems.

Expected values are worked out here in numpy, from the conventions of the original.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from octo_teacher.model.action_heads import (
    DiffusionActionHead,
    DiscreteActionHead,
    L1ActionHead,
    MSEActionHead,
)
from octo_teacher.model.architectures import make_config, make_example_batch
from octo_teacher.model.module_spec import ModuleSpec, parse_spec
from octo_teacher.model.named_parts import ENCODERS, HEADS
from octo_teacher.model.token_groups import Layout, TokenGroup
from octo_teacher.model.tokenizers import ImageTokenizer, LanguageTokenizer, LowdimObsTokenizer, matching_keys
from octo_teacher.model.transformer import MAPHead
from octo_teacher.model.vit_encoders import PatchEncoder, SmallStem16, SmallStem32
from octo_teacher.octo_model import OctoModel
from rpd_jax.errors import UserError

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)


def test_numbers_become_tokens_of_width_one():
    observations = {
        "proprio": RANDOM.normal(size=(2, 3, 5)).astype(np.float32),
        "image_primary": np.zeros((2, 3, 8, 8, 3)),
    }
    group = LowdimObsTokenizer(obs_keys=("proprio",)).apply({}, observations, {}, train=False)
    np.testing.assert_array_equal(group.tokens, observations["proprio"][..., None])
    assert group.mask.shape == (2, 3, 5) and group.mask.all()


@pytest.mark.parametrize("bin_type", ["normal", "uniform"])
def test_binned_numbers(bin_type):
    values = np.array([-9.0, -4.7, -0.3, 0.0, 0.31, 1.7, 4.7, 9.0], np.float32).reshape(1, 1, 8)
    kwargs = dict(n_bins=64, bin_type=bin_type, low=-2.0, high=2.0, obs_keys=("pro.*",), discretize=True)
    tokens = LowdimObsTokenizer(**kwargs).apply({}, {"proprio": values}, {}, train=False).tokens
    if bin_type == "normal":  # low and high do not count, and values beyond the outer edges fall into bin 0
        edges = norm.ppf(np.linspace(1e-6, 1 - 1e-6, 65))
        expected = np.searchsorted(edges, values, side="right") - 1
        expected[(values < edges[0]) | (values >= edges[-1])] = 0
    else:
        expected = np.clip(np.floor((values + 2) / (4 / 64)), 0, 63).astype(int)
    np.testing.assert_array_equal(tokens.argmax(-1), expected)
    np.testing.assert_array_equal(tokens.sum(-1), 1)


def test_missing_or_wrong_observations():
    tokenizer = LowdimObsTokenizer(obs_keys=("proprio",))
    assert tokenizer.apply({}, {"image_primary": np.zeros((1, 1, 4, 4, 3))}, {}, train=False) is None
    with pytest.raises(UserError, match="needs \\[batch, window, numbers\\]"):
        tokenizer.apply({}, {"proprio": np.zeros((2, 5))}, {}, train=False)


def test_keys_match_from_the_start_of_the_name():
    names = ["proprio", "image_wrist", "image_primary", "my_image_primary"]
    assert matching_keys(("image_.*",), names) == ["image_primary", "image_wrist"]
    assert matching_keys(("image_p",), names) == ["image_primary"]


def test_cached_embeddings_are_taken_as_they_are():
    embeddings = RANDOM.normal(size=(2, 6)).astype(np.float32)
    flags = {"language_instruction": np.array([True, False])}
    tasks = {"language_instruction": embeddings, "pad_mask_dict": flags}
    group = LanguageTokenizer().apply({}, {}, tasks, train=False)
    np.testing.assert_array_equal(group.tokens, embeddings[:, None])
    np.testing.assert_array_equal(group.mask, [[True], [False]])
    assert LanguageTokenizer().apply({}, {}, {}, train=False) is None


def test_folded_black_goals_equal_given_black_goals_in_every_encoder():
    images = RANDOM.integers(0, 256, (2, 1, 64, 64, 3), dtype=np.uint8)
    specs = [
        ModuleSpec(
            SmallStem16, (("features", (32, 32)), ("kernel_sizes", (4, 3)), ("strides", (4, 4)), ("padding", (0, 1)))
        ),
        ModuleSpec(SmallStem32, (("features", (32, 32, 32, 32)), ("img_norm_type", "imagenet"))),
        ModuleSpec(PatchEncoder, (("patch_size", 16), ("num_features", 24))),
    ]
    for spec in specs:
        tokenizer = ImageTokenizer(spec, obs_stack_keys=("image_.*",), task_stack_keys=("image_.*",))
        given = {"image_primary": np.zeros((2, 64, 64, 3), np.uint8)}
        tokens = jax.jit(
            lambda params, goals, t=tokenizer: t.apply(params, {"image_primary": images}, goals, train=False).tokens
        )
        params = jax.jit(lambda key, t=tokenizer: t.init(key, {"image_primary": images}, {}, train=False))(KEY)
        left, right = tokens(params, given), tokens(params, {})
        np.testing.assert_allclose(left, right, atol=1e-5)
        other = {"image_primary": np.full((2, 64, 64, 3), 200, np.uint8)}
        assert not np.allclose(left, tokens(params, other))


def test_several_cameras_in_one_tokenizer_are_stacked_by_name():
    tokenizer = ImageTokenizer(
        ModuleSpec(PatchEncoder, (("patch_size", 8), ("num_features", 4))), obs_stack_keys=("image_.*",)
    )
    a, b = (RANDOM.integers(0, 256, (1, 1, 8, 8, 3), dtype=np.uint8) for _ in range(2))
    params = tokenizer.init(KEY, {"image_a": a, "image_b": b}, {}, train=False)
    kernel = np.asarray(params["params"]["PatchEncoder_0"]["embedding"]["kernel"])
    expected = np.tensordot(np.concatenate([a, b], -1)[0, 0] / 127.5 - 1, kernel, 3)
    flags = {"image_a": np.array([[False]]), "image_b": np.array([[True]])}
    group = tokenizer.apply(params, {"image_b": b, "image_a": a, "pad_mask_dict": flags}, {}, train=False)
    np.testing.assert_allclose(group.tokens[0, 0, 0], expected, atol=1e-4)
    assert group.mask.all()  # visible where any of the stacked images is


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_attention_pooling():
    d, heads = 16, 8
    tokens = RANDOM.normal(size=(2, 3, 5, d)).astype(np.float32)
    mask = RANDOM.random((2, 3, 5)) < 0.6
    mask[..., 0] = True
    init = jax.jit(lambda key: MAPHead().init(key, TokenGroup(tokens, mask), train=False))
    params = init(KEY)["params"]
    params = jax.tree.map(lambda p: p + 0.1 * RANDOM.normal(size=p.shape).astype(np.float32), params)
    pool = jax.jit(lambda p: MAPHead().apply({"params": p}, TokenGroup(tokens, mask), train=False))
    out = pool(params)
    p = jax.tree.map(np.asarray, params)
    attention = p["MultiHeadDotProductAttention_0"]
    query, key, value = (
        np.einsum("...d,dhe->...he", x, attention[name]["kernel"]) + attention[name]["bias"]
        for name, x in (("query", p["probe"][0]), ("key", tokens), ("value", tokens))
    )
    logits = np.einsum("qhe,bwkhe->bwhqk", query, key) / np.sqrt(d // heads)
    weights = softmax(np.where(mask[:, :, None, None], logits, -1e30))
    pooled = np.einsum("bwhqk,bwkhe->bwqhe", weights, value)
    pooled = np.einsum("...he,hed->...d", pooled, attention["out"]["kernel"]) + attention["out"]["bias"]
    y = (pooled - pooled.mean(-1, keepdims=True)) / np.sqrt(pooled.var(-1, keepdims=True) + 1e-6)
    y = y * p["LayerNorm_0"]["scale"] + p["LayerNorm_0"]["bias"]
    mlp = p["MlpBlock_0"]
    hidden = np.asarray(jax.nn.gelu(y @ mlp["Dense_0"]["kernel"] + mlp["Dense_0"]["bias"]))
    assert hidden.shape[-1] == 4 * d
    expected = pooled + hidden @ mlp["Dense_1"]["kernel"] + mlp["Dense_1"]["bias"]
    np.testing.assert_allclose(out, expected, atol=1e-5)


def readouts(tokens: int = 2, d: int = 16) -> dict[str, TokenGroup]:
    values = jnp.asarray(RANDOM.normal(size=(2, 3, tokens, d)), jnp.float32)
    return {"readout_action": TokenGroup(values, jnp.ones(values.shape[:-1], bool))}


def run(head, method: str = "__call__", **static):
    """The compiled method of a head: called with parameters and arrays."""
    return jax.jit(lambda params, *args: head.apply(params, *args, method=method, **static))


@pytest.mark.parametrize(
    ("cls", "power", "use_map"), [(MSEActionHead, 2, True), (L1ActionHead, 1, True), (L1ActionHead, 1, False)]
)
def test_regression_heads(cls, power, use_map):
    assert cls("readout_action").use_map
    head, outputs = cls("readout_action", use_map=use_map, action_horizon=4, action_dim=3), readouts()
    params = jax.tree.map(lambda p: 3 * p, jax.jit(head.init)(KEY, outputs))
    mean = np.asarray(run(head)(params, outputs))
    assert mean.shape == (2, 3, 4, 3)
    if not use_map:
        linear = np.asarray(outputs["readout_action"].tokens).mean(-2) @ params["params"]["mean_proj"]["kernel"]
        np.testing.assert_allclose(mean, 5 * np.tanh(linear.reshape(2, 3, 4, 3) / 5), atol=1e-5)
    actions = RANDOM.normal(size=mean.shape).astype(np.float32)
    steps, dims = RANDOM.random((2, 3)) < 0.7, RANDOM.random(mean.shape) < 0.7
    loss, metrics = run(head, "loss", train=False)(params, outputs, actions, steps, dims)
    error = np.abs(mean - actions)[steps[:, :, None, None] & dims]
    np.testing.assert_allclose(loss, 3 * (error**power).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["mse"], 3 * (error**2).mean(), rtol=1e-5)
    sampled = run(head, "predict_action", sample_shape=(6,), embodiment_action_dim=2)(params, outputs)
    np.testing.assert_allclose(sampled, np.broadcast_to(mean[:, -1], (6, 2, 4, 3)), atol=1e-6)


@pytest.mark.parametrize(
    ("token_per", "tokens"), [("", 1), ("action_horizon", 2), ("action_dim_and_action_horizon", 6)]
)
def test_discrete_head(token_per, tokens):
    kwargs = dict(action_horizon=2, action_dim=3, vocab_size=8, low=-2.0, high=2.0)
    head, outputs = DiscreteActionHead("readout_action", token_per=token_per, **kwargs), readouts(tokens)
    params = jax.jit(head.init)(KEY, outputs)
    logits = np.asarray(run(head)(params, outputs))
    assert logits.shape == (2, 3, 2, 3, 8)
    best = run(head, "predict_action", argmax=True, sample_shape=(2,))(params, outputs)
    np.testing.assert_allclose(best[0], (np.argmax(logits[:, -1], -1) + 0.5) * 0.5 - 2, atol=1e-6)
    actions = np.full((2, 3, 2, 3), -1.4, np.float32)  # in the bin [-1.5, -1)
    ones = np.ones((2, 3), bool)
    loss, _ = run(head, "loss", train=False)(params, outputs, actions, ones, np.ones(actions.shape, bool))
    np.testing.assert_allclose(loss, -np.log(softmax(logits)[..., 1]).mean(), rtol=1e-5)
    with pytest.raises(UserError, match="readout tokens"):
        run(head)(params, readouts(tokens + 1))


def test_diffusion_head_with_attention_pooling_draws_fresh_noise():
    head, outputs = DiffusionActionHead("readout_action", use_map=True, action_horizon=2, action_dim=3), readouts()
    params = jax.jit(head.init)(KEY, outputs)
    sample = jax.jit(
        lambda key: head.apply(params, outputs, rng=key, sample_shape=(4,), method="predict_action"),
    )
    first = np.asarray(sample(KEY))
    assert first.shape == (4, 2, 2, 3) and np.abs(first).max() <= 5
    np.testing.assert_array_equal(first, sample(KEY))
    assert not np.allclose(first[0], first[1])
    assert not np.allclose(first, sample(jax.random.key(1)))


@pytest.mark.parametrize("correct_attention", [True, False])
def test_attention_rules_token_by_token(correct_attention):
    prefix, timestep = (
        (("task_a", 2), ("task_b", 1)),
        (("obs_x", 2), ("obs_task_a", 1), ("readout_p", 1), ("readout_q", 2)),
    )
    rules = Layout(prefix, timestep, 2, correct_attention).rules()
    kinds, times = [], []
    for groups, time in ((prefix, -1), (timestep, 0), (timestep, 1)):
        names = [name for name, size in groups for _ in range(size)]
        if not correct_attention:  # the first token of every group but the first counts to the group before it
            names = [names[max(i - 1, 0)] for i in range(len(names))]
        kinds, times = kinds + names, times + [time] * len(names)
    for i, (query, t) in enumerate(zip(kinds, times, strict=True)):
        for j, (key, s) in enumerate(zip(kinds, times, strict=True)):
            sees_kind = {"task": key[:4] == "task", "obs_": key[:4] in ("task", "obs_")}.get(
                query[:4], key[:4] in ("task", "obs_") or key == query
            )
            assert rules[i, j] == (sees_kind and s <= t), (query, key)


def test_module_specs():
    spec = {"module": "os", "name": "system", "args": ["true"], "kwargs": {}}
    with pytest.raises(UserError, match="asks for 'system', which is not implemented: known are PatchEncoder"):
        parse_spec(spec, ENCODERS, "stem")
    parsed = parse_spec({"name": "SmallStem", "args": [False, 16], "kwargs": {"features": [32]}}, ENCODERS, "stem")
    assert parsed.build() == ENCODERS["SmallStem"](use_film=False, patch_size=16, features=(32,))
    # Without names, in the original's order.
    parsed = parse_spec({"name": "DiscreteActionHead", "args": ["obs", True, "", 4, 3, 64]}, HEADS, "head")
    expected = dict(use_map=True, token_per="", action_horizon=4, action_dim=3, vocab_size=64)
    assert parsed.build() == DiscreteActionHead("obs", **expected)
    for wrong in ("SmallStem", {"kwargs": {}}, None):
        with pytest.raises(UserError, match=r"stem in config\.json is not a module entry"):
            parse_spec(wrong, ENCODERS, "stem")
    with pytest.raises(UserError, match="'dtype', which is not implemented"):
        parse_spec({"name": "SmallStem", "kwargs": {"dtype": "int8"}}, ENCODERS, "stem")


def test_a_member_with_numbers_two_readouts_and_regression():
    """Proprio beside a camera, an unread second readout, no repeated language, L1 head: as fine-tuned models are."""
    config = make_config(
        32,
        num_layers=1,
        mlp_dim=32,
        num_attention_heads=2,
        cameras=("primary",),
        stem_kwargs={"features": [32, 32, 32, 32], "num_features": 16},
    )
    config["text_processor"] = None
    model = config["model"]
    model["observation_tokenizers"]["proprio"] = {
        "module": "octo.model.components.tokenizers",
        "name": "LowdimObsTokenizer",
        "args": [],
        "kwargs": {"n_bins": 256, "bin_type": "normal", "low": -2.0, "high": 2.0, "obs_keys": ["proprio"]},
    }
    model["task_tokenizers"] = {}
    model["repeat_task_tokens"] = False
    model["readouts"] = {"action": 2, "value": 1}
    model["heads"]["action"].update(name="L1ActionHead", kwargs={"readout_key": "readout_action", "action_horizon": 2})
    batch = make_example_batch({"primary": 32}, window=2)
    batch["observation"]["proprio"] = np.zeros((1, 2, 3), np.float32)
    octo = OctoModel.from_config(config, batch, rng=KEY)
    assert octo.params["octo_transformer"]["obs_proprio_pos_embedding"].shape == (1, 10, 3, 32)
    observations = {**batch["observation"], "proprio": RANDOM.normal(size=(1, 2, 3)).astype(np.float32)}
    tasks = octo.create_tasks(goals={"image_primary": np.zeros((1, 32, 32, 3), np.uint8)})
    with_numbers = octo.sample_actions(observations, tasks)
    assert with_numbers.shape == (1, 2, 7)
    without = {key: value for key, value in observations.items() if key != "proprio"}
    assert not np.allclose(with_numbers, octo.sample_actions(without, tasks), atol=1e-5)
