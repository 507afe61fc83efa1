"""What a fine-tuning starts from: the model, adapted to the demos, and the demos as training examples."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from octo_teacher.action_statistics import DEMOS_ACTIONS, FINETUNE_CONFIG
from octo_teacher.data.chunks import ChunkSource
from octo_teacher.data.episodes import Demo, action_statistics, split_demos
from octo_teacher.finetuning.adaptation import adapt_model, camera_sizes
from octo_teacher.finetuning.demos import actions_of, read_training_demos, why_no_teacher
from octo_teacher.finetuning.octo_nano import TOKENS, create_octo_nano
from octo_teacher.octo_model import OctoModel
from rpd_jax.errors import UserError
from rpd_jax.run.console import Console
from rpd_jax.run.json_file import read_object

STATISTICS_FILE = "statistics.json"
TEXT_FOLDER = "text"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a fine-tuning starts from.

    Attributes:
        model: with the statistics of the demos.
        statistics: of the training demos' actions, as Octo's dataset_statistics.json holds them.
        source: training examples.
        held_out: examples to validate on.
        num_episodes: of `source` and of `held_out`.
        no_teacher: why train.py cannot use the model as its teacher, the end of a sentence; "" if it can.
    """

    model: OctoModel
    statistics: dict[str, Any]
    source: ChunkSource
    held_out: ChunkSource
    num_episodes: tuple[int, int]
    no_teacher: str


def prepare(config: ConfigDict, workdir: Path, console: Console) -> Prepared:
    """Loads, or makes, the model and reads the demos.

    Args:
        config: checked.
        workdir: of the run; an earlier start's statistics are taken from there, and a model from scratch leaves its
            text files there.
        console: told in what the model departs from its checkpoint.

    Raises:
        UserError: missing or malformed demos or checkpoint, or they do not fit together.
    """
    model = _initial_model(config, workdir)
    datasets = read_training_demos(config, _frame_sizes(model, config), console)
    if config.modality != "image":
        _check_told_apart(model, config, {demo.instruction for _, demos in datasets for demo in demos}, console)
    parts = split_demos([demo for _, demos in datasets for demo in demos], config.held_out, config.seed)
    statistics = _statistics(workdir, parts[0], config.demos)
    model, notes = _adapt(model, config, len(statistics["action"]["mean"]))
    for note in notes:
        console.say(f"Not as in {config.init}: {note}.")
    source, held_out = (
        ChunkSource(
            part,
            statistics["action"],
            window=config.window,
            horizon=model.module.heads["action"].action_horizon,
            modality=config.modality,
        )
        for part in parts
    )
    model = model.replace(
        dataset_statistics={config.dataset_name: statistics},
        config={
            **{name: value for name, value in model.config.items() if name != FINETUNE_CONFIG},
            "window_size": config.window,
            "finetune": json.loads(config.to_json_best_effort()),
            DEMOS_ACTIONS: actions_of(datasets),
        },
    )
    no_teacher = why_no_teacher(config, datasets, model)
    if config.eval.every and no_teacher:
        raise UserError(
            f"config.eval.every={config.eval.every}, but the model cannot be tried in the tasks: {no_teacher}."
        )
    return Prepared(model, statistics, source, held_out, tuple(map(len, parts)), no_teacher)


def _initial_model(config: ConfigDict, workdir: Path) -> OctoModel:
    if config.init == "scratch":
        horizon = config.action_horizon or 4
        return create_octo_nano(
            jax.random.key(config.seed), workdir / TEXT_FOLDER, window=config.window, action_horizon=horizon
        )
    return OctoModel.load_pretrained(config.init)


def _check_told_apart(model: OctoModel, config: ConfigDict, instructions: set[str], console: Console) -> None:
    """Raises UserError, or says so of a given checkpoint, if its tokenizer makes one of several instructions."""
    if model.text_processor is None:
        return
    texts = sorted({" ".join(text.lower().split()): text for text in sorted(instructions)}.values())
    encoded = model.text_processor.encode(texts)
    rows = np.asarray(encoded["input_ids"] if isinstance(encoded, Mapping) else encoded)
    firsts: dict[bytes, str] = {}
    for text, row in zip(texts, rows, strict=True):
        first = firsts.setdefault(row.tobytes(), text)
        if first != text:
            what = f"The tokenizer of config.init={config.init!r} cannot tell {first!r} from {text!r}"
            if config.init == "scratch":
                raise UserError(
                    f"{what}: octo-nano knows the words of the tasks' own instructions, and the first {TOKENS} of a "
                    "sentence; fine-tune a published checkpoint, or train on demos of one of these instructions."
                )
            console.say(f"{what}: the model will take them for one.")
            return


def _statistics(workdir: Path, demos: list[Demo], named: str) -> dict[str, Any]:
    """Those of the training demos, as the run began with them; raises UserError if the demos are others by now."""
    path, now = workdir / STATISTICS_FILE, action_statistics(demos)
    if not path.exists():
        return now
    began = read_object(path, "this run began with it", "restore it or choose another --workdir")
    if not _alike(began, now):
        then, by_now = (f"{of.get('num_transitions')} steps of {of.get('num_trajectories')}" for of in (began, now))
        what = "with other actions" if then == by_now else f"{then} episodes to train on then, {by_now} now"
        raise UserError(
            f"The demos of the run in {workdir} are no longer those that it began with ({what}): restore "
            f"config.demos={named!r} or choose another --workdir."
        )
    return began


def _alike(began: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two statistics are of the same actions, but for rounding."""
    try:
        close = all(np.allclose(began["action"][name], now["action"][name], 1e-5, 1e-6) for name in ("mean", "std"))
    except (KeyError, TypeError, ValueError):
        return False
    return close and all(began.get(name) == now[name] for name in ("num_transitions", "num_trajectories"))


def _frame_sizes(model: OctoModel, config: ConfigDict) -> dict[str, int]:
    known = camera_sizes(model)
    cameras = [name for name, key in config.cameras.items() if key is not None]
    return {name: known.get(name, config.new_camera_size) for name in cameras}


def _adapt(model: OctoModel, config: ConfigDict, action_dim: int) -> tuple[OctoModel, list[str]]:
    return adapt_model(
        model,
        jax.random.fold_in(jax.random.key(config.seed), 1),
        camera_sizes=_frame_sizes(model, config),
        window=config.window,
        action_horizon=config.action_horizon or model.module.heads["action"].action_horizon,
        action_dim=action_dim,
        goals=config.modality != "language",
        finetune_language=not config.optimizer.freeze_t5,
    )
