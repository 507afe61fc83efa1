"""What is small is checked before weights are read: statistics, their key, dimensions; weights are finite numbers."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_openvla import STATISTICS

from openvla_bridge.client import OpenVLATeacher
from openvla_bridge.errors import BridgeError
from openvla_bridge.model.actions import choose_statistics
from openvla_bridge.model.policy import OpenVLAPolicy
from rpd_jax.action_convention import GRIPPERS
from rpd_jax.errors import UserError

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3), dtype=np.uint8)
PLAIN = STATISTICS["maniskill"]["action"]
NAN = float("nan")


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({"q01": None}, "q01=None; it must be a list with one number per action dimension"),
        ({"q01": 0.5}, "q01=0.5; it must be a list"),
        ({"q99": [[1.0] * 7]}, "it must be a list"),
        ({"q99": ["x"] * 7}, "it must be a list"),
        ({"q99": [1.0] * 6}, "q01, q99 and mask of equal length"),
        ({"mask": [True] * 6}, "q01, q99 and mask of equal length"),
        ({"mask": [2] * 7}, "'mask' that is no list of true and false"),
        ({"q99": [1.0] * 6 + [NAN]}, r"q99\[6\]=nan, which is no finite number"),
        ({"q01": [float("-inf")] + [0.0] * 6}, r"q01\[0\]=-inf, which is no finite number"),
        ({"q99": [-1.0] + [1.0] * 6}, r"q99\[0\]=-1, below q01\[0\]=-0.5"),
    ],
)
def test_statistics_that_cannot_be_used(action, message):
    with pytest.raises(BridgeError, match=message) as caught:
        choose_statistics({"d": {"action": PLAIN | action}}, "d", "folder/config.json")
    assert str(caught.value).startswith("folder/config.json: the action statistics of 'd'")
    with pytest.raises(BridgeError, match="its entry has no 'action'"):
        choose_statistics({"d": {"proprio": PLAIN}}, "d")


def test_a_key_is_checked_before_weights_are_read(copy):
    (copy / "dataset_statistics.json").write_text(json.dumps({"a": {"action": PLAIN}, "b": {"action": PLAIN}}))
    for file in copy.glob("*.safetensors"):
        file.unlink()
    for key, message in (
        ("bridge", r"'bridge' is not among the action statistics of .*/copy/dataset_statistics.json: it has 'a', 'b'"),
        (None, "dataset_statistics.json has action statistics of 'a', 'b': set teacher.dataset to one of them"),
        ("a", "model.safetensors cannot be read"),
    ):
        with pytest.raises(BridgeError, match=message):
            OpenVLAPolicy.load(str(copy), "cpu", unnorm_key=key)


def test_eight_dimensions_are_refused_before_weights_are_read(copy):
    action = {name: [*values, values[-1]] for name, values in PLAIN.items()}
    (copy / "dataset_statistics.json").write_text(json.dumps({"d": {"action": action}}))
    for file in copy.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match=r"copy gives actions of 8 numbers; the environment takes 7"):
        OpenVLATeacher(str(copy), devices=("cpu",), say=lambda text: None)


@pytest.mark.parametrize("setting", ["auto", "closed"])
def test_the_worker_turns_the_gripper_as_it_is_told(checkpoint, setting):
    told = []
    teacher = OpenVLATeacher(str(checkpoint), devices=("cpu",), gripper=setting, say=told.append)
    try:
        actions = teacher.act(FRAMES, "push", jax.random.key(0))
    finally:
        teacher.close()
    policy = OpenVLAPolicy.load(str(checkpoint), "cpu")
    tokens = policy.predict_tokens(FRAMES, "push")
    convention = "open" if setting == "auto" else setting
    np.testing.assert_allclose(actions, policy.environment_actions(tokens, GRIPPERS[convention]), atol=1e-6)
    scale, shift = {"open": (2, -1), "closed": (-2, 1)}[convention]
    turned = np.clip(scale * policy.unnormalize(tokens)[..., -1] + shift, -1, 1)
    np.testing.assert_allclose(actions[..., -1], turned, atol=1e-6)
    why = (
        "since it goes from 0 to 1 in its action statistics"
        if setting == "auto"
        else "as teacher.gripper='closed' says"
    )
    assert told[-1].endswith(f"{why}.") or any(line.endswith(f"{why}.") for line in told)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t["model"]["vocab"].update(in_=1, the=10**6), "id 1000000; config.json has a vocabulary of 32064"),
        (lambda t: t["post_processor"].update(special_tokens={}), "tokenizer.json cannot be read"),
        (lambda t: t["model"].update(unk_token="x"), "tokenizer.json cannot be read"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(copy, edit, message):
    content = json.loads((copy / "tokenizer.json").read_text())
    edit(content)
    (copy / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(BridgeError, match=message):
        policy = OpenVLAPolicy.load(str(copy), "cpu")
        policy.predict_tokens(FRAMES, "push the cube")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hidden_size", 10**9, "hidden_size=1000000000; it must be a whole number from 1 to 65536"),
        ("num_hidden_layers", 2**31, "num_hidden_layers=2147483648"),
        ("hidden_size", 33, "no multiple of 2 x num_attention_heads"),
        ("hidden_size", 64, r"is \[.*\] in .*model.safetensors; config.json asks for"),
        ("num_key_value_heads", 3, "num_attention_heads=2, which is no multiple of num_key_value_heads=3"),
        ("head_dim", 8, "head_dim=8; hidden_size / num_attention_heads is 16"),
        ("rms_norm_eps", None, "rms_norm_eps=None; it must be a number above 0"),
        ("rope_theta", 0, "rope_theta=0; it must be a number above 0"),
    ],
)
def test_sizes_are_checked_before_anything_is_allocated(copy, name, value, message):
    config = json.loads((copy / "config.json").read_text())
    config["text_config"][name] = value
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BridgeError, match=message):
        OpenVLAPolicy.load(str(copy), "cpu")


@pytest.mark.parametrize(
    ("value", "message"), [(NAN, "not finite"), (-float("inf"), "not finite"), (7, "has the type I64")]
)
def test_weights_that_are_no_numbers_are_named_with_their_file(copy, value, message):
    file = next(copy.glob("*.safetensors"))
    tensors = load_file(file)
    name = "language_model.model.layers.1.mlp.down_proj.weight"
    if value == 7:
        tensors[name] = torch.full(tensors[name].shape, 7)
    else:
        tensors[name][3, 5] = value
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(BridgeError, match=rf"{name} in .*{file.name} .*{message}"):
        OpenVLAPolicy.load(str(copy), "cpu")
