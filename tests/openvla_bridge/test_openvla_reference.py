"""The published implementation's numbers: tests/data/openvla holds what it computes from one tiny random checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from openvla_bridge.errors import BridgeError
from openvla_bridge.model.actions import bin_centers, choose_statistics, tokens_to_bins
from openvla_bridge.model.checkpoint import create_model, load_model
from openvla_bridge.model.model_config import openvla_7b
from openvla_bridge.model.one_by_one import predict_as_published, predict_with_pil
from openvla_bridge.model.policy import OpenVLAPolicy
from openvla_bridge.model.preprocess import read_image_settings
from openvla_bridge.model.text import FixedIds, build_prompt, with_empty_token

DATA = Path(__file__).parents[1] / "data" / "openvla"
IO = np.load(DATA / "tiny_io.npz")


@pytest.fixture(scope="module")
def policy():
    return load_policy("tiny_bridge")


def load_policy(unnorm_key):
    model = load_model(DATA / "tiny", "cpu", "float32", lambda text: None)
    return OpenVLAPolicy(model, read_image_settings(DATA / "tiny"), FixedIds(IO["input_ids"][0].tolist()), unnorm_key)


def assert_close(found, name, tolerance):
    np.testing.assert_allclose(np.asarray(found), IO[name], rtol=0, atol=tolerance, err_msg=name)


@torch.inference_mode()
def test_every_intermediate_of_a_batch_is_that_of_the_published_loop(policy):
    model = policy.model
    pixels = policy.preprocess(torch.from_numpy(IO["images"]))
    np.testing.assert_array_equal(pixels.numpy(), IO["pixel_values"])
    dino, siglip = model.vision_backbone(pixels)
    assert_close(dino, "dino_features", 1e-5)
    assert_close(siglip, "siglip_features", 1e-5)
    patches = model.embed_images(pixels)
    assert_close(patches, "projected_patch_embeddings", 1e-5)
    ids, lengths = policy.encode("anything")
    np.testing.assert_array_equal(ids, IO["input_ids_with_29871"])
    prefill = model.prefill(patches, ids, lengths, 6)
    assert_close(prefill.logits, "prefill_last_logits", 2e-5)
    steps = [prefill.logits]
    model.language_model.lm_head.register_forward_hook(lambda module, args, output: steps.append(output[:, 0]))
    tokens = model.generate(prefill, 7, equal_lengths=True).tokens
    model.language_model.lm_head._forward_hooks.clear()
    assert_close(torch.stack(steps, 1)[..., 31744:32000], "step_action_logits", 2e-5)
    np.testing.assert_array_equal(tokens[0], IO["action_tokens"])


@pytest.mark.parametrize("predict", [predict_with_pil, predict_as_published])
def test_what_a_batch_is_timed_against_finds_the_same_tokens(policy, predict):
    tokens = [predict(policy, image, "anything") for image in IO["images"]]
    np.testing.assert_array_equal(tokens, IO["action_tokens"])


@pytest.mark.parametrize("key", ["tiny_bridge", "tiny_bridge_1", "tiny_bridge_2"])
def test_actions_of_every_data_set(key):
    statistics = choose_statistics(json.loads((DATA / "tiny" / "config.json").read_text())["norm_stats"], key)
    centers = bin_centers()
    np.testing.assert_allclose(centers, IO["bin_centers"], rtol=0, atol=1e-15)
    bins = tokens_to_bins(IO["action_tokens"], 32000)
    np.testing.assert_array_equal(bins, IO["action_bins"])
    np.testing.assert_array_equal(centers[bins], IO["normalized_actions"])
    name = "actions" if key == "tiny_bridge" else f"actions__{key}"
    np.testing.assert_allclose(statistics.unnormalize(centers[bins]), IO[name], rtol=0, atol=1e-12)


def test_ids_outside_the_action_range_are_clipped():
    np.testing.assert_array_equal(tokens_to_bins(IO["table_tokens"], 32000), IO["table_bins"])
    np.testing.assert_allclose(bin_centers()[IO["table_bins"]], IO["table_normalized"], rtol=0, atol=1e-8)


def test_from_frames_to_actions(policy):
    tokens = policy.predict_tokens(IO["images"], "anything")
    np.testing.assert_allclose(policy.unnormalize(tokens)[0], IO["actions"], rtol=0, atol=1e-12)
    one = policy.unnormalize(policy.predict_tokens(IO["images"][2:3], ["anything"], num_samples=3))
    np.testing.assert_allclose(one, np.broadcast_to(IO["actions"][2], (3, 1, 7)), rtol=0, atol=1e-12)
    assert policy.count_other(tokens) == 0
    assert policy.count_other(np.array([31743, 31744, 31999, 32000])) == 2
    environment = policy.environment_actions(tokens)
    np.testing.assert_allclose(environment[0, :, :6], np.clip(IO["actions"][:, :6], -1, 1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(environment[0, :, 6], np.clip(2 * IO["actions"][:, 6] - 1, -1, 1), rtol=0, atol=1e-12)


class Lengths:
    """A prompt of another length for every instruction: the recorded ids, cut."""

    def encode(self, prompt):
        return IO["input_ids"][0, : 18 - 5 * prompt.count("short")].tolist()


def test_prompts_of_unequal_length_do_not_disturb_one_another(policy):
    mixed = OpenVLAPolicy(policy.model, policy.preprocess.settings, Lengths(), "tiny_bridge")
    instructions = ["long", "short", "short short", "long"]
    together = mixed.predict_tokens(IO["images"], instructions)[0]
    np.testing.assert_array_equal(together[[0, 3]], IO["action_tokens"][[0, 3]])
    for row in (1, 2):
        alone = mixed.predict_tokens(IO["images"][row : row + 1], instructions[row])[0, 0]
        np.testing.assert_array_equal(together[row], alone)
    assert (together[1] != IO["action_tokens"][1]).any()


def test_samples_of_a_frame_share_its_prefix_and_nothing_else(policy):
    uniforms = np.random.default_rng(0).random((3, 2, 7), np.float32)
    arguments = {"temperature": 1.5}
    together = policy.predict_tokens(IO["images"][:2], "x", num_samples=3, uniforms=uniforms, **arguments)
    assert (together[0] != together[1]).any() and (together[1] != together[2]).any()
    for sample in range(3):
        alone = policy.predict_tokens(IO["images"][:2], "x", uniforms=uniforms[sample : sample + 1], **arguments)
        np.testing.assert_array_equal(together[sample], alone[0])
    cold = policy.predict_tokens(IO["images"][:2], "x", num_samples=3, uniforms=uniforms, temperature=1e-3)
    np.testing.assert_array_equal(cold, np.broadcast_to(IO["action_tokens"][:2], (3, 2, 7)))


@torch.inference_mode()
def test_samples_are_drawn_from_the_softmax(policy):
    prefill = policy.model.prefill(torch.zeros(1, 4, 64), torch.tensor([[1, 5]]), torch.tensor([2]), 0)
    prefill.logits = torch.full((1, 32064), -torch.inf)
    prefill.logits[0, [3, 2, 40, 31800]] = torch.log(torch.tensor([0.5, 9.0, 0.3, 0.2]))  # 2 ends a text: never taken
    uniforms = torch.tensor([0.0, 0.49, 0.51, 0.79, 0.81, 0.999])[:, None, None]
    drawn = policy.model.generate(prefill, 1, num_samples=6, temperature=1.0, uniforms=uniforms)
    assert drawn.tokens.flatten().tolist() == [3, 3, 40, 40, 31800, 31800]
    assert policy.model.generate(prefill, 1).tokens.item() == 3


def test_logits_that_are_not_finite_are_refused():
    broken = load_policy("tiny_bridge")
    broken.model.projector.fc1.weight[0, 0] = torch.nan
    with pytest.raises(BridgeError, match="logits are not finite"):
        broken.predict_tokens(IO["images"][:1], "x")


def test_names_and_shapes_of_the_published_seven_billion_weights():
    expected = json.loads((DATA / "tree_openvla_7b.json").read_text())
    model = create_model(openvla_7b(), "meta", torch.bfloat16)
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == expected
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_541_237_184


def test_prompts():
    assert build_prompt("Push the Cube") == "In: What action should the robot take to push the cube?\nOut:"
    assert with_empty_token([1, 5]) == [1, 5, 29871] == with_empty_token([1, 5, 29871])


def test_the_key_is_checked_against_the_checkpoint(policy):
    statistics = policy.model.config.norm_stats
    with pytest.raises(BridgeError, match=r"'tiny_bridge', 'tiny_bridge_1', 'tiny_bridge_2': set teacher.dataset"):
        choose_statistics(statistics, None)
    with pytest.raises(BridgeError, match="'bridge' is not among"):
        choose_statistics(statistics, "bridge")
    assert choose_statistics({"only": statistics["tiny_bridge_2"]}, "").mask.all()
    with pytest.raises(BridgeError, match="equal length"):
        choose_statistics({"only": {"action": {"q01": [0.0], "q99": [1.0, 2.0]}}}, "")
