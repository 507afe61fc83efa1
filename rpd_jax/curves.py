"""Learning curves of runs as a picture.

python -m rpd_jax.curves --runs=runs/a,runs/b --output=curves.png
"""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from absl import flags

from rpd_jax.command_line import run_command
from rpd_jax.errors import UserError

_RUNS = flags.DEFINE_list("runs", None, "Run directories, separated by commas.", required=True)
_OUTPUT = flags.DEFINE_string("output", "curves.png", "The picture to write.")


def plot_runs(workdirs: Sequence[Path], output: Path) -> None:
    """Plots success against environment steps, one pair of lines per run, one colour per algorithm.

    Dots: evaluations with the mean action. Thin line: the training episodes themselves, whose actions are sampled
    (running mean). Dashed: the teacher, where a run measured it.

    Raises:
        UserError: a directory holds no run.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    colours: dict[str, str] = {}
    teachers = []
    for workdir in workdirs:
        algorithm, rows = _read_run(workdir)
        label = algorithm if algorithm not in colours else None
        colour = colours.setdefault(algorithm, f"C{len(colours)}")
        steps, success = _column(rows, "eval/success")
        axes.plot(steps, 100 * success, color=colour, label=label, marker="o", markersize=4, linewidth=1.5)
        steps, success = _column(rows, "rollout/success")
        axes.plot(steps, 100 * _running_mean(success), color=colour, alpha=0.4, linewidth=1.0)
        if (workdir / "teacher.json").exists():
            teachers.append(json.loads((workdir / "teacher.json").read_text())["success"])
    if teachers:
        axes.axhline(100 * np.mean(teachers), color="0.4", linestyle="--", linewidth=1.0, label="teacher")
    axes.set(xlabel="environment steps", ylabel="success in %", ylim=(-3, 103))
    axes.grid(alpha=0.3)
    axes.legend()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    plt.close(figure)


def _column(rows: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    values = [(row["step"], row[name]) for row in rows if name in row]
    return tuple(np.array(values, float).reshape(-1, 2).T)


def _running_mean(values: np.ndarray, window: int = 5) -> np.ndarray:
    """Mean of each value and up to `window` − 1 before it."""
    return np.array([values[max(0, i + 1 - window) : i + 1].mean() for i in range(len(values))])


def _read_run(workdir: Path) -> tuple[str, list[dict]]:
    config, metrics = workdir / "config.json", workdir / "metrics.jsonl"
    if not config.exists() or not metrics.exists():
        raise UserError(f"{workdir} holds no run (config.json and metrics.jsonl): give directories that train.py made.")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return json.loads(config.read_text())["algorithm"], rows


def main() -> None:
    plot_runs([Path(name) for name in _RUNS.value], Path(_OUTPUT.value))


if __name__ == "__main__":
    run_command(main)
