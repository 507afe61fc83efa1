"""What a user gets to see when something is wrong: exit status 2 and one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def train(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, **environment},
    )


CONFIG = "--config=configs/push_cube_sparse.py"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([CONFIG, "--config.env.nm_envs=3"], "the config has no field 'nm_envs': did you mean 'num_envs'?"),
        ([CONFIG, "--config.env.num_envs=many"], "invalid literal for int() with base 10: 'many'"),
        ([CONFIG, "--wrkdir=x"], "Unknown command line flag 'wrkdir'. Did you mean: workdir ?"),
        (["--config=configs/push_cub_sparse.py"], "configs/push_cub_sparse.py"),
        ([], "--config"),
        ([CONFIG, "--config.algorithm=rpd_ms"], "did you mean 'rpd_mse'?"),
        ([CONFIG, "--config.teacher.checkpoint=/no/such"], "teacher.checkpoint='/no/such' is not a folder"),
    ],
)
def test_one_sentence(arguments, sentence, tmp_path):
    outcome = train(*arguments, f"--workdir={tmp_path / 'run'}")
    assert outcome.returncode == 2
    errors = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and sentence in errors[0], outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_hub_out_of_reach(tmp_path):
    outcome = train(
        CONFIG,
        "--config.teacher.checkpoint=hf://Juelg/octo-base-1.5-finetuned-maniskill",
        f"--workdir={tmp_path / 'run'}",
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path / "cache"),
    )
    assert outcome.returncode == 2
    assert "Juelg/octo-base-1.5-finetuned-maniskill" in outcome.stderr.splitlines()[-1]
    assert "Traceback" not in outcome.stderr


def test_workdir_of_another_config(tmp_path):
    (tmp_path / "config.json").write_text('{"algorithm": "ppo"}')
    outcome = train(CONFIG, f"--workdir={tmp_path}")
    assert outcome.returncode == 2
    assert "is a run of another config" in outcome.stderr.splitlines()[-1]
