"""What a demo file holds, as a table and as a picture."""

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from octo_teacher.data import Demo, action_statistics, read_maniskill
from octo_teacher.demos.episode_files import read_json

ACTION_NAMES = ("x", "y", "z", "rotation x", "rotation y", "rotation z", "gripper")
_STRIP = 8


def inspect_file(path: Path, plot: Path | None = None) -> Path:
    """Prints what the demo file `path` holds and plots frames and actions to a PNG, whose path is returned.

    Raises:
        UserError: the file is missing or malformed.
    """
    header = read_json(path)
    demos = read_maniskill(path, only_successful=False)
    entries = header["episodes"]
    lengths = np.array([len(demo.actions) for demo in demos])
    successes = sum(bool(entry.get("success")) for entry in entries)
    table = Table(title=str(path), show_header=False)
    for name, value in {
        "task": header["env_info"]["env_id"],
        "instruction": demos[0].instruction,
        "episodes": f"{len(demos)}, {successes} successful",
        "steps": f"{lengths.sum()} (episode: {lengths.min()} to {lengths.max()}, mean {lengths.mean():.1f})",
        "limit of steps": str(header["env_info"].get("max_episode_steps", "unknown")),
        "frames": f"{demos[0].images.shape[1]}x{demos[0].images.shape[2]}",
        "size": f"{path.stat().st_size / 1e6:.1f} MB",
        "reset seeds": _range([entry["episode_seed"] for entry in entries if "episode_seed" in entry]),
    }.items():
        table.add_row(name, value)
    console = Console()
    console.print(table)
    console.print(_action_table(demos))
    plot = path.with_suffix(".png") if plot is None else plot
    _plot(demos, plot)
    console.print(f"Picture: {plot}")
    return plot


def _range(values: list[int]) -> str:
    return f"{min(values)} to {max(values)}" if values else "unknown"


def _action_table(demos: list[Demo]) -> Table:
    statistics = action_statistics(demos)["action"]
    table = Table(title="actions (labels)")
    for column in ("", *ACTION_NAMES):
        table.add_column(column, justify="right")
    for name in ("mean", "std", "min", "p01", "p99", "max"):
        table.add_row(name, *(f"{value:.3f}" for value in statistics[name]))
    return table


def _plot(demos: list[Demo], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 5.5), layout="constrained")
    grid = figure.add_gridspec(2, 56)
    demo = demos[len(demos) // 2]
    steps = np.linspace(0, len(demo.images) - 1, _STRIP).round().astype(int)
    for column, step in enumerate(steps):
        axes = figure.add_subplot(grid[0, 7 * column : 7 * column + 7])
        axes.imshow(demo.images[step])
        axes.set_title(f"step {step}", fontsize=9)
        axes.axis("off")
    actions = np.concatenate([demo.actions for demo in demos])
    for column, name in enumerate(ACTION_NAMES):
        axes = figure.add_subplot(grid[1, 8 * column : 8 * column + 8])
        axes.hist(actions[:, column], bins=40, range=(-1, 1))
        axes.set_title(name, fontsize=9)
        axes.set_yticks([])
    figure.suptitle(f"{demo.instruction}: {len(demos)} episodes")
    figure.savefig(path, dpi=100)
