"""`python -m octo_teacher.profile`: a table, JSON, and errors before any work."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from octo_teacher import profile
from rpd_jax.command.flag_kinds import with_underscores
from rpd_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TINY = Path(__file__).parents[1] / "data" / "octo" / "tiny"


def measure(*words):
    values = flags.FlagValues()
    profile.define_flags(values)
    values(with_underscores(["profile", *words], values))
    profile.run(values)


def test_json_of_fast_and_plain_path(capsys, monkeypatch):
    load = profile.OctoModel.load_pretrained
    monkeypatch.setattr(
        profile.OctoModel, "load_pretrained", lambda path: load(path).replace(text_processor=profile.FixedIds(16))
    )
    measure("--checkpoint", str(TINY), "--batch=2", "--samples=1,3", "--plain", "--repeats=1", "--json", "--kernels=1")
    out, err = capsys.readouterr()
    one, plain_one, fast, plain = json.loads(out)["rows"]
    assert (fast["path"], plain["path"]) == ("fast", "plain") and fast["batch"] == 2 and fast["samples"] == 3
    # Samples share one pass of the transformer: only the denoising of two more is added.
    assert fast["gflop"] - one["gflop"] < (plain["gflop"] - plain_one["gflop"]) / 2
    assert fast["stem_ms"] > 0 and fast["head_ms"] > 0 and fast["memory_bytes"] > 0
    assert any("encoderblock_" in kernel["source"] for kernel in fast["kernels"]) and plain["kernels"] is None
    assert err.count("float32") == 4  # a line as soon as each is measured


def test_labelling_of_many_frames_tells_its_memory(capsys, monkeypatch):
    load = profile.OctoModel.load_pretrained
    monkeypatch.setattr(
        profile.OctoModel, "load_pretrained", lambda path: load(path).replace(text_processor=profile.FixedIds(16))
    )
    measure("--checkpoint", str(TINY), "--label=40", "--json")
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["frames"] == 40 and row["chunk"] == 16
    assert row["frames_bytes"] == 40 * 64 * 64 * 3
    assert row["peak_bytes"] >= row["before_bytes"] > row["weights_bytes"] > 0


def test_errors_come_before_work():
    with pytest.raises(UserError, match="There is no checkpoint folder"):
        measure("--checkpoint=/nowhere")
    for wrong in (["--architecture=octo-huge"], ["--batch=0", "--architecture=octo-small-1.5"], [], ["--precision=f8"]):
        with pytest.raises(flags.Error):
            measure(*wrong)


@pytest.mark.parametrize("module", ["octo_teacher.profile", "openvla_bridge.profile", "rpd_jax.envs.profile"])
def test_a_wrong_flag_is_one_sentence(module):
    command = [sys.executable, "-m", module, "--thread=1"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 2
    assert re.fullmatch(r"error: there is no flag --thread: .*\n", run.stderr)
