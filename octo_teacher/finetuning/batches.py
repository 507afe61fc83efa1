"""Batches of demos as the model's loss takes them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from octo_teacher.octo_model import OctoModel
from rpd_jax.errors import UserError


def model_batch(model: OctoModel, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a batch of `ChunkSource` as `OctoModel.loss` takes it: instructions encoded, padding flagged."""
    observation = dict(batch["observation"])
    cameras = [name for name in observation if name.startswith("image_")]
    observation["pad_mask_dict"] = {name: observation["timestep_pad_mask"] for name in cameras}
    texts = [str(text) for text in batch["instruction"]]
    task: dict[str, Any] = {"pad_mask_dict": {}}
    if "language_instruction" in model.example_batch["task"]:
        if model.text_processor is None:
            raise UserError("The checkpoint names no tokenizer: it cannot be trained on instructions.")
        task["language_instruction"] = model.text_processor.encode(texts)
        task["pad_mask_dict"]["language_instruction"] = np.array([bool(text) for text in texts])
    for name in batch.get("goal", {}):
        task[name] = batch["goal"][name]
        task["pad_mask_dict"][name] = batch["by_image"]
    return {
        "observation": observation,
        "task": task,
        "action": batch["action"],
        "action_pad_mask": batch["action_pad_mask"],
    }
