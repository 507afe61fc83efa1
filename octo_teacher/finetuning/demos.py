"""The demos that a run trains on, and whether a model of them can be a teacher of the tasks."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.progress import Progress, TextColumn

from octo_teacher.data.actions import why_not_ours
from octo_teacher.data.episodes import Demo
from octo_teacher.data.readers import action_meaning
from octo_teacher.data.store import load_demos
from octo_teacher.octo_model import OctoModel
from octo_teacher.teacher import OctoTeacher
from rpd_jax.action_convention import CONTROL_MODE
from rpd_jax.errors import UserError
from rpd_jax.run.console import Console


def read_training_demos(config: ConfigDict, sizes: Mapping[str, int], console: Console) -> list[tuple[str, list[Demo]]]:
    """Returns the datasets of config.demos with their names, and prints what was left out of them or converted.

    Args:
        config: of the run.
        sizes: model camera -> height and width of its frames.
        console: to print to.

    Raises:
        UserError: missing or malformed demos, or demos that do not go together.
    """
    datasets, notes = [], []
    columns = TextColumn("reading {task.description}", markup=False), TextColumn("{task.completed} episodes")
    with Progress(*columns) as progress:
        for path in _paths(config):
            bar = progress.add_task(path, total=None, visible=False)
            demos = load_demos(
                path,
                sizes,
                {name: config.cameras[name] for name in sizes},
                cache=config.cache or None,
                instruction=config.instruction,
                split=config.split,
                only_successful=config.only_successful,
                gripper=config.gripper,
                on_episode=lambda count, bar=bar: progress.update(bar, completed=count, visible=True),
                on_note=notes.append,
            )
            datasets.append((path, demos))
    for note in notes:
        console.say(note)
    if len({demo.actions.shape[1] for _, demos in datasets for demo in demos}) != 1:
        raise UserError(f"config.demos={config.demos!r} has actions of different dimensions: train on one kind only.")
    return datasets


def actions_of(datasets: list[tuple[str, list[Demo]]]) -> dict[str, Any]:
    """What is told of the actions of `read_training_demos`; see `action_statistics.DEMOS_ACTIONS`."""
    meanings = [action_meaning(Path(path)) for path, _ in datasets]
    unlike = ""
    for (path, demos), meaning in zip(datasets, meanings, strict=True):
        reason = why_not_ours(np.concatenate([demo.actions for demo in demos]), meaning)
        if reason and not unlike:
            unlike = f"the actions of {path} are not {CONTROL_MODE}'s: {reason}"
    stated = [meaning.stated for meaning in meanings]
    converted = [all(demo.gripper_converted for demo in demos) for _, demos in datasets]
    signed = all(own or made for own, made in zip(stated, converted, strict=True))
    return {
        "control_mode": CONTROL_MODE if all(stated) and not unlike else None,
        "gripper": "signed" if signed and not unlike else None,
        "unlike": unlike,
    }


def why_no_teacher(config: ConfigDict, datasets: list[tuple[str, list[Demo]]], model: OctoModel) -> str:
    """Why train.py cannot use a model of these demos as its teacher, the end of a sentence; "" if it can.

    Args:
        config: of the run.
        datasets: of `read_training_demos`.
        model: the model, of any weights.
    """
    if config.modality == "image":
        return "it knows tasks by goal images only (config.modality='image'), and a teacher is told them in words"
    unlike = actions_of(datasets)["unlike"]
    if unlike:
        return unlike
    try:
        OctoTeacher(model)
    except UserError as error:
        return str(error).rstrip(".")
    return ""


def closing_line(config: ConfigDict, folder: Path, no_teacher: str) -> str:
    """Says where the model is, and how, or why not, train.py uses it; `no_teacher` is that of `why_no_teacher`."""
    if no_teacher:
        return f"The model is in {folder}; it cannot be a teacher of train.py: {no_teacher}."
    flag = f"--config.teacher.checkpoint={shlex.quote(str(folder))}"
    unsaid = [path for path in _paths(config) if not action_meaning(Path(path)).stated]
    if unsaid:
        return (
            f"The model is in {folder}; use it with {flag} if the actions of {', '.join(unsaid)} are {CONTROL_MODE}'s, "
            "which the files do not say."
        )
    return f"The model is in {folder}; use it with {flag}."


def _paths(config: ConfigDict) -> list[str]:
    paths = [path.strip() for path in config.demos.split(",") if path.strip()]
    if not paths:
        raise UserError("config.demos is empty: name demos, separated by commas.")
    return paths
