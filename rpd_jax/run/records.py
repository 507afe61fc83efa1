"""What a run leaves for others to read: metrics.jsonl, results.json and teacher.json, read back and checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rpd_jax.errors import UserError
from rpd_jax.run.json_file import field, parse_object, read_object

_MEND = "restore it, or remove it so that the same command makes it again"


def read_rows(path: Path) -> list[dict[str, float]]:
    """The whole lines of a metrics.jsonl: a run that is going on may be in the middle of writing one.

    Raises:
        UserError: the file cannot be read, or a line is none of numbers with its step.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    rows = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        where = f"{path}, line {number}"
        row = parse_object(line, where, "mend or remove that line")
        if field(row, "step", int, where) < 0 or not all(_is_number(value) for value in row.values()):
            raise UserError(f"{where} holds something else than numbers: mend or remove that line.")
        rows.append(row)
    return rows


def read_results(path: Path) -> dict[str, Any]:
    """What results.json says of a finished training.

    Raises:
        UserError: it cannot be read, or lacks the student's success and episodes, or those of a stage, or its steps.
    """
    content = read_object(path, "the run has not finished", _MEND)
    _check_student(content, path)
    stages = field(content, "stages", dict, path, {}, mend=_MEND)
    for name in stages:
        stage, where = field(stages, name, dict, f"{path}: stages", mend=_MEND), f"{path}: stages.{name}"
        _check_student(stage, where)
        for number, kind in (("steps", int), ("minutes", float)):
            field(stage, number, kind, where, mend=_MEND)
    return content


def _check_student(content: Mapping[str, Any], where: str | Path) -> None:
    check_summary(field(content, "student", dict, where, mend=_MEND), f"{where}: student", ("success", "episodes"))


def read_teacher(path: Path) -> dict[str, float]:
    """What teacher.json says; raises UserError if it cannot be read, or lacks the teacher's success and return."""
    content = read_object(path, "the teacher was not measured", _MEND)
    check_summary(content, str(path), ("success", "return"))
    return content


def check_summary(summary: Mapping[str, Any], where: str, names: tuple[str, ...]) -> None:
    """Raises UserError if what was measured over episodes lacks one of `names` or holds rates that are none."""
    for name in names:
        field(summary, name, float, where, mend=_MEND)
    for name in ("success", "success_low", "success_high"):
        if not 0.0 <= field(summary, name, float, where, 0.0, mend=_MEND) <= 1.0:
            raise UserError(f"{where}: {name} is {summary[name]}, which is no rate: {_MEND}.")
    if not 1 <= field(summary, "episodes", float, where, 1, mend=_MEND) < 1e12:
        raise UserError(f"{where}: episodes is {summary['episodes']}, which is no number of episodes: {_MEND}.")


def _is_number(value: Any) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300) or value != value
