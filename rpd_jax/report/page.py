"""The report itself: pictures, and one HTML page that holds them and the videos, and needs no network."""

import base64
import datetime
import importlib.resources
import math
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np

from rpd_jax.acting.episodes import wilson_interval
from rpd_jax.markdown import markdown_table
from rpd_jax.report import figures, refinement, statistics
from rpd_jax.report.runs import Panel, Run, Series, differing_fields, group
from rpd_jax.report.stage_curves import Stages, plot_several, stages_of
from rpd_jax.run.whole_file import check_can_write, write_whole
from rpd_jax.training_run.fields import FIRST_STAGES, FREE_FIELDS

PAGE = "report.html"


def write_report(
    runs: Sequence[Run],
    folder: Path,
    thresholds: Sequence[float] = (0.5,),
    videos: int = 1,
    title: str = "Training runs",
    command: str = "",
) -> Path:
    """Writes report.html, its PNGs, and its tables of success as success.md.

    Args:
        runs: at least one.
        folder: made if missing; files of an earlier report are replaced.
        thresholds: success rates in [0, 1] for the table of sample efficiency.
        videos: runs of each series whose videos the page holds; 0: none.
        title: of the page.
        command: that wrote it, to be shown.

    Returns:
        The page's path.

    Raises:
        UserError: `folder` cannot be written.
    """
    check_can_write(folder)
    panels = group(runs)
    places = [(panel, one) for panel in panels for one in panel.series]
    names = [f"{panel.title}: {one.name}" if len(panels) > 1 else one.name for panel, one in places]
    series = {name: one for name, (_, one) in zip(names, places, strict=True)}
    panel_of = {name: panel for name, (panel, _) in zip(names, places, strict=True)}
    seconds = {name: statistics.seconds_per_stage(one.runs) for name, one in series.items()}
    figures.plot_time(seconds, folder / "time.png")
    aggregates, shared = _aggregates(panels)
    if aggregates:
        algorithms = {one.name: one.algorithm for one in series.values()}
        figures.plot_intervals(aggregates, algorithms, folder / "final.png")
    final = [(name, *_final_cells(one, panel_of[name])) for name, one in series.items()]
    efficiency = [(name, *_efficiency_cells(one, thresholds)) for name, one in series.items()]
    rates = [f"{threshold:.0%}" for threshold in thresholds]
    tables = [
        f"# {title}",
        markdown_table(["final success", "student", "95% interval", "teacher", "finished seeds", "minutes"], final),
        markdown_table(["environment steps until a success of", *rates], efficiency),
    ]
    added, left = refinement.added(panels), refinement.left(panels)
    if added:
        tables += [markdown_table(refinement.ADDED, added), markdown_table(refinement.LEFT, left)]
    write_whole(folder / "success.md", "\n\n".join(tables) + "\n")
    fields = differing_fields(runs, (*FREE_FIELDS, "seed"))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    template = (importlib.resources.files("rpd_jax.report") / "page.html").read_text()
    html = environment.from_string(template).render(
        title=title,
        written=datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
        command=command,
        unfinished=sum(run.results is None for run in runs),
        panels=[_panel_pictures(panel, folder) for panel in panels],
        final=final,
        staged=_refinement(panels, folder),
        refinement=[(refinement.ADDED, added), (refinement.LEFT, left)] if added else [],
        aggregates=[
            (name, f"{values['iqm']:.1%}", _interval(values["low"], values["high"]), values["runs"])
            for name, values in aggregates.items()
        ],
        shared=shared,
        intervals=_data(folder / "final.png") if aggregates else "",
        thresholds=rates,
        efficiency=efficiency,
        time=_data(folder / "time.png"),
        speeds=[_speed_row(name, series[name], seconds[name]) for name in series],
        runs=[_run_row(run) for run in runs],
        videos=[video for name, one in series.items() for video in _videos(name, one, videos)],
        fields=fields,
        differences=[
            (name, *(one.runs[0].config.get(field, "") for field in fields)) for name, one in series.items() if fields
        ],
        shared_settings=sorted(
            (name, value) for name, value in runs[0].config.items() if name not in (*fields, "seed")
        ),
    )
    write_whole(folder / PAGE, html)  # a browser that reloads never sees half a page
    return folder / PAGE


def _panel_pictures(panel: Panel, folder: Path) -> dict[str, str]:
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", panel.title)
    success, returns = folder / f"success-{name}.png", folder / f"return-{name}.png"
    figures.plot_curves(panel, "success", success)
    figures.plot_curves(panel, "return", returns)
    pictures = {"title": panel.title, "success": _data(success), "returns": _data(returns), "stages": ""}
    staged = _staged([panel])
    if staged:
        stages = folder / f"stages-{name}.png"
        plot_several(staged, stages)
        pictures["stages"] = _data(stages)
    return pictures


