"""Random settings: each gives a resolved config or one sentence. Run with a number of examples, it counts outcomes.

python tests/rpd_jax/settings_fuzz.py 2000
"""

import contextlib
import io
import json
import math
import sys
from collections import Counter
from pathlib import Path

from absl import flags
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as how
from hypothesis import strategies as st
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import train  # noqa: F401  (defines its flags)
from configs import default
from rpd_jax import settings
from rpd_jax.command.line import _parse_flags, read_config
from rpd_jax.command.wrong_flags import fields
from rpd_jax.errors import UserError

PATHS = [path for path, _ in fields(default.get_config())]
GROUPS = sorted({path.rpartition(".")[0] for path in PATHS if "." in path})
PROFILES = ["profiles.cpu.env.num_envs", "profiles.cpu.ppo.clip", "profiles.paper.env.num_envs", "profiles.cpu.env"]
WORDS = ("None", "null", "true", "False", "nan", "inf", "-inf", "-0.0", "1e400", "1e-400", "0x10", "1_000", "0", "-1")
WORDS += ("()", "(", "[1,2", "1,2,3", "(nan,0,0)", "--", "=", "@", "__import__", "{'a':1}", "ä")
WORDS += ("cpu", "auto", "rgb", "octo", "openvla", "ppd", "PushCube-v1")
WORDS += ("", "\0", "\ud800", "(0.1, 0.2, 0.3)", "9" * 400, "9" * 5000, "a" * 5000)

numbers = st.one_of(
    st.integers(),
    st.integers(-3, 200),
    st.floats(),
    st.sampled_from([0, -0.0, 1, math.nan, math.inf, -math.inf, 1e-320, 10**30, -(10**400), True, False]),
    st.integers(4500, 5000).map(lambda digits: 10**digits),
)
scalars = st.one_of(numbers, st.none(), st.sampled_from(WORDS), st.text(max_size=20), st.binary(max_size=5))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text("abc", max_size=3), inner, max_size=2),
        st.frozensets(st.integers(), max_size=2),
    ),
    max_leaves=4,
)


def changed(changes: dict[str, object]) -> ConfigDict:
    """The default settings with fields changed as no ConfigDict would let them."""
    tree = default.get_config().to_dict()
    for path, value in changes.items():
        *groups, name = path.split(".")
        part = tree
        for group in groups:
            part = part.get(group) if isinstance(part, dict) else None
        if isinstance(part, dict):
            part[name] = value
    return ConfigDict(tree)


def resolve(config: ConfigDict) -> str:
    """ "resolved", or the first words of the sentence."""
    try:
        resolved = settings.resolve(config)
    except UserError as error:
        return _kind(str(error))
    json.loads(resolved.to_json())  # as a run directory holds it
    return "resolved"


def parse(words: list[str]) -> str:
    """What becomes of a command line of train.py: "resolved", or the kind of its sentence."""
    sys.argv = argv = ["train", "--config=configs/push_cube_sparse.py", *words]  # ml_collections looks there
    told = io.StringIO()
    flags.FLAGS.unparse_flags()
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)  # those of the command line before
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            _parse_flags(argv, None)
    except SystemExit as end:
        if end.code == 0:
            return "help"
        (sentence,) = told.getvalue().splitlines() if "\r" not in told.getvalue() else [told.getvalue()]
        assert end.code == 2 and sentence.startswith("error: "), sentence
        return _kind(sentence)
    try:
        config = read_config(flags.FLAGS["config"])
    except UserError as error:
        return _kind(str(error))
    return resolve(config)


def _kind(sentence: str) -> str:
    assert sentence and "Traceback" not in sentence and len(sentence) < 3000, sentence
    for words in ("is not one of", "must", "is not", "no field", "group of settings", "lacks", "is missing", "no flag"):
        if words in sentence:
            return words
    return "other"


def run(examples: int, random_seed: int = 0) -> dict[str, Counter]:
    """Tries so many configs and so many command lines; returns how often each outcome came."""
    found = {"config": Counter(), "command line": Counter()}
    many = how(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),  # hypothesis cannot shrink numbers that Python does not write
    )
    odd = st.sampled_from(GROUPS + PROFILES + ["profiles", "env.new", "new"])
    paths = _mostly(st.sampled_from(PATHS), odd)
    spelled = st.one_of(st.sampled_from(WORDS), numbers.map(_written), st.text(max_size=12))
    names = _mostly(paths, st.one_of(paths.map(lambda path: path[:-1] or "x"), st.text(max_size=8)))
    begins = _mostly(st.just("--config."), st.sampled_from(["-config.", "--", "config.", "--config="]))
    override = st.tuples(begins, names, spelled)

    @seed(random_seed)
    @many
    @given(st.dictionaries(paths, values, min_size=1, max_size=3))
    def configs(changes):
        found["config"][resolve(changed(changes))] += 1

    @seed(random_seed)
    @many
    @given(st.lists(override.map(lambda parts: f"{parts[0]}{parts[1]}={parts[2]}"), min_size=1, max_size=3))
    def command_lines(words):
        found["command line"][parse(words)] += 1

    configs()
    command_lines()
    return found


def _mostly(usual: st.SearchStrategy, odd: st.SearchStrategy) -> st.SearchStrategy:
    """One in eight is odd."""
    return st.integers(0, 7).flatmap(lambda choice: usual if choice else odd)


def _written(value: object) -> str:
    try:
        return str(value)
    except ValueError:
        return "1" * 5001


if __name__ == "__main__":
    for name, outcomes in run(int(sys.argv[1]) if len(sys.argv) > 1 else 100).items():
        print(name, dict(outcomes.most_common()))
