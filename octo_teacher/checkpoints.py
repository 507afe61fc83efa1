"""Checkpoints in Octo's published layout: <folder>/{config.json, ...} and <folder>/<step>/default/checkpoint.

Two forms of weights are read: all arrays inside the one msgpack file `checkpoint`, and one folder per array as Orbax
writes them. The first is written.
"""

import dataclasses
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.serialization import msgpack_restore, msgpack_serialize

from octo_teacher.action_statistics import FINETUNE_CONFIG
from octo_teacher.model.octo_module import OctoModule, param_shapes
from octo_teacher.model.text import SETTINGS_FILE, mend_settings
from rpd_jax.errors import UserError
from rpd_jax.run.whole_file import write_whole

PLACEHOLDER = "PLACEHOLDER://"


@dataclasses.dataclass
class Checkpoint:
    """What is read from a checkpoint; see `OctoModel` for the fields.

    Attributes:
        shapes: the tree of weights with their shapes and dtypes, as ShapeDtypeStructs.
        load_params: reads the weights, nested dicts of numpy arrays; to be called once the shapes were found right.
    """

    folder: Path
    step: int
    config: dict[str, Any]
    example_batch: dict[str, Any]
    dataset_statistics: dict[str, Any] | None
    shapes: dict[str, Any]
    load_params: Callable[[], dict[str, Any]]
    assets: dict[str, Path]


def read(path: str | Path, step: int | None = None) -> Checkpoint:
    """Reads a checkpoint, all but its weights; see `OctoModel.load_pretrained`."""
    folder = download(str(path).removeprefix("hf://")) if str(path).startswith("hf://") else Path(path)
    if not folder.is_dir():
        raise UserError(f"There is no checkpoint folder {folder}: give a folder with config.json, or hf://owner/name.")
    config = _upgrade_config(_read_json(folder / "config.json"))
    if (folder / f"{FINETUNE_CONFIG}.json").is_file():
        # Fine-tuning with the original code leaves config.json as it was pretrained with.
        config[FINETUNE_CONFIG] = _read_json(folder / f"{FINETUNE_CONFIG}.json")
    step = find_step(folder, step)
    shapes, load_params = open_params(folder / str(step) / "default")
    return Checkpoint(
        folder=folder,
        step=step,
        config=config,
        example_batch=_read_example_batch(folder / "example_batch.msgpack"),
        dataset_statistics=_read_statistics(folder / "dataset_statistics.json"),
        shapes=shapes,
        load_params=load_params,
        assets=find_assets(config, folder),
    )


def download(repo: str) -> Path:
    """Returns the local folder of a hub repository "owner/name", from the cache if the hub cannot be reached."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UserError(f"hf://{repo} is not the name of a repository: it must look like hf://owner/name.")
    import huggingface_hub  # imported late: local checkpoints do not need it

    try:
        return Path(huggingface_hub.snapshot_download(repo))
    except Exception as error:  # the hub's client raises many types for one thing: not to be had
        raise UserError(
            f"hf://{repo} could not be had from the Hugging Face hub and is not in its cache: check the name and the "
            f"network, or give a local folder ({_first_line(error)})"
        ) from None


def find_step(folder: Path, step: int | None) -> int:
    """Returns `step` if the checkpoint has it, its latest step if None."""
    steps = sorted(
        int(entry.name)
        for entry in folder.iterdir()
        if re.fullmatch(r"0|[1-9][0-9]{0,17}", entry.name) and (entry / "default").is_dir()
    )
    if not steps:
        raise UserError(f"The checkpoint {folder} has no step folder: <step>/default/checkpoint is missing.")
    if step is None:
        return steps[-1]
    if step not in steps:
        raise UserError(f"The checkpoint {folder} has no step {step!r}: it has {', '.join(map(str, steps))}.")
    return int(step)


def find_assets(config: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Returns the files of the encoder's and tokenizer's folders inside a checkpoint: relative path -> file."""
    try:
        names = [spec["kwargs"].get("encoder") for spec in config["model"]["task_tokenizers"].values()]
        names.append(((config.get("text_processor") or {}).get("kwargs") or {}).get("tokenizer_name"))
    except (KeyError, TypeError, AttributeError):
        return {}
    assets = {}
    for name in names:
        root = folder / name if isinstance(name, str) else None
        if root is not None and root.is_dir() and folder.resolve() in root.resolve().parents:
            assets |= {str(file.relative_to(folder)): file for file in sorted(root.rglob("*")) if file.is_file()}
    return assets


