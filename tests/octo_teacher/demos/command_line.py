"""A command line of `python -m octo_teacher.demos`, understood and run in this process."""

from pathlib import Path
from typing import Any

from absl import flags

from octo_teacher.demos.__main__ import chosen, define_flags, joined_offsets, run
from rpd_jax.command.flag_kinds import with_underscores


def parsed(*words: str) -> tuple[list[str], flags.FlagValues]:
    values = flags.FlagValues()
    define_flags(values)
    return values(with_underscores(joined_offsets(["demos", *words]), values))[1:], values


def demos_command(*words: str) -> None:
    run(*parsed(*words))


def understood(*words: str) -> tuple[str, list[Path], dict[str, Any]]:
    return chosen(*parsed(*words))
