"""Runs in LeRobot's environment: makes two policies with LeRobot's own code, and labels frames with it.

python lerobot_peer.py INPUT.npz FOLDER: INPUT holds frames uint8 [B, H, W, 3], states [B, 9] and seeds [B]; FOLDER gets
a checkpoint for each policy, and NAME.npy with its chunks [B, horizon, 7], one frame at a time by `select_action`.
"""

# ruff: noqa: E402 (LeRobot is imported after torchvision)
import json
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

IMAGE, STATE = "observation.images.base", "observation.state"


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
    return {"act": act, "diffusion": diffusion}


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
        batch = preprocess({IMAGE: image, STATE: torch.as_tensor(state), "task": "push"})
        with torch.no_grad():
            chunks.append([postprocess(policy.select_action(dict(batch)))[0].numpy() for _ in range(4)])
    return np.array(chunks)


def main(given, folder):
    given, folder = np.load(given), Path(folder)
    torch.manual_seed(0)
    for kind, config in configs(given["frames"].shape[1]).items():
        (folder / kind).mkdir()
        make(kind, config, folder / kind)
        chunks = own_chunks(kind, folder / kind, given["frames"], given["states"], given["seeds"])
        np.save(folder / f"{kind}.npy", chunks)


if __name__ == "__main__":
    main(*sys.argv[1:])
