"""The picture of a run of several stages: success over minutes."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rpd_jax.report.figures import PALETTE, TEACHER, plt, save
from rpd_jax.run.records import read_rows, read_teacher

_WORDS = {
    "label": "label: imitates the teacher, sees the state",
    "refine": "refine: reinforced, sees the state",
    "distil": "distil: sees pixels",
}


def plot_stages(stages: Mapping[str, Path], title: str, path: Path) -> None:
    """Writes the success of the mean action in each evaluation, stage after stage, over minutes of the run.

    Dashed: the teacher, where it was measured.

    Args:
        stages: name -> run directory, in their order.
        title: of the picture.
        path: of the PNG.
    """
    figure, axes = plt.subplots(figsize=(5.4, 3.9), layout="constrained")
    begin = 0.0
    for (name, directory), colour in zip(stages.items(), PALETTE, strict=False):
        rows = read_rows(directory / "metrics.jsonl")
        minutes = begin + np.cumsum([row["time/total"] for row in rows]) / 60.0
        measured = [
            (at, 100 * row["eval/success"]) for at, row in zip(minutes, rows, strict=True) if "eval/success" in row
        ]
        if measured:
            axes.plot(
                *zip(*measured, strict=True), color=colour, marker="o", markersize=4, label=_WORDS.get(name, name)
            )
        if begin:
            axes.axvline(begin, color="0.8", linewidth=1.0)
        begin = float(minutes[-1]) if len(minutes) else begin
    teacher = list(stages.values())[-1] / "teacher.json"
    if teacher.exists():
        axes.axhline(
            100 * read_teacher(teacher)["success"], color=TEACHER, linestyle="--", linewidth=1.2, label="teacher"
        )
    axes.set(title=title, xlabel="minutes", ylabel="success in %", ylim=(-3, 103), xlim=(0, 1.02 * max(begin, 1e-3)))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    save(figure, path)
