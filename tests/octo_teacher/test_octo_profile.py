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


def test_errors_come_before_work(capsys):
    assert profile.main(["--checkpoint=/nowhere"]) == 2
    assert "error: There is no checkpoint folder" in capsys.readouterr().err
    for wrong in (["--architecture=octo-huge"], ["--batch=0", "--architecture=octo-small-1.5"], []):
        with pytest.raises(SystemExit) as caught:
            profile.main(wrong)
        assert caught.value.code == 2
