"""The picture of runs of several stages: success over minutes, beside that of imitation alone."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from rpd_jax.report.figures import PALETTE, TEACHER, plt, save
from rpd_jax.run.records import read_rows, read_teacher
from rpd_jax.training_run.fields import FIRST_STAGES

# Of a run: the name of a stage -> its run directory, in their order.
Stages = Mapping[str, Path]

_WORDS = {
    "label": "label: imitates the teacher, sees the state",
    "refine": "refine: reinforced, sees the state",
    "distil": "distil: sees pixels",
}
_COLOURS = dict(zip(_WORDS, PALETTE, strict=False))
_CONTROL = "0.45"


def stages_of(run: Path) -> Stages:
    """The stages that a run of `refine=state` has left so far."""
    earlier = {name: run / name for name in FIRST_STAGES if (run / name / "metrics.jsonl").is_file()}
    return earlier | {"distil": run}


def plot_stages(runs: Sequence[Stages], title: str, path: Path, controls: Sequence[Stages] = ()) -> None:
    """Writes the success of the mean action in each evaluation, stage after stage, over minutes of a run.

    Where an evaluation was left out (`eval.when_sampled`) it is that of the sampled actions before it.

    Dashed: the teacher, where it was measured, the mean over the runs.

    Args:
        runs: one for each seed.
        title: of the picture.
        path: of the PNG.
        controls: runs of imitation alone, in grey: their student of pixels.
    """
    plot_several([(title, runs, controls)], path)


def plot_several(pictures: Sequence[tuple[str, Sequence[Stages], Sequence[Stages]]], path: Path) -> None:
    """Writes several pictures of `plot_stages`, each a title, runs and controls, as one."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = -(-len(pictures) // columns)
    size = (5.4, 3.9) if len(pictures) == 1 else (3.1 * columns, 2.6 * rows + 0.5)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    lines = {}
    for axes, (title, runs, controls) in zip(grid.flat, pictures, strict=False):
        _draw(axes, runs, controls)
        axes.set_title(title, fontsize="large" if len(pictures) == 1 else "small")
        lines |= {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}
    for axes in grid.flat[len(pictures) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel("success in %")
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    save(figure, path)


def _draw(axes: Axes, runs: Sequence[Stages], controls: Sequence[Stages]) -> None:
    last, teachers = 0.0, []
    for stages, is_control in [*((run, False) for run in runs), *((run, True) for run in controls)]:
        begin = 0.0
        for name, directory in stages.items():
            minutes, success, end = _curve(directory, begin)
            if len(success) and not (is_control and name != "distil"):
                label = "control: imitation alone, sees pixels" if is_control else _WORDS.get(name, name)
                colour = _CONTROL if is_control else _COLOURS.get(name, "black")
                axes.plot(minutes, success, color=colour, marker="o", markersize=4, label=label)
            if begin and len(runs) == 1 and not is_control:
                axes.axvline(begin, color="0.8", linewidth=1.0)
            begin = end
        last = max(last, begin)
        teacher = list(stages.values())[-1] / "teacher.json"
        if teacher.exists():
            teachers.append(100 * read_teacher(teacher)["success"])
    if teachers:
        axes.axhline(np.mean(teachers), color=TEACHER, linestyle="--", linewidth=1.2, label="teacher")
    axes.set(xlabel="minutes", ylim=(-3, 103), xlim=(0, 1.02 * max(last, 1e-3)))
    axes.grid(alpha=0.3)


def _curve(directory: Path, begin: float) -> tuple[list[float], list[float], float]:
    """Minutes and success in % of a stage's evaluations, and the minute at which it ended; it began at `begin`."""
    rows = read_rows(directory / "metrics.jsonl")
    minutes = begin + np.cumsum([row["time/total"] for row in rows]) / 60.0
    found = [row.get("eval/success", row.get("eval/sampled_success")) for row in rows]
    at = [index for index, success in enumerate(found) if success is not None]
    end = float(minutes[-1]) if len(minutes) else begin
    return [float(minutes[index]) for index in at], [100 * found[index] for index in at], end
