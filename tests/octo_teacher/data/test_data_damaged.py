"""Damaged demos of every format end in demos or in one sentence: no other exception, no hang, no GB of memory.

tests/benchmarks/damaged_inputs.py does the same thousands of times.
"""

import resource
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2]))
from damaged_demos import KINDS, read_damaged, write_whole

# Videos and ArrayRecords are read by processes of their own, which takes a while to start.
EXAMPLES = {"array_record": 5, "lerobot_v2_video": 5, "lerobot_v3_video": 5}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_read_or_refused(tmp_path, kind):
    whole = tmp_path / "whole"
    whole.mkdir()
    write_whole(kind, whole)
    ended = set()

    @settings(max_examples=EXAMPLES.get(kind, 150), deadline=None, derandomize=True, database=None)
    @given(seed=st.integers(0, 2**32 - 1), stored=st.booleans())
    def damage_once(seed, stored):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            cache = Path(folder) / "cache" if stored else None
            ended.add(read_damaged(kind, whole, Path(folder) / "damaged", seed, cache)[:7])
            assert cache is None or not [path for path in cache.glob(".*")]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    damage_once()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20
    assert kind in EXAMPLES or ended == {"read", "refused"}
