"""`python -m octo_teacher.profile`: a table, JSON, and errors before any work."""

import json
from pathlib import Path

import pytest

from octo_teacher import profile

TINY = Path(__file__).parents[1] / "data" / "octo" / "tiny"


def test_json_of_fast_and_plain_path(capsys, monkeypatch):
    load = profile.OctoModel.load_pretrained
    monkeypatch.setattr(
        profile.OctoModel, "load_pretrained", lambda path: load(path).replace(text_processor=profile.FixedIds(16))
    )
    assert (
        profile.main(["--checkpoint", str(TINY), "--batch=2", "--samples=3", "--plain", "--repeats=1", "--json"]) == 0
    )
    out, err = capsys.readouterr()
    fast, plain = json.loads(out)["rows"]
    assert (fast["path"], plain["path"]) == ("fast", "plain") and fast["batch"] == 2 and fast["samples"] == 3
    assert fast["gflop"] < plain["gflop"] / 2  # three samples share one pass
    assert fast["stem_ms"] > 0 and fast["head_ms"] > 0 and fast["memory_bytes"] > 0
    assert err.count("float32") == 2  # a line as soon as each is measured


def test_labelling_of_many_frames_tells_its_memory(capsys, monkeypatch):
    load = profile.OctoModel.load_pretrained
    monkeypatch.setattr(
        profile.OctoModel, "load_pretrained", lambda path: load(path).replace(text_processor=profile.FixedIds(16))
    )
    assert profile.main(["--checkpoint", str(TINY), "--label=40", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["frames"] == 40 and row["chunk"] == 16
    assert row["frames_bytes"] == 40 * 64 * 64 * 3
    assert row["peak_bytes"] >= row["before_bytes"] > row["weights_bytes"] > 0


def test_errors_come_before_work(capsys):
    assert profile.main(["--checkpoint=/nowhere"]) == 2
    assert "error: There is no checkpoint folder" in capsys.readouterr().err
    for wrong in (["--architecture=octo-huge"], ["--batch=0", "--architecture=octo-small-1.5"], []):
        with pytest.raises(SystemExit) as caught:
            profile.main(wrong)
        assert caught.value.code == 2
