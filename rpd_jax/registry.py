"""What packages offer by name: the entry points of a group, loaded when they are asked for. Imports no JAX.

The groups are `rpd_jax.teachers`, `rpd_jax.tasks`, `rpd_jax.algorithms` and `octo_teacher.demo_formats`;
docs/extending.md shows one of each.
"""

import difflib
import functools
from importlib import metadata
from typing import Any

from rpd_jax.errors import UserError


@functools.cache
def names(group: str) -> tuple[str, ...]:
    """The names that the installed packages offer in a group, in alphabetical order."""
    return tuple(sorted({entry.name for _, entry in _entries(group)}))


@functools.cache
def load(group: str, name: str) -> Any:
    """What a package offers under a name.

    Raises:
        UserError: nobody offers it, two packages do, or the one that does cannot be imported.
    """
    found = [(package, entry) for package, entry in _entries(group) if entry.name == name]
    if not found:
        close = difflib.get_close_matches(name, names(group), n=1)
        mend = f"did you mean {close[0]!r}?" if close else "install the package that offers it."
        known = ", ".join(names(group)) or "none"
        raise UserError(f"No installed package offers {name!r} as one of {group} (there are: {known}): {mend}")
    packages = sorted({package for package, _ in found})
    if len(packages) > 1:
        raise UserError(f"{name!r} of {group} is offered by {' and '.join(packages)}: uninstall all but one of them.")
    entry = found[0][1]
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{name!r} of {group} cannot be loaded from {packages[0]} ({entry.value}: {error}): mend that package."
        ) from error


@functools.cache
def _entries(group: str) -> tuple[tuple[str, metadata.EntryPoint], ...]:
    """The entry points of a group with their package's name.

    Not `metadata.entry_points`: that hides an installation behind what an older one left in the current folder.
    """
    found = [(package.name, entry) for package in metadata.distributions() for entry in package.entry_points]
    return tuple((package, entry) for package, entry in found if entry.group == group)
