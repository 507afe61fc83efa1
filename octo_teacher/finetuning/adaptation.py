"""Fits a model to data that it was not made for: cameras, goal images, window, action horizon and dimension.

What keeps its shape keeps its weights; the rest is drawn anew, and named.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from octo_teacher.model.octo_module import create_module, init_params, param_shapes
from octo_teacher.model.tokenizers import ImageTokenizer, matching_keys
from octo_teacher.octo_model import OctoModel
from rpd_jax.errors import UserError


def camera_sizes(model: OctoModel) -> dict[str, int]:
    """Height of the frames that a model was made with, by camera name."""
    observation = model.example_batch["observation"]
    return {
        name.removeprefix("image_"): value.shape[2] for name, value in observation.items() if name.startswith("image_")
    }


def adapt_model(
    model: OctoModel,
    rng: jax.Array,
    *,
    camera_sizes: Mapping[str, int],
    window: int,
    action_horizon: int,
    action_dim: int,
    goals: bool = False,
    finetune_language: bool = False,
) -> tuple[OctoModel, list[str]]:
    """Returns the model for other data, and a sentence for each part that could not keep its weights.

    Args:
        model: the model to start from.
        rng: key of the new weights.
        camera_sizes: height and width of the frames of every camera; cameras that the model has beyond these are
            dropped, new ones get a tokenizer like the first image tokenizer.
        window: timesteps; longer than before, the position embeddings of the added ones are new.
        action_horizon, action_dim: shape of the action chunk.
        goals: whether goal images will be given; tokenizers without an input for them get one.
        finetune_language: whether gradients reach the language encoder.

    Raises:
        UserError: the model has no image tokenizer to copy for a new camera.
    """
    config = copy.deepcopy(model.config)
    network = config["model"]
    notes = _adapt_tokenizers(network, model, camera_sizes, goals)
    head = network["heads"]["action"]["kwargs"]
    before = model.module.heads["action"]
    for name, value in (("action_horizon", action_horizon), ("action_dim", action_dim)):
        if getattr(before, name) != value:
            notes.append(f"{name} {getattr(before, name)} -> {value}")
        head[name] = value
    if window > network["max_horizon"]:
        notes.append(f"window {network['max_horizon']} -> {window}")
        network["max_horizon"] = window
    for spec in network["task_tokenizers"].values():
        spec["kwargs"]["finetune_encoder"] = finetune_language
    example_batch = _example_batch(model, network, camera_sizes, window, action_horizon, action_dim)
    module = create_module(config, _asset_folder(model), model.params)
    params = model.params
    shapes = param_shapes(module, example_batch)
    if not _same_shapes(params, shapes):
        params, renewed = _renewed_params(params, shapes, partial(init_params, module, example_batch, rng))
        if renewed:
            notes.append(f"new weights in {', '.join(renewed)}")
    return model.replace(module=module, config=config, params=params, example_batch=example_batch), notes


def _renewed_params(
    old: Mapping[str, Any], shapes: Mapping[str, Any], draw: Callable[[list[tuple[str, ...]]], dict[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """Parameters of these shapes: those of `old` wherever name and shape agree, and the names of the parts that others
    were drawn for.

    Of position embeddings that only have more timesteps or tokens, the common ones are kept.
    """
    old, shapes = (traverse_util.flatten_dict(dict(tree)) for tree in (old, shapes))
    params = {
        path: jnp.asarray(old[path]) for path, leaf in shapes.items() if path in old and old[path].shape == leaf.shape
    }
    missing = [path for path in shapes if path not in params]
    drawn = traverse_util.flatten_dict(draw(missing)) if missing else {}
    renewed = set()
    for path, leaf in drawn.items():
        renewed.add("/".join(path[:2] if path[0] == "octo_transformer" else path[:1]))
        known = old.get(path)
        if known is not None and path[-1].endswith("pos_embedding") and known.ndim == leaf.ndim:
            common = tuple(slice(0, min(sizes)) for sizes in zip(known.shape, leaf.shape, strict=True))
            drawn[path] = leaf.at[common].set(jnp.asarray(known)[common])
    return traverse_util.unflatten_dict(params | drawn), sorted(renewed)


def _same_shapes(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    old, new = (
        {path: leaf.shape for path, leaf in traverse_util.flatten_dict(dict(tree)).items()} for tree in (old, new)
    )
    return old == new


def _adapt_tokenizers(network: dict[str, Any], model: OctoModel, sizes: Mapping[str, int], goals: bool) -> list[str]:
    keys = [f"image_{camera}" for camera in sizes]
    specs = network["observation_tokenizers"]
    kinds = model.module.octo_transformer.observation_tokenizers
    images = {name: spec for name, spec in specs.items() if isinstance(kinds[name], ImageTokenizer)}
    if not images:
        raise UserError("The checkpoint has no image tokenizer: demos with camera frames cannot train it.")
    template = copy.deepcopy(next(iter(images.values())))
    notes, read = [], set()
    for name in list(specs):
        matched = matching_keys(kinds[name].obs_stack_keys, keys) if name in images else []
        read.update(matched)
        if not matched:
            del specs[name]
            notes.append(f"tokenizer {name} dropped: the demos have no input for it")
    for camera, key in zip(sizes, keys, strict=True):
        if key not in read:
            spec = copy.deepcopy(template)
            spec["kwargs"]["obs_stack_keys"] = [key]
            spec["kwargs"]["task_stack_keys"] = [key] if spec["kwargs"].get("task_stack_keys") else []
            specs[camera] = spec
            notes.append(f"tokenizer {camera} added")
    if goals:
        for name, spec in specs.items():
            if not spec["kwargs"].get("task_stack_keys"):
                spec["kwargs"]["task_stack_keys"] = list(spec["kwargs"].get("obs_stack_keys", ["image_.*"]))
                notes.append(f"tokenizer {name} takes goal images")
    return notes


def _example_batch(
    model: OctoModel,
    network: Mapping[str, Any],
    sizes: Mapping[str, int],
    window: int,
    action_horizon: int,
    action_dim: int,
) -> dict[str, Any]:
    """An all-zero example batch with batch 1, with the language of the model's own."""
    images = {f"image_{camera}": np.zeros((1, window, size, size, 3), np.uint8) for camera, size in sizes.items()}
    goal_keys = [
        key
        for spec in network["observation_tokenizers"].values()
        for key in images
        if matching_keys(spec["kwargs"].get("task_stack_keys") or (), [key])
        or key in (spec["kwargs"].get("task_film_keys") or ())
    ]
    task: dict[str, Any] = {key: images[key][:, 0] for key in goal_keys}
    flags = {key: np.ones(1, bool) for key in goal_keys}
    if "language_instruction" in model.example_batch["task"]:
        task["language_instruction"] = model.example_batch["task"]["language_instruction"]
        flags["language_instruction"] = np.ones(1, bool)
    return {
        "observation": {
            **images,
            "timestep": np.zeros((1, window), np.int32),
            "timestep_pad_mask": np.ones((1, window), bool),
            "pad_mask_dict": {key: np.ones((1, window), bool) for key in images},
        },
        "task": {**task, "pad_mask_dict": flags},
        "action": np.zeros((1, window, action_horizon, action_dim), np.float32),
        "action_pad_mask": np.ones((1, window, action_horizon, action_dim), bool),
    }


def _asset_folder(model: OctoModel) -> Path | None:
    """The folder in which the model's asset files lie under their names."""
    for name, source in model.assets.items():
        return Path(source).parents[len(Path(name).parts) - 1]
    return None
