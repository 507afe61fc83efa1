"""Learning curves of runs as a picture.

python -m rpd_jax.curves RUN... -o curves.png
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags

from rpd_jax.errors import UserError

_OUTPUT = flags.DEFINE_string("output", "curves.png", "The picture to write.", short_name="o")


def plot_runs(workdirs: Sequence[Path], output: Path) -> None:
    """Plots evaluated success against environment steps, one line per run, one colour per algorithm.

    The teacher's success, where a run measured it, is a dashed line.

    Raises:
        UserError: a directory holds no run.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    colours: dict[str, str] = defaultdict(lambda: f"C{len(colours)}")
    for workdir in workdirs:
        algorithm, rows = _read_run(workdir)
        label = algorithm if algorithm not in colours else None
        steps, success = zip(
            *[(row["step"], row["eval/success"]) for row in rows if "eval/success" in row], strict=True
        )
        axes.plot(steps, np.multiply(success, 100), color=colours[algorithm], label=label, marker=".", linewidth=1.5)
        teacher = workdir / "teacher.json"
        if teacher.exists():
            success = json.loads(teacher.read_text())["success"]
            label = "teacher" if not any(line.get_label() == "teacher" for line in axes.get_lines()) else None
            axes.axhline(success * 100, color="0.4", linestyle="--", linewidth=1.0, label=label)
    axes.set(xlabel="environment steps", ylabel="success in %, mean action", ylim=(-3, 103))
    axes.grid(alpha=0.3)
    axes.legend()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    plt.close(figure)


def _read_run(workdir: Path) -> tuple[str, list[dict]]:
    config, metrics = workdir / "config.json", workdir / "metrics.jsonl"
    if not config.exists() or not metrics.exists():
        raise UserError(f"{workdir} holds no run (config.json and metrics.jsonl): give directories that train.py made.")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return json.loads(config.read_text())["algorithm"], rows


def main(argv: Sequence[str]) -> None:
    plot_runs([Path(name) for name in argv[1:]], Path(_OUTPUT.value))


if __name__ == "__main__":
    app.run(main)
