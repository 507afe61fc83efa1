"""What training runs left on disk, and which of them belong together."""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from rpd_jax.errors import UserError
from rpd_jax.learning.algorithms import ALGORITHMS, IMITATION
from rpd_jax.run.json_file import read_object
from rpd_jax.run.records import check_summary, read_results, read_rows, read_teacher
from rpd_jax.training_run.fields import FIRST_STAGES, FREE_FIELDS

_CAMERA = "env.camera."
# Of several fields that tell variants of an algorithm apart, these name them.
_CHOSEN_FIRST = ("student.observation", "teacher.checkpoint", "teacher.name", "distill.coef", "total_steps")
# The order of algorithms in legends and tables, before those of other packages.
ORDER = tuple(ALGORITHMS)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run directory, finished or not.

    Attributes:
        path: the directory.
        config: resolved settings, "part.field" -> value.
        rows: the lines of metrics.jsonl.
        earlier: those of the stages before its last, while there is no results.json.
        results: results.json, or None while it is not finished.
        teacher: teacher.json, or None where the teacher was not measured.
    """

    path: Path
    config: dict[str, object]
    rows: list[dict[str, float]]
    results: dict | None
    teacher: dict[str, float] | None
    earlier: list[dict[str, float]] = dataclasses.field(default_factory=list)

    @property
    def algorithm(self) -> str:
        return self.config["algorithm"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def has_stages(self) -> bool:
        """It refines on the state: its rows are those of its last stage."""
        return self.config.get("refine", "pixels") == "state"

    @property
    def step(self) -> int:
        """Environment steps done."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def total_steps(self) -> int:
        """Environment steps of the whole run: whole iterations only, and those of its earlier stages."""
        batch = self.config["env.num_envs"] * self.config["ppo.rollout_steps"]
        own = self.config["total_steps"] // batch * batch
        if not self.rows:
            return own
        before = self.rows[0]["step"] - batch if self.has_stages else 0
        return int(before) + own

    @property
    def minutes(self) -> float:
        """Minutes that its iterations took so far, in all its stages."""
        stages = (self.results or {}).get("stages")
        if stages:
            return sum(float(stage["minutes"]) for stage in stages.values())
        return sum(row.get("time/total", 0.0) for row in (*self.earlier, *self.rows)) / 60.0

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps [K] and values [K] of the iterations that logged `name`."""
        pairs = [(row["step"], row[name]) for row in self.rows if name in row]
        return tuple(np.array(pairs, float).reshape(-1, 2).T)

    @property
    def latest(self) -> dict[str, float] | None:
        """The newest evaluation's success, return, length and episodes; None before the first."""
        for row in reversed(self.rows):
            if "eval/success" in row:
                return {name.removeprefix("eval/"): row[name] for name in row if name.startswith("eval/")}
        return None


@dataclasses.dataclass(frozen=True)
class Series:
    """Runs that differ in nothing but the seed, or in nothing that a run may change on the way."""

    name: str
    algorithm: str
    runs: list[Run]


@dataclasses.dataclass(frozen=True)
class Refinement:
    """Runs of several stages that one algorithm refined, and their controls: the same imitation, and nothing else."""

    title: str
    runs: list[Run]
    controls: list[Run]


@dataclasses.dataclass(frozen=True)
class Panel:
    """Series on one task, with the same rewards and camera."""

    title: str
    series: list[Series]

    @property
    def runs(self) -> list[Run]:
        return [run for series in self.series for run in series.runs]

    def staged(self) -> list["Refinement"]:
        """Its runs of several stages, of each algorithm that refined some."""
        found: dict[str, list[Run]] = {}
        for run in self.runs:
            if run.has_stages and run.rows:
                found.setdefault(run.algorithm, []).append(run)
        known = {name: ALGORITHMS.get(name) for name in found}  # None: another package's
        refined = [name for name, algorithm in known.items() if algorithm is None or algorithm.reinforces]
        return [
            Refinement(
                f"{self.title}, {name}" if len(refined) > 1 else self.title,
                found[name],
                found.get(IMITATION[known[name] is not None and known[name].reads_spread], []),
            )
            for name in refined
        ]

    def teachers(self, name: str) -> dict[str, float]:
        """Mean of `name` ("success" or "return") of each teacher checkpoint that the panel's runs measured."""
        values: dict[str, list[float]] = {}
        for run in self.runs:
            if run.teacher is not None:
                checkpoint = str(run.config["teacher.checkpoint"]).rstrip("/").rsplit("/", 1)[-1]
                values.setdefault(checkpoint, []).append(run.teacher[name])
        return {checkpoint: float(np.mean(found)) for checkpoint, found in values.items()}


