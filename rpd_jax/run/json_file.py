"""What a json file says, one field at a time, each with the type that it must have."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rpd_jax.errors import UserError

_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}
_MISSING = object()


def parse_object(text: str | bytes, path: Path, mend: str = "copy it again") -> dict[str, Any]:
    """Returns the json object that `text` is; raises UserError naming `path`, the file that it came from."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid json ({error}): {mend}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a json object: {mend}.")
    return content


def read_object(path: Path, missing: str, mend: str = "copy it again") -> dict[str, Any]:
    """Returns the json object that a file holds.

    Args:
        path: the file.
        missing: what follows from its absence, the end of a sentence.
        mend: what to do if it is damaged.

    Raises:
        UserError: it is missing, cannot be read, or holds something else.
    """
    return parse_object(read_bytes(path, missing), path, mend)


def read_bytes(path: Path, missing: str) -> bytes:
    """What a file holds; raises UserError if it cannot be read or, with `missing` as its end, is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {missing}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


def field(
    content: Mapping[str, Any],
    key: str,
    kind: type,
    where: str | Path,
    default: Any = _MISSING,
    mend: str = "the file is damaged",
) -> Any:
    """Returns content[key], or `default` where it is missing or null.

    Args:
        content: a json object.
        key: the name of the field.
        kind: dict, list, str, bool, int or float; an int is a float too, which must be finite.
        where: the file, and the place in it if that is not its top, for messages.
        default: without one, the field must be there.
        mend: what follows, or what to do, the end of a sentence.

    Raises:
        UserError: no such field, or one of another type.
    """
    value = content.get(key)
    if value is None:
        if default is _MISSING:
            raise UserError(f"{where} lacks the key {key!r}: {mend}.")
        return default
    fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not fits or (kind is float and not math.isfinite(value)):
        raise UserError(f"{where}: {key!r} is {_short(value)}, not {_NAMES[kind]}: {mend}.")
    return value


def objects(values: list[Any], where: str) -> list[Mapping[str, Any]]:
    """Returns `values` if all of them are json objects; raises UserError that starts with `where` otherwise."""
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise UserError(f"{where}: entry {number} is {_short(value)}, not an object: the file is damaged.")
    return values


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
