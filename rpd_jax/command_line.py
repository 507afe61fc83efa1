"""How every command of the project starts and ends: flags in, one clear sentence out when something is wrong."""

import re
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import ConfigDict

from rpd_jax.errors import UserError
from rpd_jax.interruption import Interrupted


def run_command(main: Callable[[], None], argv: Sequence[str] | None = None) -> None:
    """Parses absl flags and calls `main`.

    Exits with status 2 and one sentence on wrong flags or a UserError, 130 when interrupted, and leaves the stack trace
    to everything else, which is a mistake of ours.
    """
    try:
        app.run(lambda _: _guarded(main), argv=argv, flags_parser=_parse_flags)
    except Interrupted:
        sys.exit(130)


def read_config(flag: flags.FlagHolder[ConfigDict]) -> ConfigDict:
    """The config of a `--config` flag; raises UserError if its file is missing."""
    try:
        flag.value.keys()  # a config that failed to load says so at its first use
        return flag.value
    except OSError as error:
        text = " ".join(str(error).split())
        raise UserError(f"--{flag.name} cannot be read ({text}): give a file of configs/.") from error


def _guarded(main: Callable[[], None]) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax and JAX tell their inner life at INFO
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        arguments = flags.FLAGS(list(argv))
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        text = _first_sentence(error)
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
    if len(arguments) > 1:
        print(f"error: Unknown argument {arguments[1]!r}: flags are written --name=value.", file=sys.stderr)
        sys.exit(2)
    return arguments


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    nearest = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
    if nearest:
        return f"the config has no field {nearest[2]!r}: did you mean {nearest[1]!r}?"
    if isinstance(error, AttributeError | KeyError):
        return f"the config has no such field: {text}"
    return text
