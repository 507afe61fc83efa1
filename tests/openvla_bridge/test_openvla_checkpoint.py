"""Reading checkpoints: shards, statistics, and one sentence for whatever is wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hub import REPOSITORY, hub_of
from safetensors.torch import load_file, save_file
from tiny_openvla import write_checkpoint
from transformers import LlamaConfig

from openvla_bridge.errors import BridgeError
from openvla_bridge.model.checkpoint import find_folder, load_model, weight_files
from openvla_bridge.model.model_config import read_config
from openvla_bridge.model.policy import OpenVLAPolicy


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


def load(folder):
    return OpenVLAPolicy.load(str(folder), "cpu")


def test_shards_hold_the_same_model(checkpoint, tmp_path):
    folder = write_checkpoint(tmp_path / "sharded", shard_bytes=3_000_000)
    assert len(weight_files(folder)) > 2
    notes = []
    model = load_model(folder, "cpu", "float32", notes.append)
    assert notes[0] == f"reading {weight_files(folder)[0]} (1 of {len(weight_files(folder))})"
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_bfloat16_gives_nearly_the_same_actions(checkpoint):
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    half = OpenVLAPolicy.load(str(checkpoint), "cpu", "bfloat16")
    assert half.model.language_model.lm_head.weight.dtype == torch.bfloat16
    assert half.model.language_model.model.rotary_emb.inv_freq.dtype == torch.float32
    agree = half.predict_tokens(frames, "push") == load(checkpoint).predict_tokens(frames, "push")
    assert agree.mean() >= 0.5


def test_a_file_of_statistics_replaces_those_of_the_config(copy):
    other = {"mine": {"action": {"q01": [0.0] * 7, "q99": [1.0] * 7}}}
    (copy / "dataset_statistics.json").write_text(json.dumps(other))
    assert load(copy).statistics.mask.all()


def test_the_tokenizer_of_the_checkpoint_reads_the_prompt(checkpoint):
    ids, lengths = load(checkpoint).encode("PICK up the cube")
    # <s> In : what action should the robot take to pick up the cube ? Out : and the empty token
    assert ids.tolist() == [[1, 0, 4, 0, 6, 7, 8, 9, 10, 11, 13, 14, 8, 15, 16, 0, 4, 29871]]
    assert lengths.tolist() == [18]


def test_a_folder_s_name_says_nothing_of_the_prompt(checkpoint, tmp_path):
    """The published v01, which had another prompt, has one vision backbone and is refused."""
    folder = shutil.copytree(checkpoint, tmp_path / "push-cube-v01")
    assert torch.equal(load(folder).encode("push")[0], load(checkpoint).encode("push")[0])


def edit(folder, name, change):
    contents = json.loads((folder / name).read_text())
    change(contents)
    (folder / name).write_text(json.dumps(contents))


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


WRONG = {
    "config.json is missing": (lambda f: (f / "config.json").unlink(), r"config.json is missing: .*OpenVLA's layout"),
    "of Octo": (lambda f: edit(f, "config.json", lambda c: c.update(model_type="octo")), "type 'octo', not 'openvla'"),
    "no text_config": (lambda f: edit(f, "config.json", lambda c: c.pop("text_config")), "KeyError.'text_config'"),
    "unfused": (
        lambda f: edit(f, "config.json", lambda c: c.update(use_fused_vision_backbone=False)),
        "one vision backbone",
    ),
    "strange backbone": (
        lambda f: edit(f, "config.json", lambda c: c.update(timm_model_ids=["resnet50"] * 2)),
        "'resnet50' is not known",
    ),
    "half a JSON": (lambda f: (f / "config.json").write_text('{"model_type":'), "cannot be read as JSON"),
    "bilinear": (
        lambda f: edit(f, "preprocessor_config.json", lambda c: c.update(interpolations=["bilinear"] * 2)),
        "something else than square bicubic",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "needs the tokenizer.json that is published"),
    "a weight less": (
        lambda f: edit_weights(f, lambda w: w.pop("projector.fc2.bias")),
        "lacks 1 of the weights .* projector.fc2.bias",
    ),
    "a weight more": (
        lambda f: edit_weights(f, lambda w: w.update(extra=torch.zeros(1))),
        "has a weight 'extra' that config.json does not",
    ),
    "another shape": (
        lambda f: edit_weights(f, lambda w: w.update({"projector.fc2.bias": torch.zeros(3)})),
        r"projector.fc2.bias is \[3\] .* asks for \[32\]",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors cannot be read"),
    "cut weights": (lambda f: (f / "model.safetensors").write_bytes(b"\x08\0\0\0"), "model.safetensors cannot be read"),
    "a pickle": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "pytorch_model.bin"}}'),
        "'pytorch_model.bin', which is no safetensors file",
    ),
    "another folder": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}'),
        "'../x.safetensors', which is no safetensors file",
    ),
}


def test_places_where_there_is_no_checkpoint(tmp_path):
    for checkpoint, sentence in (("/nowhere", "no checkpoint folder /nowhere"), ("hf://one/two/three", "hf://owner/")):
        with pytest.raises(BridgeError, match=sentence):
            find_folder(checkpoint, print)


LOAD = """
from openvla_bridge.errors import BridgeError
from openvla_bridge.model.policy import OpenVLAPolicy
try:
    OpenVLAPolicy.load(checkpoint, "cpu", report=print)