def open_params(folder: Path) -> tuple[dict[str, Any], Callable[[], dict[str, Any]]]:
    """Reads the shapes of the weights in <step>/default, and returns them with a function that reads the weights.

    Nothing is allocated beyond the size of the files before the caller has seen the shapes: a small compressed file may
    claim to hold any amount of data.

    Raises:
        UserError: missing, truncated, or not such a checkpoint.
    """
    file = folder / "checkpoint"
    try:
        if file.is_file():
            tree = msgpack_restore(file.read_bytes())
            _check_names(tree, file)
            if all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree)):
                return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree), lambda: tree
        elif not (folder / "_METADATA").is_file():
            raise UserError(f"The checkpoint lacks {file}.")
        else:
            tree = None
        shapes = _declared_shapes(folder, tree)
    except UserError:
        raise
    except Exception as error:  # flax, msgpack and orbax raise many types for one thing: not readable
        raise UserError(f"{file} is broken, copy the checkpoint again: {_first_line(error)}") from None
    return shapes, lambda: _restore_folders(folder, shapes)


def check_params(params: Mapping[str, Any], module: OctoModule, example_batch: Mapping[str, Any]) -> None:
    """Raises UserError unless `params` (arrays or shapes) has exactly the names and shapes that `module` needs."""
    try:
        wanted = param_shapes(module, example_batch)
    except UserError:
        raise
    except Exception as error:  # whatever a nonsensical configuration makes JAX and flax stumble over
        raise UserError(
            f"config.json and example_batch.msgpack do not describe a working network: {_first_line(error)}"
        ) from None
    given = flax.traverse_util.flatten_dict(dict(params), sep="/")
    wanted = flax.traverse_util.flatten_dict(dict(wanted), sep="/")
    for what, names in (("lacks", set(wanted) - set(given)), ("has the unexpected", set(given) - set(wanted))):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"The checkpoint {what} parameter {min(names)}{more}: it does not fit its config.json.")
    for name, leaf in wanted.items():
        if tuple(given[name].shape) != leaf.shape:
            raise UserError(f"Parameter {name} has shape {tuple(given[name].shape)}; config.json needs {leaf.shape}.")
        if not jax.numpy.issubdtype(given[name].dtype, jax.numpy.floating):
            raise UserError(f"Parameter {name} has dtype {given[name].dtype}; weights must be floating-point numbers.")


