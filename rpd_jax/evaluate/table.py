"""A policy on many tasks: the numbers of the paper's Table I, as a console table, Markdown and JSON."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Column, Table

from rpd_jax.markdown import markdown_table
from rpd_jax.run.whole_file import write_json, write_whole

COLUMNS = ("task", "trained on in the paper", "success", "95% interval", "mean reward", "mean length", "episodes")


def _columns(rows: Sequence[dict]) -> tuple[str, ...]:
    """With a column for the way to act where there are several."""
    return (COLUMNS[0], "actions", *COLUMNS[1:]) if any("actions" in row for row in rows) else COLUMNS


def _cells(row: dict) -> tuple[str, ...]:
    return (
        row["task"],
        *([row["actions"]] if "actions" in row else []),
        "held out" if row["held_out"] else "yes",
        f"{row['success']:.1%}",
        f"{row['success_low']:.1%} to {row['success_high']:.1%}",
        f"{row['reward']:.3f} ± {row['reward_high'] - row['reward']:.3f}",
        f"{row['length']:.1f}",
        f"{row['episodes']:.0f}",
    )


def console_table(name: str, rows: Sequence[dict]) -> Table:
    """The rows of `measure_policy` for a terminal."""
    columns = [Column(name, no_wrap=name in ("task", "actions")) for name in _columns(rows)]
    table = Table(*columns, title=name)
    for row in rows:
        table.add_row(*_cells(row))
    return table


def write_tables(folder: Path, name: str, settings: dict, rows: Sequence[dict], actions: str = "") -> None:
    """Writes the rows of `measure_policy` to table.md and results.json in `folder`.

    Args:
        folder: made if missing.
        name: of the policy.
        settings: that were the same on all tasks.
        rows: one per task, or per task and way to act ("actions").
        actions: a sentence on which actions were executed.
    """
    table = markdown_table(_columns(rows), map(_cells, rows))
    note = (
        f"{actions} Reward: normalised dense reward per step, mean over episodes; ± and brackets: 95% intervals.\n"
    ).lstrip()
    named = ", ".join(f"{name} {value}" for name, value in settings.items())
    write_whole(folder / "table.md", f"# {name}\n\n{note}{named}.\n\n{table}\n")
    content = {"policy": name, "settings": settings, "tasks": list(rows)}
    write_json(folder / "results.json", content)
