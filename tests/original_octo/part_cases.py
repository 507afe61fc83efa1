"""Small cases of rarely used parts of Octo: what the original computed of them is in tests/data/octo/parts.npz.

Weights and inputs follow from names, so that only results are stored. NumPy alone: both environments read it.
"""

import zlib
from typing import Any

import numpy as np

COMPONENTS = "octo.model.components"
STEM = {"features": [32, 32, 32, 32], "num_features": 16}


def spec(module: str, name: str, **kwargs: Any) -> dict[str, Any]:
    """An entry of config.json."""
    return {"module": f"{COMPONENTS}.{module}", "name": name, "args": [], "kwargs": kwargs}


# name -> encoder, shape of the images, numbers of the condition
ENCODERS = {
    "resnet": (spec("vit_encoders", "ViTResnet", width=0.5, num_layers=[1, 2]), (1, 21, 27, 3), 0),
    "resnet_film": (
        spec("vit_encoders", "ResNet26FILM", width=0.5, num_layers=[2, 1, 1], img_norm_type="imagenet"),
        (2, 32, 24, 6),
        5,
    ),
    "resnet_root_film": (spec("vit_encoders", "ViTResnet", width=0.5, use_film=True), (2, 16, 16, 3), 4),
    "stem_film": (spec("vit_encoders", "SmallStem", use_film=True, **STEM), (2, 32, 32, 3), 3),
    "stem_padding": (
        spec("vit_encoders", "SmallStem", patch_size=16, padding=["SAME", "VALID", [1, 2], [[2, 0], [1, 1]]], **STEM),
        (2, 33, 38, 3),
        0,
    ),
    "patches_film": (
        spec("vit_encoders", "PatchEncoder", use_film=True, patch_size=16, num_features=16),
        (2, 32, 32, 3),
        3,
    ),
}

# name -> tokenizer of observations
TOKENIZERS = {
    "film_of_two": spec(
        "tokenizers",
        "ImageTokenizer",
        encoder=spec("vit_encoders", "PatchEncoder", use_film=True, patch_size=8, num_features=16),
        use_token_learner=True,
        num_tokens=3,
        task_stack_keys=["image_.*"],
        task_film_keys=["speed", "goal"],
    ),
    "film_of_language": spec(
        "tokenizers",
        "ImageTokenizer",
        encoder=spec("vit_encoders", "SmallStem", use_film=True, patch_size=16, **STEM | {"strides": [2, 2, 1, 1]}),
        obs_stack_keys=["image_primary"],
        task_stack_keys=["image_.*"],
        task_film_keys=["language_instruction"],
    ),
    "bins": spec("tokenizers", "LowdimObsTokenizer", n_bins=16, obs_keys=["proprio"], discretize=True),
}

# The U-Net's sizes in all cases but the published ones.
UNET = {"down_features": (16, 16, 32), "time_features": 8}
HEADS = {
    "mean": {"use_map": False, "flatten_tokens": False},
    "flat": {"use_map": False},
    "small": {"use_map": False, "variance_type": "fixed_small", "clip_sample": 0.8},
}
HEAD = {"readout_key": "readout_action", "action_dim": 3, "action_horizon": 8, "timesteps": 10}
# How many of the action's dimensions are wanted, by case of HEADS.
DIMENSIONS = {"flat": None, "small": 2}


def drawn(name: str, *shape: int) -> np.ndarray:
    """Normal numbers that follow from a name, float32."""
    return np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of the parameter `name` ("a/b/kernel"): large enough that each one counts in the result."""
    value = drawn(name, *shape)
    kind = name.rsplit("/", 1)[-1]
    if kind == "kernel":
        return value / np.float32(np.sqrt(np.prod(shape[:-1])))
    return 1 + np.float32(0.2) * value if kind == "scale" else np.float32(0.2) * value


def images(name: str, *shape: int) -> np.ndarray:
    """Random pixels, uint8."""
    return np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, shape, np.uint8)


def tokenizer_inputs() -> tuple[dict[str, Any], dict[str, Any]]:
    """Observations and tasks of two rows and a window of two."""
    observations = {
        "image_primary": images("primary", 2, 2, 16, 16, 3),
        "depth_primary": 40 * drawn("depth", 2, 2, 16, 16, 1),
        "proprio": drawn("proprio", 2, 2, 3),
        "pad_mask_dict": {
            "image_primary": np.array([[True, False], [True, True]]),
            "depth_primary": np.array([[True, False], [False, True]]),
        },
    }
    tasks = {
        "image_primary": 100 + 30 * drawn("goal image", 2, 16, 16, 3),
        "goal": drawn("goal", 2, 3),
        "speed": drawn("speed", 2, 2),
        "language_instruction": drawn("language", 2, 4, 6),
    }
    return observations, tasks


def head_inputs(batch: int, window: int) -> dict[str, np.ndarray]:
    """Tokens of the readout, noisy actions and times for a call; actions and masks for a loss."""
    shape = (batch, window, HEAD["action_horizon"], HEAD["action_dim"])
    random = np.random.default_rng(7)
    return {
        "tokens": drawn("tokens", batch, window, 2, 6),
        "noisy_actions": drawn("noisy actions", *shape),
        "time": random.integers(0, HEAD["timesteps"], (batch, window, 1)).astype(np.int32),
        "actions": drawn("actions", *shape),
        "timestep_pad_mask": np.ones((batch, window), bool),
        "action_pad_mask": random.random(shape) < 0.7,
    }
