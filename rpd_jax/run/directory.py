"""A run's directory: made once, resumed by the same config, refused to another one."""

import json
import os
from pathlib import Path

from ml_collections import ConfigDict

from rpd_jax.errors import UserError
from rpd_jax.run.lock import LOCK_FILE

# What may change between two starts of one run without making it another run.
FREE_FIELDS = ("env.workers", "env.step_timeout", "checkpoint.keep", "checkpoint.keep_best", "eval.video_episodes")
FREE_FIELDS += ("log.wandb",)
FREE_FIELDS += ("teacher.python", "teacher.devices", "teacher.start_timeout", "teacher.request_timeout")
FREE_FIELDS += ("teacher.overlap",)
# Fields that the config.json of an older version does not name, with the value that it stood for.
_ADDED_FIELDS = {
    "student.precision": "float32",
    "teacher.refresh": "rollout",
    "teacher.dataset": "",
    "teacher.openvla_checkpoint": "hf://Juelg/openvla-7b-finetuned-maniskill",
    "teacher.temperature": 0.0,
    "teacher.batch_size": 32,
}


def check_run(workdir: str | Path, config: ConfigDict) -> Path:
    """Checks that `workdir` is a run of `config` or can become one; writes nothing.

    Args:
        workdir: the run's directory.
        config: the resolved config.

    Returns:
        The directory.

    Raises:
        UserError: the directory belongs to another config, or holds other files.
    """
    workdir = Path(workdir).absolute()
    path = workdir / "config.json"
    if path.exists():
        differences = _differences(flatten(_read(path)), flatten(json.loads(config.to_json())))
        if differences:
            raise UserError(
                f"{workdir} is a run of another config ({'; '.join(differences)}): "
                "choose another --workdir, or give the values it was started with."
            )
    elif workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file: choose another --workdir.")
    elif workdir.exists() and any(entry.name != LOCK_FILE for entry in workdir.iterdir()):
        raise UserError(f"{workdir} holds files but no config.json, so it is no run: choose another --workdir.")
    return workdir


def open_run(workdir: str | Path, config: ConfigDict) -> Path:
    """Makes `workdir` with its config.json, or checks that the one there is of the same config; see `check_run`.

    Raises:
        UserError: as `check_run`, or the directory cannot be written.
    """
    workdir = check_run(workdir, config)
    path = workdir / "config.json"
    if path.exists():
        return workdir
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(json.loads(config.to_json()), indent=2, sort_keys=True) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"Cannot write to {workdir} ({error.strerror}): choose another --workdir.") from error
    return workdir


def read_run_config(workdir: str | Path) -> ConfigDict:
    """The resolved config of a run, fields newer than it filled in; raises UserError if it is none."""
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise UserError(f"{workdir} holds no run (config.json): give a directory that train.py made.")
    config = ConfigDict(_read(path))
    for name, value in _ADDED_FIELDS.items():
        *parts, field = name.split(".")
        part = config
        for key in parts:
            part = part[key]
        if field not in part:
            part[field] = value
    return config


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore it or choose another --workdir.") from error


def flatten(tree: dict, prefix: str = "") -> dict[str, object]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _differences(old: dict[str, object], new: dict[str, object]) -> list[str]:
    names = sorted(name for name in old.keys() | new.keys() if name not in FREE_FIELDS)
    values = [(name, *(config.get(name, _ADDED_FIELDS.get(name)) for config in (old, new))) for name in names]
    return [f"{name}: {there!r} there, {now!r} now" for name, there, now in values if there != now]


def default_workdir(config_file: str, config: ConfigDict) -> Path:
    """runs/<config>-<algorithm>-seed<seed>, with the student's observation in the name where it is not rgb."""
    parts = [Path(config_file).stem, config.algorithm]
    if config.student.observation != "rgb":
        parts.append(config.student.observation)
    return Path("runs") / "-".join([*parts, f"seed{config.seed}"])
