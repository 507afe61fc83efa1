"""What a user gets to see when something is wrong: exit status 2 and one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def train(*arguments, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, ROOT / "train.py", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, **environment},
    )


CONFIG = "--config=configs/push_cube_sparse.py"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([CONFIG, "--config.env.nm_envs=3"], "the config has no field 'env.nm_envs': did you mean 'env.num_envs'?"),
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


def test_a_run_without_a_workdir_is_named_by_what_it_does_on_this_machine(tmp_path):
    """refine=auto is refine=state where there is no GPU: the next command is to find it by the name in the README."""
    config = f"--config={ROOT / 'configs' / 'push_cube_sparse.py'}"
    refused = train(config, "--config.teacher.checkpoint=/no/such", cwd=tmp_path, JAX_PLATFORMS="cpu")
    assert refused.returncode == 2
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["push_cube_sparse-rpd_mse-refine_state-seed0"]


EXPLAIN = """
import json, sys
from absl import flags
import train
from rpd_jax.command.line import _parse_flags
for words in json.loads(sys.argv[1]):
    sys.argv = ["train", *words]
    try:
        flags.FLAGS.unparse_flags()
        _parse_flags(sys.argv, None)
        print("fine", file=sys.stderr)
    except SystemExit:
        pass
"""


def test_flag_mistakes_are_answered_with_the_nearest_valid_name():
    """In one process, since each start costs seconds."""
    cases = {
        ("--config=configs/push_cub_sparse.py",): "is not a file: did you mean configs/push_cube_sparse.py?",
        ("--config=push_cube_sparse",): "is not a file: did you mean configs/push_cube_sparse.py?",
        (): "--config is missing",
        (CONFIG, "--config.ev.num_envs=3"): "the config has no field 'ev.num_envs': did you mean 'env.num_envs'?",
        (CONFIG, "--config.num_envs=3"): "the config has no field 'num_envs': did you mean 'env.num_envs'?",
        (CONFIG, "--config.zzz=3"): "the config has no field 'zzz': --help",
        (CONFIG, "--config.env.num_envs=many"): "--config.env.num_envs=many is not a whole number.",
        (CONFIG, "--config.env.camera.fov=a"): "--config.env.camera.fov=a is not a number.",
        (CONFIG, "--config.env.restart_workers=maybe"): "--config.env.restart_workers=maybe is not true or false.",
        (CONFIG, "--config.checkpoint=3"): "set one of checkpoint.every, checkpoint.keep, checkpoint.keep_best.",
        (CONFIG, "--wrkdir=x"): "there is no flag --wrkdir: did you mean --workdir?",
        (CONFIG, "--cnfig.seed=1"): "there is no flag --cnfig.seed: did you mean --config.seed?",
        (CONFIG, "--num_envs=3"): "there is no flag --num_envs: did you mean --config.env.num_envs?",
        (CONFIG, "--xyzzy"): "there is no flag --xyzzy: the flags are --config, --workdir, --first_stages.",
        (CONFIG, "config.seed=1"): "'config.seed=1': did you mean --config.seed=1?",
        (CONFIG, "--config.seed=1", "--config.env.camera.eye_offset=(0.1, 0.0, 0.0)"): "fine",
    }
    outcome = subprocess.run(
        [sys.executable, "-c", EXPLAIN, json.dumps(list(cases))], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert outcome.returncode == 0, outcome.stderr
    found = outcome.stderr.splitlines()
    for (words, expected), sentence in zip(cases.items(), found, strict=True):
        assert expected in sentence, words


def test_help_is_short_and_lists_the_config_s_settings():
    outcome = train("--help")
    assert outcome.returncode == 0 and len(outcome.stdout.splitlines()) < 12
    assert "--workdir" in outcome.stdout and "--config.FIELD=VALUE" in outcome.stdout
    lines = train(CONFIG, "--help").stdout.splitlines()
    assert any(line.split() == ["env.num_envs", "open"] for line in lines)
    assert any(line.split() == ["ppo.gae_lambda", "0.9"] for line in lines)


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
