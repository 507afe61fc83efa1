"""What a setting may be: a check for each field of a config, and the sentence that refuses a value. Imports no JAX."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from rpd_jax.command.wrong_flags import fields, shortened
from rpd_jax.errors import UserError, nearest

_LONGEST_TEXT = 4096  # of a path on Linux


@dataclasses.dataclass(frozen=True)
class Check:
    """What one setting may be; made by `whole`, `number`, `flag`, `text`, `text_like`, `one_of` and `several`.

    Attributes:
        kind: the type of its values in words, "a whole number".
        is_kind: True for a value of that type.
        allows: True for a value of that type that is allowed.
        rule: what allowed values are like, "must be at least 1."
        nearest: for a value that is not allowed, what is said instead of `rule`.
        or_none: None is allowed too.
    """

    kind: str
    is_kind: Callable[[Any], bool]
    allows: Callable[[Any], bool]
    rule: str
    nearest: Callable[[Any], str] | None = None
    or_none: bool = False

    def complaint(self, value: Any) -> str | None:
        """The end of a sentence that begins with the setting and its value; None if there is nothing to complain of."""
        if value is None and self.or_none:
            return None
        if not self.is_kind(value):
            return self.rule if self.kind in self.rule else f"is not {self.kind}: it {self.rule}"
        if self.allows(value):
            return None
        return self.nearest(value) if self.nearest else self.rule


def whole(low: int, high: int, *, rule: str | None = None, or_none: bool = False) -> Check:
    """A whole number from `low` to `high`."""
    rule = rule or f"must be at least {low:,} and at most {high:,}."
    return Check("a whole number", _is_whole, lambda value: low <= value <= high, rule, or_none=or_none)


def number(
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: float | None = None,
    below: float | None = None,
    rule: str | None = None,
    or_none: bool = False,
) -> Check:
    """A number from `low` or more than `above`, to `high` or less than `below`; never NaN.

    Where the lower end is 0, negative zero is refused like all that is negative.
    """

    def allows(value: float) -> bool:
        if 0.0 in (low, above) and isinstance(value, float) and math.copysign(1.0, value) < 0.0:
            return False
        reaches = value >= low if above is None else value > above
        return reaches and (value <= high if below is None else value < below)

    begin = f"at least {low:,}" if above is None else f"more than {above:,}"
    end = f"at most {high:,}" if below is None else f"less than {below:,}"
    return Check("a number", _is_number, allows, rule or f"must be {begin} and {end}.", or_none=or_none)


def flag(*, or_none: bool = False) -> Check:
    """True or False."""
    return Check(
        "true or false", lambda value: isinstance(value, bool), lambda _: True, "must be true or false.", None, or_none
    )


def text(*, empty: bool = True, rule: str | None = None, or_none: bool = False) -> Check:
    """A text that can be written to a file and given to a process."""

    def allows(value: str) -> bool:
        return (empty or value != "") and _is_plain(value)

    content = "characters" if empty else "characters and not empty"
    rule = rule or f"must be a text of at most {_LONGEST_TEXT:,} {content}, without NUL and halves of surrogate pairs."
    return Check("a text", lambda value: isinstance(value, str), allows, rule, or_none=or_none)


def text_like(pattern: str, rule: str) -> Check:
    """A text that can be written to a file, and that a regular expression matches from end to end."""
    plain = text()

    def allows(value: str) -> bool:
        return plain.allows(value) and re.fullmatch(pattern, value) is not None

    return Check("a text", plain.is_kind, allows, rule)


def one_of(*allowed: str) -> Check:
    """One of several words."""
    names = ", ".join(allowed)

    def refusal(value: str) -> str:
        return f"is not one of {names}: did you mean {nearest(shortened(value), allowed)!r}?"

    rule = f"must be one of {names}."
    return Check("a text", lambda value: isinstance(value, str), lambda value: value in allowed, rule, refusal)


def anything() -> Check:
    """A field of another package, which checks it itself."""
    return Check("a value", lambda _: True, lambda _: True, "must be a value.")


def several(of: Check, rule: str, *, length: int | None = None) -> Check:
    """A tuple of `length` values, or of one or more; a list stands for a tuple."""

    def allows(value: Sequence) -> bool:
        fits = len(value) == length if length is not None else len(value) > 0
        return fits and all(of.complaint(item) is None for item in value)

    return Check("a tuple", lambda value: isinstance(value, (tuple, list)), allows, rule)


def check_fields(config: ConfigDict, table: Mapping[str, Check], *, prefix: str = "") -> None:
    """Raises UserError for the first field whose value its check in `table` refuses, or that is in one of them only.

    Args:
        config: one value for each path of the table; profiles aside.
        table: "part.field" -> its check.
        prefix: of the fields in sentences, such as "config.".
    """
    check_names(config, table, prefix=prefix)
    for path, check in table.items():
        check_value(prefix + path, get(config, path), check)


def check_value(path: str, value: Any, check: Check) -> None:
    """Raises UserError if `check` refuses `value`, which is called `path`."""
    complaint = check.complaint(value)
    if complaint:
        raise UserError(f"{path}={shown(value)} {complaint}")


def check_names(config: ConfigDict, table: Mapping[str, Check], *, prefix: str = "") -> None:
    """Raises UserError for a field of `config` that `table` lacks, and for one of `table` that `config` lacks."""
    there = [path for path, _ in fields(config)]
    for path in there:
        if path in table:
            continue
        inside = [known for known in table if known.startswith(f"{path}.")]
        if inside:
            raise UserError(f"{prefix}{path} is a group of settings: set one of {', '.join(inside)}.")
        meant = nearest(path, table)
        raise UserError(f"The config has no field {prefix}{shortened(path)}: did you mean {prefix}{meant}?")
    for path in table:
        if path not in there:
            raise UserError(f"The config lacks {prefix}{path}: make it with get_config of a file of configs/.")


def get(config: ConfigDict, path: str) -> Any:
    """The value at "part.field"."""
    for name in path.split("."):
        config = config[name]
    return config


def shown(value: Any) -> str:
    """A value in a sentence: as Python writes it, cut where it is long."""
    try:
        return shortened(repr(value))
    except ValueError:  # Python writes no number of more than 4300 digits
        return "(a number of thousands of digits)"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and not math.isnan(value))


def _is_plain(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return len(value) <= _LONGEST_TEXT and "\0" not in value
