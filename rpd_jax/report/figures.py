"""The pictures of a report."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

from rpd_jax.report.runs import ORDER, Panel, Series, find_runs, group
from rpd_jax.report.statistics import mean_curve
from rpd_jax.run.whole_file import replacing
from rpd_jax.training_run.fields import STAGES

matplotlib.rcParams["text.parse_math"] = False  # what settings are named after is no formula

# Okabe and Ito's colours, which people with any colour vision can tell apart.
PALETTE = ("#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#E69F00", "#000000")
_COLOURS = {algorithm: PALETTE[index % len(PALETTE)] for index, algorithm in enumerate(ORDER)}
_STAGE_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#999999")
_LINES = ("-", ":", "-.", (0, (1, 3)), (0, (5, 1)))
TEACHER = "0.35"


def _colour_of(algorithm: str) -> str:
    """Of another package's algorithms, black."""
    return _COLOURS.get(algorithm, PALETTE[-1])


def plot_curves(panel: Panel, kind: str, path: Path) -> None:
    """Writes the learning curves of one panel.

    Dots: evaluations with the mean action, mean over seeds; band: ± one standard deviation over seeds. Thin line: the
    training episodes, whose actions are sampled (running mean). Dashed: the teacher, where it was measured.

    Args:
        panel: with at least one run.
        kind: "success" (drawn in percent) or "return".
        path: of the PNG.
    """
    scale = 100.0 if kind == "success" else 1.0
    figure, axes = plt.subplots(figsize=(5.4, 3.9), layout="constrained")
    for series, line in zip(panel.series, _line_styles(panel.series), strict=True):
        colour = _colour_of(series.algorithm)
        steps, mean, spread = mean_curve(series.runs, f"eval/{kind}")
        axes.plot(steps, scale * mean, color=colour, linestyle=line, marker="o", markersize=4, label=_label(series))
        lower, upper = mean - spread, mean + spread
        if kind == "success":
            lower, upper = np.clip(lower, 0.0, 1.0), np.clip(upper, 0.0, 1.0)
        axes.fill_between(steps, scale * lower, scale * upper, color=colour, alpha=0.15, linewidth=0)
        steps, mean, _ = mean_curve(series.runs, f"rollout/{kind}", window=5)
        axes.plot(steps, scale * mean, color=colour, linestyle=line, linewidth=0.9, alpha=0.4)
    teachers = panel.teachers(kind)
    for checkpoint, value in teachers.items():
        label = "teacher" if len(teachers) == 1 else f"teacher {checkpoint}"
        axes.axhline(scale * value, color=TEACHER, linestyle="--", linewidth=1.2, label=label)
    ylabel = "success in %" if kind == "success" else "return per episode"
    axes.set(title=panel.title, xlabel="environment steps", ylabel=ylabel)
    # To the end of the longest run, also while it is going on.
    axes.set_xlim(0, 1.02 * max(run.total_steps for run in panel.runs))
    if kind == "success":
        axes.set_ylim(-3, 103)
    axes.xaxis.set_major_formatter(FuncFormatter(_short_number))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    save(figure, path)


def plot_run(workdir: Path, path: Path) -> None:
    """Writes the success of one run over training."""
    (panel,) = group(find_runs([workdir]))
    plot_curves(panel, "success", path)


def plot_intervals(aggregates: Mapping[str, Mapping[str, float]], algorithms: Mapping[str, str], path: Path) -> None:
    """Writes the interquartile means of `rpd_jax.report.statistics.aggregate`, one line per name, with their bounds.

    Args:
        aggregates: name of a series -> what `aggregate` returns.
        algorithms: name of a series -> its algorithm.
        path: of the PNG.
    """
    figure, axes = plt.subplots(figsize=(5.4, 0.9 + 0.6 * len(aggregates)), layout="constrained")
    names = list(aggregates)[::-1]
    for row, name in enumerate(names):
        values, colour = aggregates[name], _colour_of(algorithms[name])
        if np.isfinite(values["low"]):
            axes.barh(row, 100 * (values["high"] - values["low"]), left=100 * values["low"], height=0.5, color=colour)
            axes.plot([100 * values["iqm"]] * 2, [row - 0.25, row + 0.25], color="black", linewidth=2)
        else:
            axes.plot(100 * values["iqm"], row, "o", color=colour)
    axes.set(xlim=(-1, 101), ylim=(-0.5, len(names) - 0.2), xlabel="interquartile mean of final success in %")
    _name_bars(axes, names, 0.3)
    axes.grid(axis="x", alpha=0.3)
    save(figure, path)


def plot_time(seconds: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Writes seconds per iteration, split into stages, one bar per name of `seconds`."""
    figure, axes = plt.subplots(figsize=(5.4, 1.3 + 0.55 * len(seconds)), layout="constrained")
    names = list(seconds)[::-1]
    left = np.zeros(len(names))
    for stage, colour in zip(STAGES, _STAGE_COLOURS, strict=True):
        widths = np.array([seconds[name].get(stage, 0.0) for name in names])
        axes.barh(range(len(names)), widths, left=left, height=0.45, color=colour, label=stage)
        left += widths
    _name_bars(axes, names, 0.28)
    axes.set(xlabel="seconds per iteration", ylim=(-0.4, len(names) - 0.3))
    axes.legend(fontsize="small", ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    save(figure, path)


def _name_bars(axes, names: Sequence[str], height: float) -> None:
    """Names above the bars: beside them, long ones would leave no room for the bars."""
    axes.set_yticks([])
    for row, name in enumerate(names):
        axes.annotate(name, (0, row + height), xycoords=("axes fraction", "data"), fontsize="small", va="bottom")


def _line_styles(series: Sequence[Series]) -> list:
    """One style per series of an algorithm, whose colour they share."""
    seen: dict[str, int] = {}
    styles = []
    for one in series:
        index = seen.get(one.algorithm, 0)
        styles.append(_LINES[index % len(_LINES)])
        seen[one.algorithm] = index + 1
    return styles


def _label(series: Series) -> str:
    seeds = len({run.seed for run in series.runs})
    return f"{series.name}, {seeds} seed{'s' if seeds > 1 else ''}"


def _short_number(value: float, _position=None) -> str:
    for limit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{letter}"
    return f"{value:g}"


def save(figure, path: Path) -> None:
    """Writes a figure as PNG, whole or not at all, and closes it."""
    try:
        with replacing(path) as scratch:
            figure.savefig(scratch, dpi=200)
    finally:
        plt.close(figure)