def check_finite(params: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError if a weight is no finite number, with its name; `folder` is where it is from."""
    for name, value in flax.traverse_util.flatten_dict(dict(params), sep="/").items():
        if not np.isfinite(value).all():
            raise UserError(
                f"Parameter {name} in {folder} has numbers that are not finite: copy the checkpoint again, or take an "
                "earlier step."
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
    """Writes a checkpoint; see `OctoModel.save_pretrained`. The step appears whole or not at all."""
    folder = Path(path)
    target = folder / str(step)
    if not isinstance(step, int) or step < 0:
        raise UserError(f"step={step!r} must be a whole number, not negative.")
    if target.exists():
        raise UserError(f"{target} exists already: choose another step or folder.")
    folder.mkdir(parents=True, exist_ok=True)
    params = jax.tree.map(np.asarray, flax.core.unfreeze(params))
    texts = {
        "config.json": json.dumps(config).encode(),
        "example_batch.msgpack": msgpack_serialize(jax.tree.map(np.asarray, flax.core.unfreeze(example_batch))),
        "dataset_statistics.json": json.dumps(
            jax.tree.map(lambda x: np.asarray(x).tolist(), dict(dataset_statistics or {}))
        ).encode(),
    }
    for name, content in texts.items():
        if not (folder / name).exists():
            write_whole(folder / name, content)
    for name, source in assets.items():
        if not (folder / name).exists():
            content = Path(source).read_bytes()
            write_whole(folder / name, mend_settings(content) if Path(name).name == SETTINGS_FILE else content)
    scratch = Path(tempfile.mkdtemp(prefix=f".{step}-", dir=folder))
    try:
        (scratch / "default").mkdir()
        (scratch / "default" / "checkpoint").write_bytes(msgpack_serialize(params))
        (scratch / "default" / "_METADATA").write_text(json.dumps(_orbax_metadata(params)))
        scratch.chmod(0o755)
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _orbax_metadata(params: Mapping[str, Any]) -> dict[str, Any]:
    """What Orbax writes beside a tree of dicts whose arrays all lie in the file `checkpoint`."""
    entry = {"value_type": "np.ndarray", "skip_deserialize": True}
    return {
        "tree_metadata": {
            str(path): {
                "key_metadata": [{"key": key, "key_type": 2} for key in path],
                "value_metadata": entry,
            }
            for path in sorted(flax.traverse_util.flatten_dict(params))
        }
    }


def _check_names(tree: Any, file: Path) -> None:
    """Raises UserError unless `tree` is nested dicts with plain names: names become paths of folders."""
    if not isinstance(tree, dict) or not tree:
        raise UserError(f"{file} holds no tree of parameters.")
    for path, leaf in flax.traverse_util.flatten_dict(tree).items():
        if not all(isinstance(key, str) and re.fullmatch(r"[\w-]+", key) for key in path):
            raise UserError(f"{file} has a parameter with an odd name: {'/'.join(map(str, path))!r}.")
        if isinstance(leaf, str) and leaf != PLACEHOLDER + ".".join(path):
            raise UserError(f"{file} points to a place of its own choice for parameter {'/'.join(path)}.")
        if isinstance(leaf, (dict, list, tuple)):
            raise UserError(f"{file} has something else than an array for parameter {'/'.join(path)}.")


def _declared_shapes(folder: Path, tree: dict[str, Any] | None) -> dict[str, Any]:
    """Shapes of a checkpoint with one folder per parameter, from its metadata only."""
    metadata = ocp.PyTreeCheckpointer().metadata(folder.resolve()).item_metadata
    if metadata is None:

        def shape_of(path: tuple[str, ...]) -> jax.ShapeDtypeStruct:
            entry = json.loads((folder / ".".join(path) / ".zarray").read_bytes())
            return jax.ShapeDtypeStruct(tuple(entry["shape"]), np.dtype(entry["dtype"]))

        flat = {path: shape_of(path) for path in flax.traverse_util.flatten_dict(tree)}
    else:
        flat = flax.traverse_util.flatten_dict(metadata.tree)
        flat = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in flat.items()}
    shapes = flax.traverse_util.unflatten_dict(flat)
    _check_names(shapes, folder)
    return shapes


def _restore_folders(folder: Path, shapes: dict[str, Any]) -> dict[str, Any]:
    try:
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        return ocp.PyTreeCheckpointer().restore(folder.resolve(), restore_args=restore_args)
    except Exception as error:
        raise UserError(f"{folder} is broken, copy the checkpoint again: {_first_line(error)}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"The checkpoint lacks {path}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {_first_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object.")
    return content


def _read_statistics(path: Path) -> dict[str, Any] | None:
    statistics = _read_json(path) if path.exists() else None
    try:
        arrays = jax.tree.map(np.array, statistics, is_leaf=lambda x: not isinstance(x, dict))
    except ValueError as error:
        raise UserError(f"{path} holds something else than lists of numbers: {_first_line(error)}") from None
    return arrays or None


def _upgrade_config(config: dict[str, Any]) -> dict[str, Any]:
    """Renames what checkpoints before Octo 1.5 call otherwise."""
    try:
        for head in config["model"]["heads"].values():
            if "pred_horizon" in head["kwargs"]:
                head["kwargs"]["action_horizon"] = head["kwargs"].pop("pred_horizon")
    except (KeyError, TypeError, AttributeError):
        pass  # malformed: `create_module` says how
    return config


def _read_example_batch(path: Path) -> dict[str, Any]:
    try:
        batch = msgpack_restore(path.read_bytes())
        if "tasks" in batch:
            batch["task"] = batch.pop("tasks")
        observation = batch["observation"]
        if "timestep_pad_mask" not in observation:
            observation["timestep_pad_mask"] = observation["pad_mask"]
        if not isinstance(batch["task"], dict) or observation["timestep_pad_mask"].ndim != 2:
            raise ValueError("wrong shapes")
        arrays = [*_arrays(observation), *_arrays({**batch["task"], "language_instruction": None})]
        if not all(isinstance(value, np.ndarray) and value.ndim for value in arrays):
            raise ValueError("something else than arrays")
    except FileNotFoundError:
        raise UserError(f"The checkpoint lacks {path}.") from None
    except Exception as error:  # flax and msgpack raise many types for one thing: not readable
        raise UserError(f"{path} is not an example batch: {_first_line(error)}") from None
    return batch


def _arrays(part: Mapping[str, Any]) -> list[Any]:
    """What must be arrays of one part of an example batch: all but the flags, which are arrays by key."""
    return [value for name, value in part.items() if name != "pad_mask_dict" and value is not None]


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
