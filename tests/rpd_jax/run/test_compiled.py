"""What XLA compiled is loaded by the next process, and what a kill left of it is in nobody's way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rpd_jax.run import compiled

SCRIPT = """
from rpd_jax.command.start import start
start()
import collections, json, warnings
warnings.simplefilter("error")
import jax
events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name.rpartition("/")[2]]))
import jax.numpy as jnp
print(float(jax.jit(lambda x: jnp.sum(jnp.sin(x)))(jnp.ones(3))))
print(json.dumps(events))
"""


OURS = (
    compiled.FOLDER,
    "JAX_COMPILATION_CACHE_MAX_SIZE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)


def compile_in_a_process(cache: Path) -> tuple[float, dict[str, int]]:
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    environment |= {"XDG_CACHE_HOME": str(cache)}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and run.stderr == "", run.stderr
    value, events = run.stdout.splitlines()
    return float(value), json.loads(events)


def test_a_second_process_compiles_nothing_also_after_a_kill_in_the_middle_of_writing(tmp_path):
    first, events = compile_in_a_process(tmp_path)
    written = events["cache_misses"]
    assert written > 0 and "cache_hits" not in events
    second, events = compile_in_a_process(tmp_path)
    assert events["cache_hits"] == written and "cache_misses" not in events
    *_, entry = sorted((tmp_path / "rpd_jax" / "compiled").glob("*-cache"))
    entry.write_bytes(entry.read_bytes()[:100])
    entry.with_name(entry.name.removesuffix("-cache") + "-atime").unlink()
    third, events = compile_in_a_process(tmp_path)
    assert events["cache_misses"] == 1 and events["cache_hits"] == written - 1
    _, events = compile_in_a_process(tmp_path)
    assert events["cache_hits"] == written
    assert first == second == third


@pytest.fixture
def unset(monkeypatch):
    for name in OURS:
        monkeypatch.setenv(name, "")  # so that the test's end puts it back
        monkeypatch.delenv(name)
    return monkeypatch


def test_another_folder_or_none_stays_what_the_user_named(unset, tmp_path):
    unset.setenv("XDG_CACHE_HOME", str(tmp_path))
    for named in ("/somewhere/else", ""):
        unset.setenv(compiled.FOLDER, named)
        compiled.keep_compiled()
        assert os.environ[compiled.FOLDER] == named and not list(tmp_path.iterdir())


def test_where_nothing_can_be_written_nothing_is_kept(unset, read_only_folder):
    unset.setenv("XDG_CACHE_HOME", str(read_only_folder))
    compiled.keep_compiled()
    assert compiled.FOLDER not in os.environ
