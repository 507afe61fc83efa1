"""What --help prints: the command's own words and flags, and the settings of its config file."""

import sys
import textwrap
from collections.abc import Sequence

from absl import flags
from ml_collections.config_flags import config_flags

from rpd_jax.command.wrong_flags import config_of, fields

HELP_FLAGS = ("-h", "-help", "--help", "-?")
_WIDTH, _INDENT = 100, 20


def short_usage(argv: Sequence[str]) -> str:
    """The main module's docstring, its flags, and for a command with --config the fields of the given file."""
    text = [(sys.modules["__main__"].__doc__ or "").strip(), "", "Flags:"]
    own = [flag for flag in flags.FLAGS.get_key_flags_for_module(argv[0]) if flag.name not in ("help", "helpfull")]
    for flag in own:
        names = f"-{flag.short_name}, --{flag.name}" if flag.short_name else f"--{flag.name}"
        default = "" if flag.default in (None, "") else f" (default: {flag.default_as_str.strip(chr(39))})"
        text.append(_entry(names, flag.help + default))
    for flag in own:
        if config_flags.is_config_flag(flag):
            text += ["", *_settings(flag.name, argv)]
    return "\n".join(text)


def _settings(name: str, argv: Sequence[str]) -> list[str]:
    config = config_of(name, argv)
    if config is None:
        return [f"With --{name}=FILE, --help lists the settings that --{name}.FIELD=VALUE changes."]
    lines = [f"Settings, changed by --{name}.FIELD=VALUE; what is open takes its value from the profile:"]
    for field, _ in fields(config):
        value = config
        for part in field.split("."):
            value = value[part]
        lines.append(_entry(f"  {field}", "open" if value is None else repr(value), 36))
    return lines


def _entry(names: str, text: str, indent: int = _INDENT) -> str:
    lines = textwrap.wrap(" ".join(text.split()), _WIDTH - indent) or [""]
    first = f"{names:<{indent - 1}} " if len(names) < indent else f"{names}\n{' ' * indent}"
    return first + ("\n" + " " * indent).join(lines)