except BridgeError as error:
    print(error)
"""


def test_of_the_hub_only_what_is_needed_is_fetched(copy, tmp_path):
    for name in ("pytorch_model.bin", "README.md", "modeling.py"):
        (copy / name).write_text("not ours")
    with hub_of(copy, tmp_path / "cache") as hub:
        said = hub.run(LOAD)
        assert sorted(hub.fetched[:-1]) == ["config.json", "preprocessor_config.json", "tokenizer.json"]
        assert hub.fetched[-1] == "model.safetensors"
        assert said[1:] == [
            f"fetching model.safetensors (1 of 1) of hf://{REPOSITORY}",
            "reading model.safetensors (1 of 1)",
        ]


OF_OFT = "it is OpenVLA-OFT's, whose actions come from that and not from tokens"


@pytest.mark.parametrize("part", ["action_head", "noisy_action_projector", "proprio_projector", "vision_backbone"])
def test_openvla_oft_is_refused(copy, part):
    """Its config.json and its weights are an OpenVLA's, and its actions do not come from them alone."""
    (copy / f"{part}--latest_checkpoint.pt").write_bytes(b"a pickle")
    with pytest.raises(BridgeError, match=f"has {part}--latest_checkpoint.pt: {OF_OFT}"):
        load(copy)


def test_openvla_oft_of_the_hub_is_refused_before_its_weights_are_fetched(copy, tmp_path):
    (copy / "action_head--150000_checkpoint.pt").write_bytes(b"a pickle")
    with hub_of(copy, tmp_path / "cache") as hub:
        assert hub.run(LOAD)[-1].startswith(f"hf://{REPOSITORY} has action_head--150000_checkpoint.pt: {OF_OFT}")
        assert {Path(name).suffix for name in hub.fetched} == {".json"}


def test_defaults_that_published_configs_leave_out(checkpoint):
    text = read_config(checkpoint).text
    assert (text["rms_norm_eps"], text["rope_theta"], text["max_position_embeddings"]) == (1e-6, 10000.0, 2048)


def test_a_text_config_as_transformers_writes_it_now(copy):
    """With all that is not read, and where the rotary frequencies' base has another place than in published ones."""
    published = read_config(copy).text
    written = LlamaConfig(**published, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}).to_dict()
    edit(copy, "config.json", lambda c: c.update(text_config=written | {"return_dict": False, "num_beams": 3}))
    policy = load(copy)
    rotary = policy.model.language_model.model.rotary_emb
    torch.testing.assert_close(rotary.inv_freq, 500000.0 ** -(torch.arange(0, 16, 2) / 16))
    frames = np.zeros((1, 32, 32, 3), np.uint8)
    assert policy.predict_tokens(frames, "push").shape == (1, 1, 7)


def text_config(**changes):
    return lambda folder: edit(folder, "config.json", lambda c: c["text_config"].update(changes))


OTHER_LLAMAS = {
    "of longer texts": (
        text_config(rope_scaling={"type": "linear", "factor": 2.0}),
        r"has rope_scaling=.'type': 'linear', 'factor': 2.0. in text_config, where only None is known",
    ),
    "of longer texts, as it is written now": (
        text_config(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
        r"has rope_parameters=.*'factor': 2.0.*; only a rope_theta of the rope_type 'default' is known",
    ),
    "with two bases": (
        text_config(rope_theta=10000.0, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
        r"has rope_parameters=.*; only a rope_theta of the rope_type 'default' is known, and not another one beside it",
    ),
    "of another beginning": (
        text_config(bos_token_id=128000),
        "has bos_token_id=128000 in text_config, where only 1 is",
    ),
    "of other ends": (
        text_config(eos_token_id=[2, 32001]),
        r"has eos_token_id=.2, 32001. in text_config, where only 2",
    ),
    "of tied weights": (
        text_config(tie_word_embeddings=True),
        "has tie_word_embeddings=True in text_config, where only F",
    ),
}


@pytest.mark.parametrize(("spoil", "sentence"), [*WRONG.values(), *OTHER_LLAMAS.values()], ids=[*WRONG, *OTHER_LLAMAS])
def test_what_is_wrong_is_said_in_one_sentence(copy, spoil, sentence):
    spoil(copy)
    with pytest.raises(BridgeError, match=sentence):
        load(copy)


def test_an_instruction_without_end_is_refused(checkpoint):
    with pytest.raises(BridgeError, match="the model has room for"):
        load(checkpoint).encode("push " * 3000)
