"""What a file or folder of demos holds, as tables and as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from octo_teacher.data.actions import ACTION_DIM, ActionMeaning, choose_gripper, why_not_ours
from octo_teacher.data.episodes import Demo, action_statistics
from octo_teacher.data.left_out import Tally
from octo_teacher.data.maniskill_files import read_header
from octo_teacher.data.readers import action_meaning, format_of, read_demos, source_files
from rpd_jax.errors import UserError
from rpd_jax.run.console import plain_console

ACTION_NAMES = ("x", "y", "z", "rotation x", "rotation y", "rotation z", "gripper")
_STRIP = 8


def inspect_file(path: Path, plot: Path | None = None, camera: str = "") -> Path:
    """Prints what demos of any known format hold and plots frames, actions and lengths to a PNG.

    Args:
        path: an h5 file, or the folder of an RLDS or LeRobot dataset.
        plot: the PNG; None puts it beside `path`.
        camera: the dataset's name of the camera; "" as for `read_demos`.

    Returns:
        The PNG's path.

    Raises:
        UserError: the demos are missing or malformed.
    """
    path = Path(path)
    kind = format_of(path)
    facts = {"format": kind}
    success, listed = None, 0
    if kind == "maniskill":
        header = read_header(path)
        entries = header.entries.values()
        success, listed = [bool(entry["success"]) for entry in entries if "success" in entry], len(entries)
        facts |= {
            "task": header.env_id,
            "limit of steps": str(header.limit or "unknown"),
            "reset seeds": _range(
                [entry["episode_seed"] for entry in entries if entry.get("episode_seed") is not None]
            ),
        }
    notes: list[str] = []
    try:
        demos, strip, shape = _read(path, camera, notes)
    except UserError as error:
        raise UserError(str(error).replace("config.cameras", "--camera")) from None  # what this command has instead
    meaning = action_meaning(path)
    lengths = np.array([len(demo.actions) for demo in demos])
    told = sorted({demo.instruction for demo in demos if demo.instruction.strip()})
    counts = f"{listed or len(demos)}, {sum(success)} successful" if success else f"{len(demos)}, success not stored"
    facts |= {
        "instructions": "; ".join(told[:8])
        + (f" and {len(told) - 8} more" if len(told) > 8 else "" if told else "none"),
        "episodes": counts,
        "steps": f"{lengths.sum()} (episode: {lengths.min()} to {lengths.max()}, mean {lengths.mean():.1f})",
        "frames": f"{shape[1]}x{shape[0]}",
        "actions": _describe_actions(demos, meaning),
        "size": f"{sum(file.stat().st_size for file in source_files(path)) / 1e6:.1f} MB",
    }
    table = Table(title=str(path), show_header=False)
    for name, value in facts.items():
        table.add_row(name, value)
    console = plain_console()
    console.print(table)
    console.print(_action_table(demos))
    for note in notes:
        console.print(note, soft_wrap=True)
    plot = _beside(path) if plot is None else Path(plot)
    _plot(demos, strip, plot, f"{path.name}: {len(demos)} episodes, {lengths.sum()} steps")
    console.print(f"Picture: {plot}", soft_wrap=True)
    return plot


def _beside(path: Path) -> Path:
    path = path.absolute()
    return path.with_name(f"{path.name}.png") if path.is_dir() else path.with_suffix(".png")


def _describe_actions(demos: Sequence[Demo], meaning: ActionMeaning) -> str:
    """What is known of the actions: by the files, by their numbers, and what training makes of them."""
    actions = np.concatenate([demo.actions for demo in demos])
    parts = [meaning.found]
    if actions.shape[1] == ACTION_DIM:
        parts.append(f"gripper from {actions[:, -1].min():g} to {actions[:, -1].max():g}")
    try:
        how = choose_gripper(actions, meaning, "", Path())
        if how != "as_is":
            parts.append(f"training converts the gripper as {how}")
    except UserError:
        parts.append("training asks for config.gripper")
    reason = why_not_ours(actions, meaning)
    if reason:
        parts.append(f"no model of them can drive the tasks: {reason}")
    return "; ".join(parts)


def _read(
    path: Path, camera: str, notes: list[str]
) -> tuple[list[Demo], tuple[np.ndarray, np.ndarray], tuple[int, int]]:
    """The demos without frames, evenly spaced frames of one with their step numbers, and the frames' size."""
    demos, strip, shape = [], None, (0, 0)
    tally = Tally(notes.append, looking=True)
    for demo in read_demos(path, {"primary": camera}, split="all", tally=tally):
        frames = demo.images["primary"]
        # The first episode of at least as many steps as frames are shown.
        if strip is None or len(strip[1]) < _STRIP <= len(frames):
            steps = np.linspace(0, len(frames) - 1, min(_STRIP, len(frames))).round().astype(int)
            strip, shape = (frames[steps], steps), frames.shape[1:3]
        demos.append(Demo({}, demo.actions, demo.instruction))
    if len({demo.actions.shape[1] for demo in demos}) != 1:
        raise UserError(f"{path} has episodes whose actions differ in dimension.")
    return demos, strip, shape


def _range(values: list[int]) -> str:
    return f"{min(values)} to {max(values)}" if values else "unknown"


def _names(demos: Sequence[Demo]) -> tuple[str, ...]:
    count = demos[0].actions.shape[1]
    return ACTION_NAMES if count == len(ACTION_NAMES) else tuple(f"action {i}" for i in range(count))


def _action_table(demos: Sequence[Demo]) -> Table:
    statistics = action_statistics(demos)["action"]
    table = Table(title="actions (labels)")
    for column in ("", *_names(demos)):
        table.add_column(column, justify="right")
    for name in ("mean", "std", "min", "p01", "p99", "max"):
        table.add_row(name, *(f"{value:.3f}" for value in statistics[name]))
    return table


def _plot(demos: Sequence[Demo], strip: tuple[np.ndarray, np.ndarray], path: Path, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.5))
    frames, steps = strip
    for axes, frame, step in zip(top.subplots(1, _STRIP, squeeze=False)[0], frames, steps, strict=False):
        axes.imshow(frame)
        axes.set_title(f"step {step}", fontsize=9)
    for axes in top.axes:
        axes.axis("off")
    actions = np.concatenate([demo.actions for demo in demos])
    names = _names(demos)
    grid = bottom.subplots(2, (len(names) + 2) // 2).ravel()
    lengths = [len(demo.actions) for demo in demos]
    grid[0].hist(lengths, bins=np.arange(min(lengths), max(lengths) + 2) - 0.5, color="tab:grey")
    grid[0].set_title("length of an episode, steps", fontsize=9)
    for column, name in enumerate(names):
        axes = grid[column + 1]
        axes.hist(actions[:, column], bins=40)
        axes.set_title(name, fontsize=9)
    for axes in grid[: len(names) + 1]:
        axes.tick_params(labelsize=7)
    for axes in grid[len(names) + 1 :]:
        axes.axis("off")
    figure.suptitle(title, parse_math=False)
    try:
        figure.savefig(path, dpi=100)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The picture cannot be written to {path} ({getattr(error, 'strerror', None) or error}): choose another "
            "--plot."
        ) from None
