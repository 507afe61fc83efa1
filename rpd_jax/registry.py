"""What packages offer by name: the entry points of a group, loaded when they are asked for. Imports no JAX.

The groups are `rpd_jax.teachers`, `rpd_jax.tasks`, `rpd_jax.algorithms` and `octo_teacher.demo_formats`;
docs/extending.md shows one of each.
"""

import difflib
import functools
from importlib import metadata
from typing import TypeVar

from rpd_jax.errors import UserError

_Kind = TypeVar("_Kind")


@functools.cache
def names(group: str) -> tuple[str, ...]:
    """The names that the installed packages offer in a group, in alphabetical order."""
    return tuple(sorted({entry.name for _, entry in _entries() if entry.group == group}))


@functools.cache
def load(group: str, name: str, kind: type[_Kind]) -> _Kind:
    """What a package offers under a name, which must be of a kind.

    Raises:
        UserError: nobody offers it, two packages do, or the one that does cannot be imported or offers something else.
    """
    offers = [(package, entry) for package, entry in _entries() if (entry.group, entry.name) == (group, name)]
    if not offers:
        close = difflib.get_close_matches(name, names(group), n=1)
        mend = f"did you mean {close[0]!r}?" if close else "install the package that offers it."
        known = ", ".join(names(group)) or "none"
        raise UserError(f"No installed package offers {name!r} as one of {group} (there are: {known}): {mend}")
    packages = sorted({package for package, _ in offers})
    if len(packages) > 1:
        raise UserError(f"{name!r} of {group} is offered by {' and '.join(packages)}: uninstall all but one of them.")
    entry = offers[0][1]
    try:
        found = entry.load()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{name!r} of {group} cannot be loaded from {packages[0]} ({entry.value}: {error}): mend that package."
        ) from error
    if not isinstance(found, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise UserError(
            f"{name!r} of {group} is {found!r} and not {article} {kind.__name__}: mend the package that offers it."
        )
    return found


@functools.cache
def _entries() -> tuple[tuple[str, metadata.EntryPoint], ...]:
    """The entry points of all groups with their package's name: a file of each installed package is read.

    Not `metadata.entry_points`: that hides an installation behind what an older one left in the current folder.
    """
    return tuple((package.name, entry) for package in metadata.distributions() for entry in package.entry_points)
