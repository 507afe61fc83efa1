"""Tables of runs of several stages: what refinement added to imitation, and what each stage left."""

from collections.abc import Mapping, Sequence

import numpy as np

from rpd_jax.report.runs import Panel, Run
from rpd_jax.report.statistics import pooled_success

ADDED = ("runs", "seeds", "teacher", "control: imitation alone", "student", "minutes of a run, of its control")
LEFT = ("run", "imitator that sees the state", "expert that sees the state", "student", "minutes of the stages")


def added(panels: Sequence[Panel]) -> list[tuple[str, ...]]:
    """Rows of `ADDED`, one for each algorithm that refined runs of a panel to their end.

    The teacher is the one that the refined runs measured, or else (where it looked through another camera than the
    student) their controls. Successes are means over the seeds with their 95% intervals.
    """
    rows = []
    for found in (found for panel in panels for found in panel.staged()):
        refined, controls = _finished(found.runs), _finished(found.controls)
        if not refined:
            continue
        columns = (
            _teachers(refined) or _teachers(controls),
            *([run.results["student"] for run in runs] for runs in (controls, refined)),
        )
        minutes = ", ".join(f"{np.mean([run.minutes for run in runs]):.0f}" for runs in (refined, controls) if runs)
        rows.append((found.title, str(len(refined)), *map(_success, columns), minutes))
    return rows


def _finished(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.results is not None]


def _teachers(runs: Sequence[Run]) -> list[dict[str, float]]:
    return [run.teacher for run in runs if run.teacher is not None and "episodes" in run.teacher]


def left(panels: Sequence[Panel]) -> list[tuple[str, ...]]:
    """Rows of `LEFT`, one for each finished run of several stages that was refined: success, and steps to it."""
    return [
        (f"{found.title}, seed {run.seed}", *_stage_cells(run))
        for panel in panels
        for found in panel.staged()
        for run in _finished(found.runs)
        if "stages" in run.results
    ]


def _stage_cells(run: Run) -> tuple[str, ...]:
    stages = run.results["stages"]
    cells = []
    for name, drawn in (("label", "drawn"), ("refine", "undrawn"), ("distil", "drawn")):
        stage = stages.get(name)
        cells.append(f"{_success([stage['student']])}, {stage['steps']:,} {drawn}" if stage else "-")
    return *cells, ", ".join(f"{stage['minutes']:.1f}" for stage in stages.values())


def _success(summaries: Sequence[Mapping[str, float]]) -> str:
    found = pooled_success(summaries)
    return f"{found['mean']:.0%} ({found['low']:.0%} to {found['high']:.0%})" if found else "-"
