"""What a report needs of runs, copied to a small folder: their pages and tables can be made anew without them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from rpd_jax.errors import UserError
from rpd_jax.report.runs import Run
from rpd_jax.report.stage_curves import stages_of
from rpd_jax.run.records import read_rows
from rpd_jax.run.whole_file import write_whole

# Of metrics.jsonl, these and those whose names begin so.
_COLUMNS = ("iteration", "step", "rollout/success", "rollout/return")
_GROUPS = ("eval/", "time/")
_FILES = ("config.json", "results.json", "teacher.json")


def keep(runs: Sequence[Run], folder: Path) -> None:
    """Copies what a report reads of each run, its stages included, to `folder`/<name of the run>; videos stay behind.

    Numbers of metrics.jsonl are rounded to six digits. What is kept of other runs in `folder` stays.

    Args:
        runs: with different names.
        folder: made if missing.

    Raises:
        UserError: two runs have one name, or `folder` cannot be written, or is where one of them is.
    """
    names = [run.path.resolve().name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"Two runs are called {twice[0]}, and each is kept by its name: keep them in different folders."
        )
    there = [run.path for run in runs if run.path.resolve().parent == folder.resolve()]
    if there:
        raise UserError(f"{there[0]} is what --keep={folder} would copy, and it is there: choose another folder.")
    for run, name in zip(runs, names, strict=True):
        for stage, place in stages_of(run.path).items():
            target = folder / name / ("" if place == run.path else stage)
            try:
                _copy(place, target)
            except OSError as error:
                raise UserError(f"Cannot write to {target} ({error.strerror}): choose another --keep.") from error


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in _FILES:
        if (source / file).exists():
            shutil.copyfile(source / file, target / file)
    rows = [
        {name: _short(value) for name, value in row.items() if _is_read(name)}
        for row in read_rows(source / "metrics.jsonl")
    ]
    write_whole(target / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _is_read(name: str) -> bool:
    return name in _COLUMNS or name.startswith(_GROUPS)


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")
