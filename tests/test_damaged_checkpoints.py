"""Damaged checkpoints and policies load and give actions, or end in one sentence: no other exception, no GB of memory.

tests/benchmarks/damaged_inputs.py does the same thousands of times.
"""

import resource
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent))
from damaged_checkpoints import KINDS, read_damaged, write_whole


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_read_or_refused(tmp_path, kind):
    whole = tmp_path / "whole"
    whole.mkdir()
    write_whole(kind, whole)
    ended = set()

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def damage_once(seed):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            ended.add(read_damaged(kind, whole, Path(folder) / "damaged", seed, act=False)[:7])

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    damage_once()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20
    assert ended == {"read", "refused"}
