"""Rows that grow in number, on disk beside a run's checkpoints: each is written once, for all that need it."""

import dataclasses
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from rpd_jax.run.branches import read_branch

# Rows of a file: neither writing nor reading needs the memory of all of them a second time.
_ROWS_OF_A_FILE = 4096


class Span(NamedTuple):
    """Rows `start` to `end`, and the file that holds them.

    Its name begins with the number of the checkpoint that it was written for. These only rise, so that a file that a
    checkpoint names is never written again.
    """

    file: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a checkpoint holds besides its state: rows numbered in the order they came.

    Attributes:
        first: number of the oldest one that is still needed.
        end: number of rows that came so far.
        read: returns rows `start` to `end` as a pytree of arrays.
    """

    first: int
    end: int
    read: Callable[[int, int], Any]


class RowFiles:
    """The files of one run.

    Args:
        directory: made when something is written.
    """

    def __init__(self, directory: Path):
        self.directory = directory

    def add(self, iteration: int, rows: Rows, present: Iterable[Span], check_room: Callable[[Any], None]) -> list[Span]:
        """Writes what is missing of `rows`; returns where all of them are then.

        Args:
            iteration: number of the checkpoint that they are written for.
            rows: all that it needs.
            present: what files hold of them already, in order.
            check_room: called with the arrays before they are written; may raise.
        """
        spans = [span for span in present if span.end > rows.first]
        written = spans[-1].end if spans else rows.first
        for start in range(written, rows.end, _ROWS_OF_A_FILE):
            span = Span(f"{iteration}-{start}", start, min(start + _ROWS_OF_A_FILE, rows.end))
            content = rows.read(span.start, span.end)
            check_room(content)
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
                # A run that was killed before this checkpoint was whole may have left the file.
                checkpointer.save(self.directory / span.file, args=ocp.args.StandardSave(content), force=True)
            spans.append(span)
        return spans

    def read(self, span: Span, *names: str, sharding: jax.sharding.Sharding | None = None) -> Any:
        """The rows of one file, or the branch of them that `names` lead to; as `read_branch`."""
        return read_branch(self.directory / span.file, names, sharding)

    def remove_all_but(self, spans: Iterable[Span]) -> None:
        """Removes the other files, also what a killed process left half-written."""
        needed = {span.file for span in spans}
        for path in self.directory.glob("*"):
            if path.name not in needed:
                shutil.rmtree(path, ignore_errors=True)


def check_complete(spans: list[Span], first: int, end: int) -> None:
    """Raises ValueError where spans are not all rows from `first` to `end`, in order."""
    starts, ends = [span.start for span in spans], [span.end for span in spans]
    if min([*starts, end]) > first or [*starts[1:], end] != (ends or [end]):
        raise ValueError(f"rows {first} to {end} are not all there")
