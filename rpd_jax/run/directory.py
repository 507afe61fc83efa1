"""A run's directory: made once, resumed by the same config, refused to another one."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from rpd_jax.errors import UserError
from rpd_jax.run.json_file import read_object
from rpd_jax.run.lock import LOCK_FILE
from rpd_jax.run.whole_file import left_behind, remove_left_behind, write_whole

CONFIG_FILE = "config.json"
# Orbax looks for what it has written by a pattern that begins with the run's path, and TensorStore takes no backslash:
# what a run saves below such a path could not be read again.
_OF_PATTERNS = "*?[\\"


@dataclasses.dataclass(frozen=True)
class RunKind:
    """What one kind of run allows in its directory.

    Attributes:
        free: fields, or groups of them, that may change between two starts of one run without making it another run.
        added: fields that the config.json of an older version does not name, with the value that it stood for.
        early: entries that may lie there before config.json does.
    """

    free: Sequence[str] = ()
    added: Mapping[str, object] = dataclasses.field(default_factory=dict)
    early: Sequence[str] = ()

    def is_free(self, name: str) -> bool:
        """True if the field may change."""
        return any(name == free or name.startswith(f"{free}.") for free in self.free)


def check_run(workdir: str | Path, config: ConfigDict, kind: RunKind) -> Path:
    """Checks that `workdir` is a run of `config` or can become one; writes nothing.

    Args:
        workdir: the run's directory.
        config: the resolved config.
        kind: of the run.

    Returns:
        The directory.

    Raises:
        UserError: the directory belongs to another config, or holds other files, or no checkpoint could be kept there.
    """
    workdir = Path(workdir).absolute()
    if signs := [sign for sign in _OF_PATTERNS if sign in str(workdir)]:
        raise UserError(
            f"{workdir} has {' and '.join(signs)} in its path, which the checkpoints' library takes for a pattern: "
            "choose another --workdir."
        )
    path = workdir / CONFIG_FILE
    if path.exists():
        changes = differences(workdir, config, kind)
        if changes:
            raise UserError(
                f"{workdir} is a run of another config ({'; '.join(changes)}): "
                "choose another --workdir, or give the values it was started with."
            )
    elif workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file: choose another --workdir.")
    elif workdir.exists():
        of_a_run = {LOCK_FILE, *kind.early, *(left.name for left in left_behind(path))}
        if any(entry.name not in of_a_run for entry in workdir.iterdir()):
            raise UserError(f"{workdir} holds files but no config.json, so it is no run: choose another --workdir.")
    return workdir


def differences(workdir: Path, config: ConfigDict, kind: RunKind) -> list[str]:
    """Where a resolved config is not that of the run in `workdir`, each "name: value there, value now".

    Raises:
        UserError: there is no config.json that can be read.
    """
    old = flatten_dict(_read(workdir / CONFIG_FILE), sep=".")
    new = flatten_dict(json.loads(config.to_json()), sep=".")
    names = sorted(name for name in old.keys() | new.keys() if not kind.is_free(name))
    values = [(name, *(config.get(name, kind.added.get(name)) for config in (old, new))) for name in names]
    return [f"{name}: {there!r} there, {now!r} now" for name, there, now in values if there != now]


def open_run(workdir: str | Path, config: ConfigDict, kind: RunKind) -> Path:
    """Makes `workdir` with its config.json, or checks that the one there is of the same config; see `check_run`.

    Called by one process at a time.

    Raises:
        UserError: as `check_run`, or the directory cannot be written.
    """
    workdir = check_run(workdir, config, kind)
    path = workdir / CONFIG_FILE
    if path.exists():
        return workdir
    remove_left_behind(path)
    try:
        write_whole(path, json.dumps(json.loads(config.to_json()), indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise UserError(f"Cannot write to {workdir} ({error.strerror}): choose another --workdir.") from error
    return workdir


def read_run_config(workdir: str | Path, kind: RunKind) -> ConfigDict:
    """The resolved config of a run, fields newer than it filled in; raises UserError if it is none."""
    path = Path(workdir) / CONFIG_FILE
    if not path.exists():
        raise UserError(f"{workdir} holds no run (config.json): give a directory that train.py made.")
    try:
        config = ConfigDict(_read(path))
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} holds no settings of a run ({error}): restore it.") from None
    for name, value in kind.added.items():
        *parts, field = name.split(".")
        part = config
        for key in parts:
            part = part.get(key) if isinstance(part, ConfigDict) else None
        if not isinstance(part, ConfigDict):
            raise UserError(f"{path} lacks the settings {'.'.join(parts)}: it is no config.json of a run; restore it.")
        if field not in part:
            part[field] = value
    return config


def _read(path: Path) -> dict:
    return read_object(path, "there is no run", "restore it or choose another --workdir")
