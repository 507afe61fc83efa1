"""How every command of the project starts and ends: flags in, one clear sentence out when something is wrong."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict

from rpd_jax.command.extras import missing_extra
from rpd_jax.command.flag_kinds import with_underscores
from rpd_jax.command.help_text import HELP_FLAGS, short_usage
from rpd_jax.command.start import start
from rpd_jax.command.wrong_flags import explain, explain_config_files, explain_leftover, shortened
from rpd_jax.errors import UserError, no_room
from rpd_jax.run.closed_pipe import forget_output
from rpd_jax.run.stop import STOPPED_STATUS, Interrupted

# As a shell reports a program that SIGPIPE ended: `... | head` has seen enough.
_CLOSED_PIPE_STATUS = 141


def run_command(
    main: Callable[..., None],
    argv: Sequence[str] | None = None,
    *,
    positional: str | None = None,
    default_config: Path | None = None,
) -> None:
    """Parses absl flags and calls `main`.

    Exits with status 2 and one sentence on wrong flags, a full disk or a UserError (which may name another status), 130
    when interrupted, quietly where nobody reads its output any more, and leaves the stack trace to everything else,
    which is a mistake of ours. A command that imports much calls `start` itself before.

    Args:
        main: called without arguments, or with the list of those that are no flags if `positional` names them.
        argv: of the command; sys.argv if None.
        positional: what the arguments that are no flags are called; at least one is needed then. None: none are taken.
        default_config: file of the flag --config where the command line gives none. (As a default of the flag itself,
            ml_collections would read it, and stumble over mistakes in the settings, before flags are parsed.)
    """
    if argv is None:  # else it is called inside of something else, a test, whose signals are its own
        start()
    if default_config and not any(argument.partition("=")[0] in ("--config", "-config") for argument in sys.argv):
        sys.argv.insert(1, f"--config={default_config}")
    with _sentences_not_traces():
        try:
            app.run(
                lambda arguments: _guarded(main, *([arguments[1:]] if positional else [])),
                argv=argv,
                flags_parser=lambda argv: _parse_flags(argv, positional),
            )
        finally:
            sys.stdout.flush()


@contextlib.contextmanager
def _sentences_not_traces() -> Iterator[None]:
    """What goes wrong inside the `with` block, for a reason that is not ours, ends the process with one sentence."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        sys.exit(STOPPED_STATUS)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except ModuleNotFoundError as error:
        sentence = missing_extra(error)
        if sentence is None:
            raise
        _refuse(sentence)
    except BrokenPipeError:
        forget_output(sys.stdout)
        sys.exit(_CLOSED_PIPE_STATUS)
    except OSError as error:
        cause = no_room(error)
        if cause is None:
            raise
        forget_output(sys.stdout)
        place = f"{error.filename} could not be written" if error.filename else "Something could not be written"
        _refuse(f"{place} ({cause}): make room there and run the same command again.")


def read_config(flag: flags.FlagHolder[ConfigDict]) -> ConfigDict:
    """The config of a `--config` flag; raises UserError if it cannot be read."""
    try:
        flag.value.keys()  # a config that failed to load says so at its first use
        return flag.value
    except OSError as error:
        text = shortened(" ".join(str(error).split()))
        raise UserError(f"--{flag.name} cannot be read ({text}): give a file of configs/.") from error


def _guarded(main: Callable[..., None], *arguments: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax and JAX tell their inner life at INFO
    # Inside of app.run, which prints a trace of whatever passes through it.
    with _sentences_not_traces():
        main(*arguments)
        sys.stdout.flush()


def _parse_flags(argv: Sequence[str], positional: str | None) -> list[str]:
    if any(argument in HELP_FLAGS for argument in argv[1:]):
        print(short_usage(argv))
        sys.exit(0)
    argv = with_underscores(argv)
    try:
        arguments = flags.FLAGS(argv)
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
