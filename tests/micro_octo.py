"""An Octo so small that training it compiles in seconds."""

from pathlib import Path

import jax

from octo_teacher.finetuning.octo_nano import ENCODER, TOKENIZER, TOKENS, write_text_files
from octo_teacher.model.architectures import make_config, make_example_batch
from octo_teacher.octo_model import OctoModel


def write_micro_octo(folder: Path) -> Path:
    """Writes an Octo with one layer of width 32 and one camera of 32x32 pixels; returns its folder."""
    write_text_files(folder / "text")
    config = make_config(
        d=32,
        num_layers=1,
        mlp_dim=32,
        num_attention_heads=2,
        cameras=("primary",),
        stem_kwargs={"features": [32, 32], "kernel_sizes": [4, 4], "strides": [4, 4], "padding": [0, 0]}
        | {"num_features": 16},
        encoder=ENCODER,
        tokenizer=TOKENIZER,
        tokens=TOKENS,
        head_kwargs={"hidden_dim": 16, "num_blocks": 1, "diffusion_steps": 5},
    )
    batch = make_example_batch({"primary": 32}, tokens=TOKENS)
    statistics = {"mean": [0.0] * 7, "std": [1.0] * 6 + [0.0], "min": [-1.0] * 7, "max": [1.0] * 7}
    statistics |= {"mask": [True] * 6 + [False]}
    model = OctoModel.from_config(
        config,
        batch,
        rng=jax.random.key(7),
        dataset_statistics={"micro": {"action": statistics}},
        folder=folder / "text",
    )
    model.save_pretrained(0, folder / "model")
    return folder / "model"
