"""A damaged run directory ends report, evaluate and export in their result or in one sentence.

tests/benchmarks/damaged_inputs.py does the same thousands of times.
"""

import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2]))
from damaged_runs import read_damaged, write_whole


@pytest.mark.parametrize(("kind", "count"), [("report", 150), ("student", 30)])
def test_damage_is_read_or_refused(tmp_path, kind, count):
    whole = tmp_path / "whole"
    whole.mkdir()
    write_whole(kind, whole)
    ended = set()

    @settings(max_examples=count, deadline=None, derandomize=True, database=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def damage_once(seed):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            ended.add(read_damaged(kind, whole, Path(folder) / "damaged", seed)[:7])

    damage_once()
    assert ended == {"read", "refused"}
