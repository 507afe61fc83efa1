"""Splits in the notation of TensorFlow Datasets: train, train[:95%], train[10:20], train[:4shard], train+val, all.

As in tensorflow_datasets/core/splits.py: percents are rounded to the closest episode, negative bounds count from the
end, and a bound beyond the end is a mistake.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from octo_teacher.data.left_out import Tally
from rpd_jax.errors import UserError

_PART = re.compile(r"(?P<name>[^\[\]]+)(?:\[(?P<slice>[^\[\]]*)\])?")
_BOUND = re.compile(r"(?P<value>-?[0-9_]{1,18}(?:\.[0-9]{1,9})?)?(?P<unit>%|shard)?")


class Span(NamedTuple):
    """The episodes first .. last - 1 of a split."""

    split: str
    first: int
    last: int


def select(spec: str, shards: Mapping[str, Sequence[int]], source: Path, tally: Tally) -> list[Span]:
    """Returns the episodes that `spec` means.

    Args:
        spec: the setting config.split.
        shards: episodes in each shard of each split.
        source: the dataset, for messages.
        tally: is told how many episodes are left out by `spec`.

    Raises:
        UserError: `spec` is malformed, or names what there is not.
    """
    spans = [span for part in spec.split("+") for span in _parse(part.strip(), spec, shards, source)]
    total = sum(sum(lengths) for lengths in shards.values())
    taken = _count(spans)
    if total and not taken:
        raise UserError(f"{source}: config.split={spec!r} holds none of {total} episodes: {_have(shards)}.")
    if tally.looking and len(shards) > 1:
        tally.says(f"{source}: {_have(shards)}; training takes config.split, which is 'train' unless it is set.")
    if taken < total:
        tally.says(f"{source}: config.split={spec!r} takes {taken} of {total} episodes: {_have(shards)}.")
    return spans


def chosen(spans: Sequence[Span], shards: Mapping[str, Sequence[int]]) -> Iterator[int]:
    """Yields the numbers of the episodes in `spans`, all splits counted behind each other."""
    starts = dict(zip(shards, accumulate((sum(lengths) for lengths in shards.values()), initial=0), strict=False))
    for span in spans:
        yield from range(starts[span.split] + span.first, starts[span.split] + span.last)


def _count(spans: Sequence[Span]) -> int:
    """How many different episodes are in spans, which may overlap."""
    count, split, at = 0, None, 0
    for span in sorted(spans):
        if span.split != split:
            split, at = span.split, 0
        count += max(0, span.last - max(span.first, at))
        at = max(at, span.last)
    return count


def _parse(part: str, spec: str, shards: Mapping[str, Sequence[int]], source: Path) -> list[Span]:
    match = _PART.fullmatch(part)
    if match is None:
        raise _malformed(spec)
    name, bounds = match["name"].strip(), match["slice"]
    if name == "all" and name not in shards:
        if bounds is not None:
            raise UserError(f"config.split={spec!r}: 'all' cannot be sliced; slice each split: {_have(shards)}.")
        return [Span(split, 0, sum(lengths)) for split, lengths in shards.items()]
    if name not in shards:
        raise UserError(f"{source} has no split {name!r}, which config.split chooses: {_have(shards)}.")
    count = sum(shards[name])
    if bounds is None:
        return [Span(name, 0, count)]
    first, last = _bounds(bounds, spec, shards[name])
    for bound in (first, last):
        if abs(bound) > count:
            raise UserError(f"{source}: config.split={spec!r} goes beyond the {count} episodes of {name!r}.")
    first, last = (bound + count if bound < 0 else bound for bound in (first, last))
    return [Span(name, first, max(first, last))]


def _bounds(text: str, spec: str, lengths: Sequence[int]) -> tuple[int, int]:
    matches = [_BOUND.fullmatch(bound.strip()) for bound in text.split(":")]
    if not all(matches) or not any(match["value"] for match in matches) or len(matches) > 2:
        raise _malformed(spec)
    if any(match["unit"] and not match["value"] for match in matches):
        raise _malformed(spec)
    units = [match["unit"] for match in matches if match["unit"]]
    unit = units[0] if units else ""
    if unit != "%" and any("." in (match["value"] or "") for match in matches):
        raise _malformed(spec)
    values = [None if match["value"] is None else float(match["value"]) for match in matches]
    if len(matches) == 1:
        if unit != "shard":
            raise _malformed(spec)
        values.append(values[0] + 1 if values[0] != -1 else None)
    count = sum(lengths)
    first, last = values
    if unit == "%":
        if any(abs(value or 0) > 100 for value in values):
            raise UserError(f"config.split={spec!r} has a percentage beyond 100.")
        return (
            0 if first is None else round(first * count / 100),
            count if last is None else round(last * count / 100),
        )
    if unit == "shard":
        starts = [0, *accumulate(lengths)]
        number = [
            default if value is None else int(value) + (len(lengths) if value < 0 else 0)
            for value, default in ((first, 0), (last, len(lengths)))
        ]
        if not all(0 <= value <= len(lengths) for value in number):
            raise UserError(f"config.split={spec!r} goes beyond the {len(lengths)} shards.")
        return starts[number[0]], starts[number[1]]
    return 0 if first is None else int(first), count if last is None else int(last)


def _malformed(spec: str) -> UserError:
    return UserError(
        f"config.split={spec!r} is not a split: allowed are names, and slices of them, joined by +, for example train, "
        "train[:95%], train[10:20], train+val, all."
    )


def _have(shards: Mapping[str, Sequence[int]]) -> str:
    return "its splits are " + (", ".join(f"{name} ({sum(lengths)})" for name, lengths in shards.items()) or "none")
