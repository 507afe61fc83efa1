"""How every command of the project starts and ends: flags in, one clear sentence out when something is wrong."""

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict

from rpd_jax.command.help_text import HELP_FLAGS, short_usage
from rpd_jax.command.wrong_flags import explain, explain_config_files, explain_leftover
from rpd_jax.errors import UserError
from rpd_jax.run.stop import Interrupted


def run_command(
    main: Callable[..., None],
    argv: Sequence[str] | None = None,
    *,
    positional: str | None = None,
    default_config: Path | None = None,
) -> None:
    """Parses absl flags and calls `main`.

    Exits with status 2 and one sentence on wrong flags or a UserError, 130 when interrupted, and leaves the stack trace
    to everything else, which is a mistake of ours.

    Args:
        main: called without arguments, or with the list of those that are no flags if `positional` names them.
        argv: of the command; sys.argv if None.
        positional: what the arguments that are no flags are called; at least one is needed then. None: none are taken.
        default_config: file of the flag --config where the command line gives none. (As a default of the flag itself,
            ml_collections would read it, and stumble over mistakes in the settings, before flags are parsed.)
    """
    if default_config and not any(argument.partition("=")[0] in ("--config", "-config") for argument in sys.argv):
        sys.argv.insert(1, f"--config={default_config}")
    try:
        app.run(
            lambda arguments: _guarded(main, *([arguments[1:]] if positional else [])),
            argv=argv,
            flags_parser=lambda argv: _parse_flags(argv, positional),
        )
    except Interrupted:
        sys.exit(130)


def read_config(flag: flags.FlagHolder[ConfigDict]) -> ConfigDict:
    """The config of a `--config` flag; raises UserError if it cannot be read."""
    try:
        flag.value.keys()  # a config that failed to load says so at its first use
        return flag.value
    except OSError as error:
        text = " ".join(str(error).split())
        raise UserError(f"--{flag.name} cannot be read ({text}): give a file of configs/.") from error


def _guarded(main: Callable[..., None], *arguments: list[str]) -> None:
    # A shell lets what it starts in the background ignore Ctrl-C; here that must always be able to stop and save.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.set_verbosity(logging.WARNING)  # Orbax and JAX tell their inner life at INFO
    try:
        main(*arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _parse_flags(argv: Sequence[str], positional: str | None) -> list[str]:
    if any(argument in HELP_FLAGS for argument in argv[1:]):
        print(short_usage(argv))
        sys.exit(0)
    try:
        arguments = flags.FLAGS(list(argv))
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        _refuse(explain(argv, error))
    missing = explain_config_files(argv)
    if missing:
        _refuse(missing)
    if positional is None and len(arguments) > 1:
        _refuse(explain_leftover(arguments[1]))
    if positional is not None and len(arguments) < 2:
        _refuse(f"{positional} is missing: see --help.")
    return arguments


def _refuse(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)
