"""Checkpoints in Octo's published layout: <folder>/{config.json, ...} and <folder>/<step>/default/checkpoint."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.serialization import msgpack_restore, msgpack_serialize

from octo_teacher.octo_module import OctoModule, param_shapes
from rpd_jax.errors import UserError


@dataclasses.dataclass
class Checkpoint:
    """What is read from a checkpoint; see `OctoModel` for the fields."""

    folder: Path
    step: int
    config: dict[str, Any]
    example_batch: dict[str, Any]
    dataset_statistics: dict[str, Any] | None
    params: dict[str, Any]
    assets: dict[str, Path]


def read(path: str | Path, step: int | None = None) -> Checkpoint:
    """Reads a checkpoint; see `OctoModel.load_pretrained`."""
    folder = download(str(path).removeprefix("hf://")) if str(path).startswith("hf://") else Path(path)
    if not folder.is_dir():
        raise UserError(f"There is no checkpoint folder {folder}: give a folder with config.json, or hf://owner/name.")
    config = _upgrade_config(_read_json(folder / "config.json"))
    step = find_step(folder, step)
    statistics = (
        _read_json(folder / "dataset_statistics.json") if (folder / "dataset_statistics.json").exists() else None
    )
    if statistics is not None:
        statistics = jax.tree.map(np.array, statistics, is_leaf=lambda x: not isinstance(x, dict))
    return Checkpoint(
        folder=folder,
        step=step,
        config=config,
        example_batch=_read_example_batch(folder / "example_batch.msgpack"),
        dataset_statistics=statistics,
        params=_read_params(folder / str(step) / "default"),
        assets=find_assets(config, folder),
    )


def download(repo: str) -> Path:
    """Returns the local folder of a hub repository, from the cache if it is there."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(repo))
    except Exception as error:  # the hub's client raises many types for one thing: not to be had
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"hf://{repo} could not be had from the Hugging Face hub: check the name and the network, or give a local "
            f"folder ({cause})"
        ) from None


def find_step(folder: Path, step: int | None) -> int:
    """Returns `step` if the checkpoint has it, its latest step if None."""
    steps = sorted(
        int(p.name) for p in folder.iterdir() if p.name.isascii() and p.name.isdigit() and (p / "default").is_dir()
    )
    if not steps:
        raise UserError(f"The checkpoint {folder} has no step folder: <step>/default/checkpoint is missing.")
    if step is None:
        return steps[-1]
    if step not in steps:
        raise UserError(f"The checkpoint {folder} has no step {step}: it has {', '.join(map(str, steps))}.")
    return step


def find_assets(config: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Returns the files of the encoder's and tokenizer's folders inside a checkpoint: relative path -> file."""
    names = [spec.get("kwargs", {}).get("encoder") for spec in config["model"].get("task_tokenizers", {}).values()]
    names.append(((config.get("text_processor") or {}).get("kwargs") or {}).get("tokenizer_name"))
    assets = {}
    for name in names:
        root = folder / name if isinstance(name, str) else None
        if root is not None and root.is_dir() and folder.resolve() in root.resolve().parents:
            assets |= {str(file.relative_to(folder)): file for file in sorted(root.rglob("*")) if file.is_file()}
    return assets


def check_params(params: Mapping[str, Any], module: OctoModule, example_batch: Mapping[str, Any]) -> None:
    """Raises UserError unless `params` has exactly the names and shapes that `module` needs."""
    given = flax.traverse_util.flatten_dict(dict(params), sep="/")
    wanted = flax.traverse_util.flatten_dict(dict(param_shapes(module, example_batch)), sep="/")
    for what, names in (("lacks", set(wanted) - set(given)), ("has unexpected", set(given) - set(wanted))):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"The checkpoint {what} parameter {min(names)}{more}: it does not fit its config.json.")
    for name, leaf in wanted.items():
        if np.shape(given[name]) != leaf.shape:
            raise UserError(
                f"Parameter {name} has shape {np.shape(given[name])}; config.json and example_batch need {leaf.shape}."
            )


def write(
    path: str | Path,
    step: int,
    params: Mapping[str, Any],
    config: Mapping[str, Any],
    example_batch: Mapping[str, Any],
    dataset_statistics: Mapping[str, Any] | None,
    assets: Mapping[str, Path],
) -> None:
    """Writes a checkpoint; see `OctoModel.save_pretrained`."""
    folder = Path(path)
    target = folder / str(step) / "default"
    if target.exists():
        raise UserError(f"{target} exists already: choose another step or folder.")
    target.mkdir(parents=True)
    params = jax.tree.map(np.asarray, flax.core.unfreeze(params))
    (target / "checkpoint").write_bytes(msgpack_serialize(params))
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps(config))
    if not (folder / "example_batch.msgpack").exists():
        example_batch = jax.tree.map(np.asarray, dict(example_batch))
        (folder / "example_batch.msgpack").write_bytes(msgpack_serialize(example_batch))
    if not (folder / "dataset_statistics.json").exists():
        statistics = jax.tree.map(lambda x: np.asarray(x).tolist(), dataset_statistics or {})
        (folder / "dataset_statistics.json").write_text(json.dumps(statistics))
    for name, source in assets.items():
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"The checkpoint lacks {path}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object.")
    return content


def _upgrade_config(config: dict[str, Any]) -> dict[str, Any]:
    """Renames what checkpoints before Octo 1.5 call otherwise."""
    heads = config.get("model", {}).get("heads", {})
    for head in heads.values():
        if "pred_horizon" in head.get("kwargs", {}):
            head["kwargs"]["action_horizon"] = head["kwargs"].pop("pred_horizon")
    return config


def _read_example_batch(path: Path) -> dict[str, Any]:
    try:
        batch = msgpack_restore(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"The checkpoint lacks {path}.") from None
    except Exception as error:
        raise UserError(f"{path} is broken: {error}.") from None
    if "tasks" in batch:
        batch["task"] = batch.pop("tasks")
    if "timestep_pad_mask" not in batch["observation"] and "pad_mask" in batch["observation"]:
        batch["observation"]["timestep_pad_mask"] = batch["observation"]["pad_mask"]
    return batch


def _read_params(folder: Path) -> dict[str, Any]:
    try:
        params = msgpack_restore((folder / "checkpoint").read_bytes())
        if any(isinstance(leaf, str) for leaf in jax.tree.leaves(params)):
            params = ocp.PyTreeCheckpointer().restore(folder.resolve())
    except FileNotFoundError:
        raise UserError(f"The checkpoint lacks {folder / 'checkpoint'}.") from None
    except Exception as error:
        raise UserError(f"{folder / 'checkpoint'} is broken: {error}.") from None
    return jax.tree.map(np.asarray, params)
