"""octo-nano: an Octo of about a million parameters with its own tokenizer, to train from scratch on a CPU."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from octo_teacher.model.architectures import make_config, make_example_batch
from octo_teacher.model.text import SETTINGS_FILE, TOKENIZER_FILE, settings_text
from octo_teacher.octo_model import OctoModel
from rpd_jax.tasks import TASKS

IMAGE_SIZE = 128
TOKENS = 12
ENCODER, TOKENIZER = "t5-embedded", "tokenizer"
_SPECIAL = ("<pad>", "</s>", "<unk>")


def create_octo_nano(rng: jax.Array, folder: Path, *, window: int = 1, action_horizon: int = 4) -> OctoModel:
    """Returns an octo-nano with random weights.

    One camera of 128x128, 4 layers of width 128, a language encoder of 2 layers and a diffusion head. Three choices
    make minutes on a CPU enough. The stem's first convolution takes 4x4 pixels at once: a frame costs a fifth of what
    it costs with the published stem. The whole frame is one patch: where small things are is then learned in far fewer
    steps. The head clips at 2.5 deviations instead of 5: the first denoising step magnifies errors thirtyfold, and what
    it clips to must be an input that training has shown. There are no goal images.

    Args:
        rng: key of the weights.
        folder: where its language encoder's config and its tokenizer are written; `save_pretrained` copies them.
        window: timesteps that it looks at.
        action_horizon: actions per chunk.
    """
    write_text_files(folder)
    batch = make_example_batch({"primary": IMAGE_SIZE}, window=window, tokens=TOKENS, action_horizon=action_horizon)
    del batch["task"]["image_primary"], batch["task"]["pad_mask_dict"]["image_primary"]
    return OctoModel.from_config(_config(window, action_horizon), batch, rng=rng, folder=folder)


def _config(window: int, action_horizon: int) -> dict[str, Any]:
    config = make_config(
        d=128,
        num_layers=4,
        mlp_dim=512,
        num_attention_heads=4,
        cameras=("primary",),
        stem_kwargs={
            "patch_size": IMAGE_SIZE,
            "features": [32, 64, 64],
            "kernel_sizes": [4, 3, 3],
            "strides": [4, 2, 2],
            "padding": [0, 1, 1],
            "num_features": 256,
        },
        encoder=ENCODER,
        tokenizer=TOKENIZER,
        tokens=TOKENS,
        # Several noise draws per encoded frame: the head is cheap beside the encoder.
        head_kwargs={
            "action_horizon": action_horizon,
            "hidden_dim": 128,
            "max_action": 2.5,
            "n_diffusion_samples": 8,
        },
    )
    tokenizer = config["model"]["observation_tokenizers"]["primary"]["kwargs"]
    tokenizer["task_stack_keys"] = []
    tokenizer["encoder"]["name"] = "SmallStem"
    config["model"]["repeat_task_tokens"] = False
    config["model"]["max_horizon"] = window
    config["window_size"] = window
    return config


def write_text_files(folder: Path) -> None:
    """Writes the language encoder's config.json and the tokenizer's files into folders inside `folder`."""
    words = sorted({word for task in TASKS.values() for word in task.instruction.split()})
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(list(_SPECIAL))
    (folder / TOKENIZER).mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / TOKENIZER / TOKENIZER_FILE))
    settings = {
        # Known to every transformers from the original Octo's 4.34 on; the inputs are those that T5 takes.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": TOKENS,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / TOKENIZER / SETTINGS_FILE).write_text(settings_text(settings), encoding="utf-8")
    size = {
        "model_type": "t5",
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": int(8 * np.ceil(len(vocabulary) / 8)),
        "feed_forward_proj": "relu",
    }
    (folder / ENCODER).mkdir(parents=True, exist_ok=True)
    (folder / ENCODER / "config.json").write_text(json.dumps(size, indent=2))
