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
    return tuple(sorted({entry.name for entry in metadata.entry_points(group=group)}))


@functools.cache
def load(group: str, name: str) -> Any:
    """What a package offers under a name.

    Raises:
        UserError: nobody offers it, two packages do, or the one that does cannot be imported.
    """
    found = tuple(metadata.entry_points(group=group, name=name))
    if not found:
        close = difflib.get_close_matches(name, names(group), n=1)
        mend = f"did you mean {close[0]!r}?" if close else "install the package that offers it."
        known = ", ".join(names(group)) or "none"
        raise UserError(f"No installed package offers {name!r} as one of {group} (there are: {known}): {mend}")
    packages = sorted({entry.dist.name for entry in found})
    if len(packages) > 1:
        raise UserError(f"{name!r} of {group} is offered by {' and '.join(packages)}: uninstall all but one of them.")
    try:
        return found[0].load()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{name!r} of {group} cannot be loaded from {packages[0]} ({found[0].value}: {error}): mend that package."
        ) from error
