"""Configurations of the published Octo sizes, for random weights: profiling, tests, training from scratch."""

from typing import Any

import numpy as np

from rpd_jax.errors import UserError

SIZES = {
    "octo-small-1.5": {"d": 384, "num_layers": 12, "mlp_dim": 1536, "num_attention_heads": 6},
    "octo-base-1.5": {"d": 768, "num_layers": 12, "mlp_dim": 3072, "num_attention_heads": 12},
}
TOKENIZERS = "octo.model.components.tokenizers"


def architecture(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns config.json's content and an example batch of a published size ("octo-small-1.5", "octo-base-1.5")."""
    if name not in SIZES:
        raise UserError(f"architecture={name!r} is not known: known are {', '.join(SIZES)}.")
    size = dict(SIZES[name])
    d = size.pop("d")
    return make_config(d=d, **size), make_example_batch({"primary": 256, "wrist": 128})


def make_config(
    d: int,
    num_layers: int,
    mlp_dim: int,
    num_attention_heads: int,
    cameras: tuple[str, ...] = ("primary", "wrist"),
    stem_kwargs: dict[str, Any] | None = None,
    encoder: str = "t5-base",
    tokenizer: str = "t5-base",
    tokens: int = 16,
    head_kwargs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns a config.json in the manner of Octo 1.5: language prefix, image stems, diffusion head.

    Args:
        d: token embedding size.
        cameras: names; observations are "image_<name>", with goal images stacked behind them.
        stem_kwargs: arguments of the stem, the published defaults if None.
        encoder: name of the T5 encoder, or of a folder in the checkpoint with its config.json.
        tokenizer: name of the tokenizer, or of a folder in the checkpoint with its files.
        tokens: language tokens per instruction.
        head_kwargs: arguments of the diffusion head over the published ones (horizon 4, 7 dimensions).
    """

    def spec(module: str, name: str, **kwargs: Any) -> dict[str, Any]:
        return {"module": module, "name": name, "args": [], "kwargs": kwargs}

    stem = spec("octo.model.components.vit_encoders", "SmallStem16", **(stem_kwargs or {}))
    head = {
        "readout_key": "readout_action",
        "use_map": False,
        "action_horizon": 4,
        "action_dim": 7,
        "n_diffusion_samples": 1,
        "dropout_rate": 0.0,
        **(head_kwargs or {}),
    }
    return {
        "model": {
            "observation_tokenizers": {
                camera: spec(
                    TOKENIZERS,
                    "ImageTokenizer",
                    obs_stack_keys=[f"image_{camera}"],
                    task_stack_keys=[f"image_{camera}"],
                    encoder=stem,
                )
                for camera in cameras
            },
            "task_tokenizers": {
                "language": spec(TOKENIZERS, "LanguageTokenizer", encoder=encoder, finetune_encoder=False)
            },
            "repeat_task_tokens": True,
            "readouts": {"action": 1},
            "heads": {"action": spec("octo.model.components.action_heads", "DiffusionActionHead", **head)},
            "token_embedding_size": d,
            "transformer_kwargs": {
                "attention_dropout_rate": 0.0,
                "add_position_embedding": False,
                "num_layers": num_layers,
                "mlp_dim": mlp_dim,
                "num_attention_heads": num_attention_heads,
                "dropout_rate": 0.0,
            },
            "max_horizon": 10,
            "use_correct_attention": True,
        },
        "text_processor": spec(
            "octo.data.utils.text_processing",
            "HFTokenizer",
            tokenizer_name=tokenizer,
            encode_with_model=False,
            tokenizer_kwargs={
                "max_length": tokens,
                "padding": "max_length",
                "truncation": True,
                "return_tensors": "np",
            },
        ),
    }


def make_example_batch(
    image_sizes: dict[str, int], window: int = 1, tokens: int = 16, action_horizon: int = 4, action_dim: int = 7
) -> dict[str, Any]:
    """Returns an all-zero example batch with batch 1: square images uint8 by camera, token ids, actions and masks."""
    images = {f"image_{name}": size for name, size in image_sizes.items()}
    ids = np.zeros((1, tokens), np.int64)
    action_shape = (1, window, action_horizon, action_dim)
    return {
        "observation": {
            **{key: np.zeros((1, window, size, size, 3), np.uint8) for key, size in images.items()},
            "timestep_pad_mask": np.ones((1, window), bool),
            "pad_mask_dict": {key: np.ones((1, window), bool) for key in images},
        },
        "task": {
            **{key: np.zeros((1, size, size, 3), np.uint8) for key, size in images.items()},
            "language_instruction": {"input_ids": ids, "attention_mask": ids},
            "pad_mask_dict": {key: np.ones(1, bool) for key in [*images, "language_instruction"]},
        },
        "action": np.zeros(action_shape, np.float32),
        "action_pad_mask": np.ones(action_shape, bool),
    }
