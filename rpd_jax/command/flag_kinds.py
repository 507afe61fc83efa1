"""Kinds of flags that absl lacks, and spellings that commands once had. Imports no JAX."""

from collections.abc import Sequence

from absl import flags

# What is defined here belongs to the module that asked for it, whose --help shows it.
flags.disclaim_key_flags()


class _Numbers(flags.ArgumentParser):
    """A list of numbers, separated by commas."""

    def __init__(self, kind: type, least: float | None, length: int | None):
        super().__init__()
        self._kind, self._least, self._length = kind, least, length

    def parse(self, argument: str | Sequence[float]) -> list[float]:
        words = argument.strip("()[] ").split(",") if isinstance(argument, str) else argument
        try:
            values = [self._kind(word) for word in words]
        except ValueError:
            values = []
        allowed = self._least is None or all(value >= self._least for value in values)
        if not values or not allowed or self._length not in (None, len(values)):
            raise ValueError(f"it is no list of {self.flag_type()}")
        return values

    def flag_type(self) -> str:
        count = "" if self._length is None else f"{self._length} "
        kind = "whole numbers" if self._kind is int else "numbers"
        least = "" if self._least is None else f" of at least {self._least}"
        return f"{count}{kind}{least}, separated by commas"


def define_numbers(
    name: str,
    default: Sequence[float],
    text: str,
    *,
    kind: type = int,
    least: float | None = 1,
    length: int | None = None,
    values: flags.FlagValues = flags.FLAGS,
) -> flags.FlagHolder:
    """Defines a flag such as --batch=1,8.

    Args:
        name: of the flag.
        default: its numbers.
        text: for --help.
        kind: int or float.
        least: the smallest number allowed; None: any.
        length: how many; None: one or more.
        values: where the flag is defined.
    """
    shown = ",".join(map(str, default))
    serializer = flags.ListSerializer(",")
    return flags.DEFINE(_Numbers(kind, least, length), name, shown, text, values, serializer)


def with_underscores(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """A command line in which --mesh-detail, as argparse spelled it, is the flag --mesh_detail; others stay."""
    understood, flags_end = [], False
    for argument in argv:
        flags_end = flags_end or argument == "--"
        name, equals, value = argument.partition("=")
        spelled = name.lstrip("-").replace("-", "_")
        if not flags_end and name.startswith("--") and "-" in name[2:] and spelled in values:
            argument = f"--{spelled}{equals}{value}"
        understood.append(argument)
    return understood
