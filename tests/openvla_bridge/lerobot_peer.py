"""Runs in LeRobot's environment: makes three policies with LeRobot's own code, and labels frames with it.

python lerobot_peer.py INPUT.npz FOLDER: INPUT holds frames uint8 [B, H, W, 3], states [B, 9] and seeds [B]; FOLDER gets
a checkpoint for each policy, and NAME.npy with its chunks [B, horizon, 7], one frame at a time by `select_action`.
HF_HOME gets the backbone of SmolVLA, as the hub's client lays out what it fetched.
"""

# ruff: noqa: E402 (LeRobot is imported after torchvision)
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from openvla_bridge.lerobot.torchvision_operators import import_torchvision

import_torchvision()

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

IMAGE, STATE = "observation.images.base", "observation.state"
BACKBONE = "tiny/smolvlm"


def configs(size):
    features = {
        "input_features": {
            IMAGE: PolicyFeature(type=FeatureType.VISUAL, shape=(3, size, size)),
            STATE: PolicyFeature(type=FeatureType.STATE, shape=(9,)),
        },
        "output_features": {"action": PolicyFeature(type=FeatureType.ACTION, shape=(7,))},
        "device": "cpu",
    }
    act = ACTConfig(
        **features,
        chunk_size=4,
        n_action_steps=4,
        dim_model=32,
        n_heads=2,
        dim_feedforward=64,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        latent_dim=8,
        pretrained_backbone_weights=None,
    )
    diffusion = DiffusionConfig(
        **features,
        n_obs_steps=1,
        horizon=8,
        n_action_steps=4,
        down_dims=(16, 32),
        n_groups=4,
        diffusion_step_embed_dim=16,
        num_train_timesteps=5,
        spatial_softmax_num_keypoints=4,
    )
    # As fine-tuning leaves it: images and state of the policy that it started from, with one camera's demos.
    image = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 256, 256))
    smolvla = SmolVLAConfig(
        input_features={
            IMAGE: image,
            "observation.images.wrist": image,
            STATE: PolicyFeature(type=FeatureType.STATE, shape=(6,)),
        },
        output_features=features["output_features"],
        device="cpu",
        chunk_size=4,
        n_action_steps=4,
        num_steps=3,
        empty_cameras=1,
        resize_imgs_with_padding=(96, 96),
        vlm_model_name=BACKBONE,
        load_vlm_weights=True,
        num_vlm_layers=2,
    )
    return {"act": act, "diffusion": diffusion, "smolvla": smolvla}


def make_backbone():
    """SmolVLM with random bfloat16 weights, and a tokenizer of bytes, where the hub's client caches what is fetched."""
    special = ["<pad>", "<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>"]
    letters = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = ("fake_image_token", "global_image_token", "image_token", "end_of_utterance_token")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=special[0],
        extra_special_tokens=dict(zip(names, special[1:], strict=True)),
    )
    part = {"hidden_size": 32, "intermediate_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    text = {"model_type": "llama", "vocab_size": len(letters), "num_hidden_layers": 2, "dtype": "bfloat16"}
    vision = {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 96, "patch_size": 16}
    config = SmolVLMConfig(
        text_config=part | heads | text, vision_config=part | vision, scale_factor=2, image_token_id=3, pad_token_id=0
    )
    repository = Path(os.environ["HF_HOME"]) / "hub" / f"models--{BACKBONE.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    SmolVLMForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(snapshot)
    processor = SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor(), image_seq_len=9)
    processor.save_pretrained(snapshot)


def statistics():
    """Of made-up demos; the gripper goes from 0 to 1, so it is to be turned."""
    rng = np.random.default_rng(5)

    def of(shape, low=-1.0, high=1.0):
        low, high = np.full(shape, low, np.float32), np.full(shape, high, np.float32)
        return {"min": low, "max": high, "mean": 0.4 * low + 0.6 * high, "std": 0.3 * (high - low)}

    action = of((7,), -0.9, 0.8)
    action["min"][-1], action["max"][-1], action["mean"][-1], action["std"][-1] = 0.0, 1.0, 0.6, 0.4
    state = of((9,))
    state["mean"] = rng.normal(size=9).astype(np.float32)
    return {"action": action, STATE: state, IMAGE: of((3, 1, 1), 0.0, 1.0)}


def make(kind, config, folder):
    policy = get_policy_class(kind)(config)
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(config, dataset_stats=statistics()):
        processor.save_pretrained(folder)
    if kind == "act":  # as training leaves it: LeRobot fetches these weights before it reads those of the checkpoint
        saved = json.loads((folder / "config.json").read_text())
        saved["pretrained_backbone_weights"] = "ResNet18_Weights.IMAGENET1K_V1"
        (folder / "config.json").write_text(json.dumps(saved))


def own_chunks(kind, folder, frames, states, seeds):
    config = PreTrainedConfig.from_pretrained(folder)
    if kind == "act":
        config.pretrained_backbone_weights = None  # this machine may have no network
    policy = get_policy_class(kind).from_pretrained(folder, config=config)
    preprocess, postprocess = make_pre_post_processors(config, str(folder))
    chunks = []
    for frame, state, seed in zip(frames, states, seeds, strict=True):
        policy.reset()
        torch.manual_seed(int(seed))
        image = torch.as_tensor(frame).permute(2, 0, 1).float() / 255.0
        batch = preprocess({IMAGE: image, STATE: torch.as_tensor(state), "task": "push the cube"})
        with torch.no_grad():
            chunks.append([postprocess(policy.select_action(dict(batch)))[0].numpy() for _ in range(4)])
    return np.array(chunks)


def main(given, folder):
    given, folder = np.load(given), Path(folder)
    torch.manual_seed(0)
    make_backbone()
    for kind, config in configs(given["frames"].shape[1]).items():
        (folder / kind).mkdir()
        make(kind, config, folder / kind)
        chunks = own_chunks(kind, folder / kind, given["frames"], given["states"], given["seeds"])
        np.save(folder / f"{kind}.npy", chunks)


if __name__ == "__main__":
    main(*sys.argv[1:])
