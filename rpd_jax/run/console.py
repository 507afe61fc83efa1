"""What a run prints: sentences, tables, progress."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from rpd_jax.run.closed_pipe import forget_output
from rpd_jax.run.stop import Interrupted

# Texts come from outside too: what looks like rich's markup, or its names of pictures, is printed as it is.
_AS_IT_IS = {"markup": False, "emoji": False, "highlight": False}


def plain_console(**options: Any) -> RichConsole:
    """Rich's console with these of its options, which prints all texts as they are."""
    return RichConsole(**_AS_IT_IS, **options)


class Console:
    """Prints for people: a moving bar in a terminal, plain lines in a log file."""

    def __init__(self, quiet: bool = False):
        self._console = _RichConsole(**_AS_IT_IS, soft_wrap=True, quiet=quiet)

    def say(self, sentence: str) -> None:
        """Prints one sentence."""
        self._console.print(sentence)

    def table(self, title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
        """Prints a table."""
        table = Table(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        self._console.print(table)

    def time_split(self, seconds: Mapping[str, float], total: float, column: str, decimals: int) -> None:
        """Prints the seconds of each stage and their share of `total`; `column` says what the seconds are of."""
        rows = [(name, f"{value:.{decimals}f}", f"{value / total:.1%}") for name, value in seconds.items()]
        rows.append(("total", f"{total:.{decimals}f}", "100.0%"))
        self.table("Where the time went", ("stage", column, "share"), rows)

    @contextlib.contextmanager
    def progress(
        self, label: str, total: int, done: int, amount: int, unit: str, at_most: bool = False
    ) -> Iterator["RunProgress"]:
        """Shows progress inside the `with` block.

        Args:
            label: what goes on.
            total: parts of the work, iterations for example.
            done: those that were done before.
            amount: of `unit` in one of them.
            unit: what the speed counts, steps for example.
            at_most: the work may end before its last part.
        """
        bar = Progress(
            TextColumn(label, markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        with bar:
            yield RunProgress(self, bar, total, done, amount, unit, at_most)


class _RichConsole(RichConsole):
    def on_broken_pipe(self) -> None:
        """Nobody reads any more: the run is to save and end, and to say nothing more."""
        self.quiet = True
        forget_output(self.file)
        raise Interrupted("closed pipe")


class RunProgress:
    """Follows a loop, iteration by iteration."""

    def __init__(self, console: Console, bar: Progress, total: int, done: int, amount: int, unit: str, at_most: bool):
        self._console, self._bar, self._amount, self._unit = console, bar, amount, unit
        self._total, self._done, self._at_most = total, done, at_most
        self._seconds: list[float] = []
        self._task = bar.add_task("", total=total, completed=done, rate="")

    def advance(self, seconds: float, values: Mapping[str, float] | None) -> None:
        """Counts one iteration that took `seconds`; tells `values` where there are some."""
        self._done += 1
        self._seconds = [*self._seconds[-9:], seconds]
        recent = float(np.mean(self._seconds))
        left = duration(recent * (self._total - self._done), self._at_most)
        rate = f"{self._amount / recent:.0f} {self._unit}/s, {left} left"
        self._bar.update(self._task, advance=1, rate=rate)
        if values is not None:
            told = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
            count = f"{self._done * self._amount} {self._unit}"
            self._console.say(f"{self._done}/{self._total}  {count}  {rate}  {told}")


def duration(seconds: float, at_most: bool = False) -> str:
    """A time in words, with as many digits as a person needs."""
    minutes = seconds / 60.0
    time = f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"
    return f"at most {time}" if at_most else time