def _staged(panels: Sequence[Panel]) -> list[tuple[str, list[Stages], list[Stages]]]:
    """A picture for each algorithm of each panel that refined runs: its title, they and their controls."""
    return [
        (found.title, *([stages_of(run.path) for run in runs] for runs in (found.runs, found.controls)))
        for panel in panels
        for found in panel.staged()
    ]


def _refinement(panels: Sequence[Panel], folder: Path) -> str:
    """Draws the runs of several stages of all panels as one picture; its data, or "" if one panel alone has them."""
    if sum(bool(panel.staged()) for panel in panels) < 2:
        return ""
    plot_several(_staged(panels), folder / "stages.png")
    return _data(folder / "stages.png")


def _aggregates(panels: Sequence[Panel]) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Interquartile means of the series that finished runs, over the panels in which all of them did; their titles."""
    scores: dict[str, dict[str, list[float]]] = {}
    for panel in panels:
        for series in panel.series:
            finished = [run.results["student"]["success"] for run in series.runs if run.results is not None]
            if finished:
                scores.setdefault(series.name, {})[panel.title] = finished
    shared = [panel.title for panel in panels if all(panel.title in found for found in scores.values())]
    several = len(shared) > 1 or any(len(found) > 1 for by_panel in scores.values() for found in by_panel.values())
    if not shared or not several:
        return {}, []
    return {
        name: statistics.aggregate({title: found[title] for title in shared}) for name, found in scores.items()
    }, shared


def _final_cells(series: Series, panel: Panel) -> tuple:
    final = statistics.final_success(series)
    # A baseline without a teacher is compared with the teacher of the others.
    teachers = Panel(panel.title, [series]).teachers("success") or panel.teachers("success")
    teacher = ", ".join(f"{value:.0%}" for value in teachers.values()) or "-"
    seeds = f"{sum(run.results is not None for run in series.runs)} of {len(series.runs)}"
    if final is None:
        return "-", "-", teacher, seeds, "-"
    minutes = np.mean([run.minutes for run in series.runs if run.results is not None])
    return f"{final['mean']:.1%}", _interval(final["low"], final["high"]), teacher, seeds, f"{minutes:.0f}"


def _efficiency_cells(series: Series, thresholds: Sequence[float]) -> list[str]:
    cells = []
    for threshold in thresholds:
        steps = [statistics.steps_to_success(run, threshold) for run in series.runs]
        reached, median = sum(map(math.isfinite, steps)), float(np.median(steps))
        shown = f"{median:,.0f}" if math.isfinite(median) else "-"
        cells.append(f"{shown} ({reached} of {len(steps)})")
    return cells


def _speed_row(name: str, series: Series, seconds: dict[str, float]) -> tuple:
    config, total = series.runs[0].config, seconds.get("total")
    batch = config["env.num_envs"] * config["ppo.rollout_steps"]
    hours = sum(run.minutes for run in series.runs) / 60
    return (name, f"{total:.1f}", f"{batch / total:.0f}", f"{hours:.2f}") if total else (name, "-", "-", "-")


def _run_row(run: Run) -> dict:
    latest = run.results["student"] if run.results is not None else run.latest
    teacher = f"{run.teacher['success']:.0%}" if run.teacher else "-"
    if latest is None:
        cells = ("-", "-", "-", teacher)
    else:
        episodes = round(latest["episodes"])
        bounds = _interval(*wilson_interval(round(latest["success"] * episodes), episodes))
        cells = (f"{latest['success']:.0%}", bounds, episodes, teacher)
    done = "finished" if run.results is not None else f"{run.step:,} of {run.total_steps:,} steps"
    return {
        "name": run.path.name,
        "seed": run.seed,
        "step": run.step,
        "total": run.total_steps,
        "progress": done,
        "cells": cells,
    }


def _videos(name: str, series: Series, count: int) -> list[dict[str, str]]:
    found = []
    for run in series.runs:
        student, teacher = run.path / "videos" / "student.mp4", _teacher_video(run)
        if len(found) < 2 * count and student.exists():
            found.append({"data": _data(student), "caption": f"{name}, seed {run.seed}: the student"})
            if teacher is not None:
                found.append({"data": _data(teacher), "caption": "Its teacher, in the same episodes"})
    return found


def _teacher_video(run: Run) -> Path | None:
    """Of several stages the first has the teacher; one that looks through a camera of its own is not shown."""
    stages = ("", FIRST_STAGES[0]) if run.config.get("teacher.view") != "own" else ("",)
    places = (run.path / stage / "videos" / "teacher.mp4" for stage in stages)
    return next((place for place in places if place.exists()), None)


def _interval(low: float, high: float) -> str:
    return f"{low:.0%} to {high:.0%}" if math.isfinite(low) else "-"


def _data(path: Path) -> str:
    kind = {".png": "image/png", ".mp4": "video/mp4"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
