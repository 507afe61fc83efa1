"""What is wrong with a command line, in one sentence that names the nearest valid word."""

import difflib
from collections.abc import Iterator, Sequence
from os.path import isdir, isfile  # unlike Path's, False where the name is too long or holds NUL
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a tuple, such as '(0.0, 0.1)'"}


def explain(argv: Sequence[str], error: Exception) -> str:
    """The sentence for an error that absl or ml_collections raised while it parsed `argv`."""
    missing = explain_config_files(argv)
    if missing:
        return missing
    for argument in argv[1:]:
        if argument == "--":
            break
        if argument.startswith("-"):
            sentence = _flag_mistake(argument, argv)
            if sentence:
                return sentence
    for name in flags.FLAGS.get_key_flags_for_module(argv[0]):
        if f"--{name.name} must have a value" in str(error):
            return f"--{name.name} is missing: {_lower_first(name.help)}"
    return shortened(" ".join(str(error).split()))


def shortened(text: str, longest: int = 200) -> str:
    """A text of the user's as a sentence repeats it: cut where it is long, on one line."""
    text = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text[: longest + 1])
    return text if len(text) <= longest else f"{text[:longest]}..."


def explain_leftover(argument: str) -> str:
    """The sentence for an argument that is no flag."""
    argument = shortened(argument)
    name = argument.split("=")[0]
    if "=" in argument and _known(name.split(".")[0]):
        return f"Unknown argument {argument!r}: did you mean --{argument}?"
    return f"Unknown argument {argument!r}: flags are written --name=value."


def explain_config_files(argv: Sequence[str]) -> str | None:
    """The sentence for a config file that is not there; None if there are all."""
    for flag in flags.FLAGS.get_key_flags_for_module(argv[0]):
        if config_flags.is_config_flag(flag):
            path = config_path(flag.name, argv)
            if path is not None and not isfile(path.split(":")[0]):
                return f"--{flag.name}={shortened(path)} is not a file: {_nearest_file(path)}"
    return None


def fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Dotted names and types of all settings but the profiles, from which others take their values."""
    for name in config:
        if config.get_type(name) is ConfigDict:
            if name != "profiles":
                yield from fields(config[name], f"{prefix}{name}.")
        else:
            yield prefix + name, config.get_type(name)


def config_path(flag_name: str, argv: Sequence[str]) -> str | None:
    """What a command line gives to a config flag, or its default."""
    path = flags.FLAGS[flag_name].default
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == flag_name:
            path = value if equals else following
    return path


def config_of(flag_name: str, argv: Sequence[str]) -> ConfigDict | None:
    """The settings of a config flag's file without any overrides; None if there is no such file."""
    path = config_path(flag_name, argv)
    if path is None or not isfile(path.split(":")[0]):
        return None
    return flags.FLAGS[flag_name].parser.parse(path)


def _flag_mistake(argument: str, argv: Sequence[str]) -> str | None:
    name, equals, value = argument.lstrip("-").partition("=")
    name = shortened(name)
    root, dot, field = name.partition(".")
    if not _known(root):
        return _unknown_flag(name, argv)
    if root not in flags.FLAGS or not config_flags.is_config_flag(flags.FLAGS[root]):
        return None
    config = config_of(root, argv)
    return _field_mistake(root, field, value if equals else None, config) if dot and config is not None else None


def _unknown_flag(name: str, argv: Sequence[str]) -> str:
    known = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(argv[0])]
    root, dot, field = name.partition(".")
    close = difflib.get_close_matches(root, known, n=1)
    if close:
        return f"there is no flag --{name}: did you mean --{close[0]}{dot}{field}?"
    for flag in known:
        if config_flags.is_config_flag(flags.FLAGS[flag]):
            config = config_of(flag, argv)
            nearest = None if config is None else _nearest(name, [path for path, _ in fields(config)])
            if nearest:
                return f"there is no flag --{name}: did you mean --{flag}.{nearest}?"
    return f"there is no flag --{name}: the flags are {', '.join(f'--{word}' for word in known)}."


def _field_mistake(root: str, field: str, value: str | None, config: ConfigDict) -> str | None:
    kinds = dict(fields(config))
    if field in kinds:
        kind = kinds[field]
        if value is None or _fits(value, kind):
            return None
        return f"--{root}.{field}={shortened(value)} is not {_KINDS[kind]}."
    inside = [path for path in kinds if path.startswith(f"{field}.")]
    if inside:
        return f"--{root}.{field} is a group of settings: set one of {', '.join(inside)}."
    if field.startswith("profiles."):
        return None
    nearest = _nearest(field, list(kinds))
    mend = f"did you mean {nearest!r}?" if nearest else f"--help with --{root}=FILE lists the fields."
    return f"the config has no field {field!r}: {mend}"


def _nearest_file(path: str) -> str:
    folders = [folder for folder in (Path("configs"), Path(path).parent) if isdir(folder)]
    files = {file.stem: file for folder in folders for file in folder.glob("*.py")}
    files.pop("__init__", None)
    close = difflib.get_close_matches(Path(path).stem, files, n=1)
    return f"did you mean {files[close[0]]}?" if close else "give a file of configs/."


def _fits(value: str, kind: type) -> bool:
    if kind is bool:
        return value.lower() in ("true", "false", "t", "f", "1", "0")
    if kind not in (int, float) or value.lower() == "none":
        return True
    try:
        kind(value)
    except ValueError:
        return False
    return True


def _nearest(field: str, known: list[str]) -> str | None:
    last = [path.split(".")[-1] for path in known]
    word = field.split(".")[-1]
    if word in last:
        return min((path for path in known if path.split(".")[-1] == word), key=len)
    close = difflib.get_close_matches(field, known, n=1, cutoff=0.7)
    if close:
        return close[0]
    close = difflib.get_close_matches(word, last, n=1)
    return known[last.index(close[0])] if close else None


def _known(name: str) -> bool:
    return name in flags.FLAGS or (name.startswith("no") and name[2:] in flags.FLAGS)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