def find_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Reads the given run directories, and those up to two levels below directories that are none themselves.

    Raises:
        UserError: a directory that holds no run, or a file of a run that cannot be read.
    """
    runs: dict[Path, Run] = {}
    for path in map(Path, paths):
        places = _runs_in(path, levels=2)
        if not places:
            raise UserError(
                f"{path} holds no run (config.json and metrics.jsonl): give directories that train.py made."
            )
        for place in places:
            runs[place.resolve()] = _read_run(place)
    return list(runs.values())


def _runs_in(path: Path, levels: int) -> list[Path]:
    """`path` if it is a run, whose stages are parts of it, else the runs so many levels below."""
    if (path / "config.json").is_file():
        return [path] if _is_run(path) else []
    below = sorted(path.glob("*")) if levels else ()
    return [run for place in below for run in _runs_in(place, levels - 1)]


def group(runs: Sequence[Run]) -> list[Panel]:
    """Sorts runs into panels, and those of a panel into series named by algorithm and by what else differs.

    The curves of a panel share the task, the kind of rewards and the camera.
    """
    cameras: dict[str, set[str]] = {}
    for run in runs:
        cameras.setdefault(_panel_title(run), set()).add(_camera(run))
    panels: dict[str, list[Run]] = {}
    for run in runs:
        title = _panel_title(run)
        title += f" ({_camera(run)})" if len(cameras[title]) > 1 else ""
        panels.setdefault(title, []).append(run)
    return [Panel(title, _series(members)) for title, members in sorted(panels.items())]


def differing_fields(runs: Sequence[Run], ignored: Sequence[str] = FREE_FIELDS) -> list[str]:
    """Names of the settings in which the runs differ."""
    names = sorted({name for run in runs for name in run.config} - set(ignored))
    return [name for name in names if len({json.dumps(run.config.get(name)) for run in runs}) > 1]


def _series(runs: Sequence[Run]) -> list[Series]:
    found: dict[str, Series] = {}
    for algorithm in sorted({run.algorithm for run in runs}, key=_place):
        members = sorted((run for run in runs if run.algorithm == algorithm), key=lambda run: (run.seed, run.path))
        fields = _telling_fields(members, differing_fields(members, (*FREE_FIELDS, "seed")))
        for run in members:
            details = ", ".join(f"{field}={run.config.get(field)}" for field in fields)
            name = f"{algorithm} ({details})" if details else algorithm
            found.setdefault(name, Series(name, algorithm, [])).runs.append(run)
    return list(found.values())


def _place(algorithm: str) -> tuple[int, str]:
    return ORDER.index(algorithm) if algorithm in ORDER else len(ORDER), algorithm


def _telling_fields(runs: Sequence[Run], fields: Sequence[str]) -> tuple[str, ...]:
    """The fewest of the differing fields that tell the runs' settings apart, those that people choose first."""

    def variants(chosen: Sequence[str]) -> int:
        return len({json.dumps([run.config.get(field) for field in chosen]) for run in runs})

    ordered = sorted(fields, key=lambda field: (field not in _CHOSEN_FIRST, field))
    sizes = (itertools.combinations(ordered, size) for size in range(3))
    telling = (chosen for chosen in itertools.chain(*sizes) if variants(chosen) == variants(fields))
    return next(telling, tuple(ordered))


def _panel_title(run: Run) -> str:
    parts = [run.config["env.task"], "dense" if run.config["env.reward_mode"] == "normalized_dense" else "sparse"]
    return ", ".join([*parts, "moved camera"] if _camera(run) else parts)


def _camera(run: Run) -> str:
    """How the run's camera was moved, as its settings say it; "" if it was not."""
    moved = []
    for name, value in sorted(run.config.items()):
        if name.startswith(_CAMERA) and value is not None and np.any(place := np.asarray(value, float)):
            shown = tuple(place.tolist()) if place.ndim else float(place)
            moved.append(f"{name.removeprefix(_CAMERA)}={shown}")
    return ", ".join(moved)


def _is_run(path: Path) -> bool:
    return (path / "config.json").is_file() and (path / "metrics.jsonl").is_file()


def _read_run(path: Path) -> Run:
    results, teacher = path / "results.json", path / "teacher.json"
    try:
        run = Run(
            path,
            flatten_dict(read_object(path / "config.json", "it is no run", "leave it out, or mend the file"), sep="."),
            read_rows(path / "metrics.jsonl"),
            read_results(results) if results.exists() else None,
            read_teacher(teacher) if teacher.exists() else None,
        )
        if run.has_stages and run.results is None:
            earlier = (path / stage / "metrics.jsonl" for stage in FIRST_STAGES)
            rows = [row for stage in earlier if stage.exists() for row in read_rows(stage)]
            run = dataclasses.replace(run, earlier=rows)
        _check_fields(run)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a run ({error!r}): leave it out, or mend the file.") from error
    return run


def _check_fields(run: Run) -> None:
    """Raises if a field that everything else relies on is missing or of another type."""
    # It may be another package's, which need not be here.
    if not isinstance(run.algorithm, str) or not re.fullmatch(r"[\w.-]{1,100}", run.algorithm):
        raise ValueError(f"algorithm {run.algorithm}")
    for name in ("env.num_envs", "ppo.rollout_steps", "total_steps", "seed"):
        least = 0 if name == "seed" else 1
        if type(run.config[name]) is not int or not least <= run.config[name] < 2**62:
            raise ValueError(f"{name} {run.config[name]!r}")
    for name in ("env.task", "env.reward_mode"):
        if not isinstance(run.config[name], str):
            raise ValueError(f"{name} {run.config[name]!r}")
    if run.results is None and run.latest is not None:
        check_summary(run.latest, f"{run.path / 'metrics.jsonl'}: eval", ("success", "episodes"))
    run.config["teacher.checkpoint"], _panel_title(run), run.total_steps
