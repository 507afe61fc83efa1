"""What a training run prints: settings, estimate, progress, where the time went, results."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

STAGES = ("simulate+render", "label", "update", "evaluate", "checkpoint", "rest")


class Console:
    """Prints for people: a moving bar in a terminal, plain lines in a log file."""

    def __init__(self, quiet: bool = False):
        self._console = RichConsole(highlight=False, soft_wrap=True, quiet=quiet)

    def say(self, sentence: str) -> None:
        """Prints one sentence."""
        self._console.print(sentence, markup=False)

    def settings(self, config: ConfigDict, departures: list[str], workdir: Path) -> None:
        """Prints the resolved settings, one row per part, and those in which they depart from the paper's."""
        table = Table(
            "part", "settings", title=f"Profile {config.profile}, run directory {workdir}", title_justify="left"
        )
        top = {name: value for name, value in config.items() if not isinstance(value, ConfigDict)}
        table.add_row("run", _listing(top))
        for name, part in config.items():
            if isinstance(part, ConfigDict):
                table.add_row(name, _listing(part.to_dict()))
        table.add_row("not as in the paper", "  ".join(departures) or "-")
        self._console.print(table)

    def estimate(self, seconds: float) -> None:
        """Prints how long the run will take."""
        self.say(f"Estimated training time: {_duration(seconds)} (evaluations and checkpoints come on top).")

    @contextlib.contextmanager
    def progress(self, num_iterations: int, first: int, batch: int) -> Iterator["TrainingProgress"]:
        """Shows progress inside the `with` block."""
        bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        with bar:
            yield TrainingProgress(self, bar, num_iterations, first, batch)

    def time_split(self, metrics_path: Path) -> None:
        """Prints the mean seconds per iteration of each stage, from a run's metrics.jsonl.

        The first iteration is left out where there are more: it holds the compilation.
        """
        rows = [json.loads(line) for line in metrics_path.read_text().splitlines()]
        rows = rows[1:] or rows
        total = np.mean([row["time/total"] for row in rows])
        table = Table("stage", "s / iteration", "share", title="Where the time went", title_justify="left")
        for stage in STAGES:
            seconds = np.mean([row.get(f"time/{stage}", 0.0) for row in rows])
            table.add_row(stage, f"{seconds:.2f}", f"{seconds / total:.1%}")
        table.add_row("total", f"{total:.2f}", "100.0%")
        self._console.print(table)

    def finish(self, results: Mapping, workdir: Path) -> None:
        """Prints the last line of a run."""
        teacher = _success(results["teacher"]) if results["teacher"] else "not measured"
        self.say(f"Done. Success: student {_success(results['student'])}, teacher {teacher}. Results: {workdir}")


class TrainingProgress:
    """Follows the loop, iteration by iteration."""

    def __init__(self, console: Console, bar: Progress, num_iterations: int, first: int, batch: int):
        self._console, self._bar, self._batch = console, bar, batch
        self._num_iterations, self._done = num_iterations, first
        self._seconds: list[float] = []
        self._task = bar.add_task("training", total=num_iterations, completed=first, rate="")

    def advance(self, numbers: Mapping[str, float]) -> None:
        """Counts one iteration, with the metrics it logged."""
        self._done += 1
        self._seconds.append(numbers["time/total"])
        recent = float(np.mean(self._seconds[-10:]))
        left = _duration(recent * (self._num_iterations - self._done))
        rate = f"{self._batch / recent:.0f} steps/s, {left} left"
        self._bar.update(self._task, advance=1, rate=rate)
        shown = {
            "success": numbers.get("rollout/success"),
            "distill": numbers.get("train/distill_loss"),
            "kl": numbers.get("train/approx_kl"),
            "EVAL success": numbers.get("eval/success"),
        }
        values = "  ".join(f"{name} {value:.3f}" for name, value in shown.items() if value is not None)
        self._console.say(f"{self._done}/{self._num_iterations}  {self._done * self._batch} steps  {rate}  {values}")


def _success(summary: Mapping[str, float]) -> str:
    interval = f"{summary['success_low']:.0%} to {summary['success_high']:.0%}"
    return f"{summary['success']:.0%} ({interval}, {summary['episodes']:.0f} episodes)"


def _listing(values: Mapping) -> str:
    return "  ".join(
        f"{name}={_listing(value) if isinstance(value, dict) else value}" for name, value in values.items()
    )


def _duration(seconds: float) -> str:
    minutes = seconds / 60.0
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"
