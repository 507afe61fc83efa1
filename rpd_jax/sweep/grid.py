"""What a sweep consists of: jobs, each a command that leaves a results.json in its own folder."""

import dataclasses
import fnmatch
import importlib.util
import itertools
from ast import literal_eval
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

import rpd_jax
from rpd_jax.command.wrong_flags import fields
from rpd_jax.errors import UserError, nearest

ROOT = Path(rpd_jax.__file__).resolve().parents[1]
SCALES = ("paper", "cpu")


@dataclasses.dataclass(frozen=True)
class Job:
    """One command of a sweep.

    Attributes:
        name: of its folder below the sweep's.
        program: script or ("-m", module), run from the project's root.
        flags: of the program, without the one that names the folder.
        folder_flag: that one.
        config: configs/<config>.py of a training job, else None.
        settings: "part.field" -> value that a training job sets.
        like: names of the jobs that differ from a training job in the algorithm only.
    """

    name: str
    program: tuple[str, ...]
    flags: tuple[str, ...]
    folder_flag: str
    config: str | None = None
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    like: tuple[str, ...] = ()

    def command(self, folder: Path) -> list[str]:
        """Arguments for the Python interpreter, at this moment; `folder` is the sweep's.

        The teacher's labels are asked for once: a run with refine=state takes the first stage of one that has them.
        """
        settings = [f"--config.{name}={value}" for name, value in self.settings.items()]
        labelled = (folder / name for name in self.like if (folder / name / "label" / "results.json").is_file())
        taken = [f"--first_stages={run}" for run in labelled][:1]
        return [*self.program, *self.flags, *settings, *taken, f"--{self.folder_flag}={folder / self.name}"]


def training(
    names: Sequence[str], algorithms: Sequence[str], seeds: int, settings: Mapping[str, object] | None = None
) -> list[Job]:
    """Training runs: every config of configs/ by its name, with every algorithm and seeds 0 ... seeds − 1.

    All of one seed come before those of the next, so that what is finished can be compared at any time, and all of an
    algorithm before those of the next, so that these find the teacher's labels.
    """
    jobs = []
    for seed, algorithm, name in itertools.product(range(seeds), algorithms, names):
        all_settings = {**(settings or {}), "algorithm": algorithm, "seed": seed}
        called = {each: f"{name}-{each}-seed{seed}" for each in algorithms}
        own, like = called.pop(algorithm), tuple(called.values())
        flags = (f"--config=configs/{name}.py",)
        jobs.append(Job(own, ("train.py",), flags, "workdir", name, all_settings, like))
    return jobs


def teacher_evaluation(teachers: Mapping[str, str], tasks: Sequence[str], flags: Mapping[str, object]) -> list[Job]:
    """Measurements of teachers (name -> checkpoint), a job per teacher and task, with further flags of evaluate."""
    return [
        Job(
            f"{name}-{task}",
            ("-m", "rpd_jax.evaluate"),
            (f"--teacher={teacher}", f"--tasks={task}", *(f"--{flag}={value}" for flag, value in flags.items())),
            "output",
        )
        for name, teacher in teachers.items()
        for task in tasks
    ]


def load_sweep(path: str, scale: str, overrides: Sequence[str] = ()) -> list[Job]:
    """The jobs that a file's `get_sweep(scale)` returns, with settings that all training jobs take besides.

    Args:
        path: of a file like those in configs/paper.
        scale: one of `SCALES`.
        overrides: "part.field=value" each.

    Raises:
        UserError: no such file, scale or setting.
    """
    if scale not in SCALES:
        raise UserError(f"--scale={scale} is not one of {', '.join(SCALES)}.")
    file = Path(path)
    if not file.is_file():
        files = {found.stem: found for found in (ROOT / "configs" / "paper").glob("[a-z]*.py")}
        meant = files[nearest(file.stem, files)].relative_to(ROOT)
        raise UserError(f"{path} is not a file: did you mean {meant}?")
    module = _load_module(file)
    if not hasattr(module, "get_sweep"):
        raise UserError(f"{path} has no function get_sweep: give a file of configs/paper or one like them.")
    jobs = module.get_sweep(scale)
    settings = dict(_split(override) for override in overrides)
    return [
        dataclasses.replace(job, settings={**job.settings, **settings}) if job.config is not None else job
        for job in jobs
    ]


def chosen(jobs: Sequence[Job], patterns: Sequence[str]) -> list[Job]:
    """The jobs whose names match one of `patterns` (*, ? and [] as in a shell), in their order; all if there are none.

    Raises:
        UserError: a pattern matches no job.
    """
    found: dict[str, Job] = {}
    for pattern in patterns:
        matching = {job.name: job for job in jobs if fnmatch.fnmatchcase(job.name, pattern)}
        if not matching:
            meant = nearest(pattern, (job.name for job in jobs))
            raise UserError(f"--only={pattern} matches no job of the sweep: did you mean {meant!r}?")
        found |= matching
    return list(found.values()) if patterns else list(jobs)


def job_config(job: Job) -> ConfigDict:
    """The config of a training job with its settings, not resolved; raises UserError for a value of a wrong type."""
    config = _load_module(ROOT / "configs" / f"{job.config}.py").get_config()
    kinds = dict(fields(config))
    for name, value in job.settings.items():
        *parts, field = name.split(".")
        part = config
        for key in parts:
            part = part[key]
        kind = kinds[name]
        try:
            part[field] = _converted(value, kind)
        except (SyntaxError, ValueError, TypeError) as error:
            raise UserError(f"{name}={value} is not a value of type {kind.__name__}: mend --set.") from error
    return config


def _converted(value: object, kind: type) -> object:
    if not isinstance(value, str) or kind is str:
        return value
    return literal_eval(value.capitalize() if kind is bool else value)


def _split(override: str) -> tuple[str, str]:
    name, equals, value = override.partition("=")
    known = [field for field, _ in fields(_load_module(ROOT / "configs" / "default.py").get_config())]
    if not equals:
        raise UserError(f"--set={override} has no value: write --set=part.field=value.")
    if name not in known:
        raise UserError(f"--set={override}: the config has no field {name!r}: did you mean {nearest(name, known)!r}?")
    return name, value


def _load_module(path: Path):
    spec = importlib.util.spec_from_file_location(f"sweep_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
