"""The picture of runs of several stages: success over minutes, beside that of imitation alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rpd_jax.report.figures import PALETTE, TEACHER, plt, save
from rpd_jax.run.records import read_rows, read_teacher

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
    earlier = {name: run / name for name in ("label", "refine") if (run / name / "metrics.jsonl").is_file()}
    return earlier | {"distil": run}


def plot_stages(runs: Sequence[Stages], title: str, path: Path, controls: Sequence[Stages] = ()) -> None:
    """Writes the success of the mean action in each evaluation, stage after stage, over minutes of a run.

    Dashed: the teacher, where it was measured, the mean over the runs.

    Args:
        runs: one for each seed.
        title: of the picture.
        path: of the PNG.
        controls: runs of imitation alone, in grey: their student of pixels.
    """
    figure, axes = plt.subplots(figsize=(5.4, 3.9), layout="constrained")
    last, shown, teachers = 0.0, set(), []
    for stages, is_control in [*((run, False) for run in runs), *((run, True) for run in controls)]:
        begin = 0.0
        for name, directory in stages.items():
            minutes, success, end = _curve(directory, begin)
            label = "control: imitation alone, sees pixels" if is_control else _WORDS.get(name, name)
            if len(success) and not (is_control and name != "distil"):
                colour = _CONTROL if is_control else _COLOURS.get(name, "black")
                label, shown = None if label in shown else label, shown | {label}
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
    axes.set(title=title, xlabel="minutes", ylabel="success in %", ylim=(-3, 103), xlim=(0, 1.02 * max(last, 1e-3)))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    save(figure, path)


def _curve(directory: Path, begin: float) -> tuple[list[float], list[float], float]:
    """Minutes and success in % of a stage's evaluations, and the minute at which it ended; it began at `begin`."""
    rows = read_rows(directory / "metrics.jsonl")
    minutes = begin + np.cumsum([row["time/total"] for row in rows]) / 60.0
    at = [index for index, row in enumerate(rows) if "eval/success" in row]
    end = float(minutes[-1]) if len(minutes) else begin
    return [float(minutes[index]) for index in at], [100 * rows[index]["eval/success"] for index in at], end
