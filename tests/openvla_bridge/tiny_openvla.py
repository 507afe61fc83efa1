"""A random OpenVLA in the published layout, small enough for a test."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from openvla_bridge.model.checkpoint import create_model, randomize, save_weights
from openvla_bridge.model.model_config import BACKBONES, parse_config

STATISTICS = {
    "maniskill": {
        "action": {
            "q01": [-0.5, -0.6, -0.7, -0.4, -0.3, -0.2, 0.0],
            "q99": [0.4, 0.5, 0.9, 0.3, 0.2, 0.4, 1.0],
            "mask": [True] * 6 + [False],
        }
    }
}
IMAGE_SIZE = 56


def write_checkpoint(folder: Path, shard_bytes: int | None = None) -> Path:
    """Writes a checkpoint of 16 patches, two Llama layers and random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "openvla",
        "timm_model_ids": list(BACKBONES),
        "timm_override_kwargs": [
            {"embed_dim": 16, "depth": 2, "num_heads": 2},
            {"embed_dim": 16, "depth": 2, "num_heads": 2},
        ],
        "use_fused_vision_backbone": True,
        "image_sizes": [IMAGE_SIZE, IMAGE_SIZE],
        "n_action_bins": 256,
        "pad_to_multiple_of": 64,
        "norm_stats": STATISTICS,
        "text_config": {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "pad_token_id": 32000,
            "vocab_size": 32064,
            "torch_dtype": "bfloat16",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    preprocessor = {
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, IMAGE_SIZE, IMAGE_SIZE]] * 2,
        "interpolations": ["bicubic"] * 2,
        "means": [[0.485, 0.456, 0.406], [0.5] * 3],
        "stds": [[0.229, 0.224, 0.225], [0.5] * 3],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    words = ["<unk>", "<s>", "</s>", "in", ":", "what", "action", "should", "the", "robot", "take", "to"]
    words += ["push", "pick", "up", "cube", "?", "out"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    model = randomize(create_model(parse_config(config), "cpu", torch.float32))
    for parameter in model.parameters():
        parameter.data.mul_(4.0)  # so that different images give different actions
    model.language_model.lm_head.weight.data[31744:32000] *= 3.0
    save_weights(model, folder, shard_bytes)
    return folder
