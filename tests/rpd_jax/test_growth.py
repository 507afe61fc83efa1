"""How cost grows: the powers are right, and the command measures real iterations of each value."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from configs import push_cube_sparse
from rpd_jax import settings
from rpd_jax.command.checks import get
from rpd_jax.errors import UserError
from rpd_jax.growth import ROWS, changes, measure, orders

ROOT = Path(__file__).resolve().parents[2]


def test_powers_of_growth():
    rows = [
        {"value": 1, "s": 3.0},
        {"value": 4, "s": 12.0},
        {"value": 8, "s": 48.0},
        {"value": 16},
        {"value": 32, "s": 1.0},
    ]
    linear, square = orders(rows, "s")[1:3]  # 4 times for 4 times, 4 times for twice
    assert (linear, square) == (pytest.approx(1.0), pytest.approx(2.0))
    assert all(map(math.isnan, (orders(rows, "s")[0], *orders(rows, "s")[3:])))
    assert math.isnan(orders([{"value": 0, "s": 1.0}, {"value": 2, "s": 2.0}], "s")[1])


def run(*arguments):
    command = [sys.executable, "-m", "rpd_jax.growth", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


CONFIG = """\
from configs import push_cube_sparse

def get_config():
    config = push_cube_sparse.get_config()
    config.refine, config.env.mesh_detail, config.teacher.checkpoint = "pixels", 0.07, {teacher!r}
    config.ppo.num_minibatches, config.ppo.update_epochs, config.distill.replay_batch = 2, 1, 4
    return config
"""


@pytest.mark.slow
def test_a_quick_row(tmp_path, micro_octo):
    config = tmp_path / "small.py"
    config.write_text(CONFIG.format(teacher=str(micro_octo)))
    row = ("--rows=env.num_envs", "--iterations=1", "--rollout_steps=8")
    outcome = run("-o", str(tmp_path), f"--config={config}", "--quick", *row)
    assert outcome.returncode == 0, outcome.stderr
    rows = json.loads((tmp_path / "growth.json").read_text())["env.num_envs"]
    assert [(row["value"], row["frames"]) for row in rows] == [(2, 16), (4, 32)]
    for row in rows:
        assert row["seconds"] == pytest.approx(sum(row["stages"].values())) and row["seconds"] > 0
        assert 500 < row["peak_mib"] < 5000  # JAX and the simulator's worker
    assert (tmp_path / "growth.png").stat().st_size > 0
    assert (tmp_path / "growth.md").read_text().count("\n|") == 3  # under a head, two values
    assert "peak MiB" in outcome.stdout


@pytest.mark.parametrize("profile", ["cpu", "paper"])
@pytest.mark.parametrize("quick", [False, True])
def test_every_value_is_one_that_a_profile_can_have(profile, quick):
    """The paper's replays nothing by itself, and divides its frames into many minibatches."""
    for name, values in ROWS.items():
        for value in values[quick]:
            config = push_cube_sparse.get_config()
            config.refine, config.profile, config.env.backend = "pixels", profile, "cpu"
            config.update_from_flattened_dict(changes(name, value, quick))
            assert get(settings.resolve(config), name) == value


@pytest.mark.parametrize(
    ("end", "found"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", None),
        ("sys.exit('error: Memory ran out while acting and labelling (RESOURCE_EXHAUSTED): close')", None),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended with status -11: no output"),
        ("sys.exit('error: /dev/shm has no shared memory: mount it.')", "^/dev/shm has no shared memory: mount it.$"),
        ("time.sleep(60)", r"^Measuring --config.env.num_envs=2 took more than 5 s: raise --seconds, or lower"),
    ],
)
def test_no_room_is_told_from_other_ends(tmp_path, end, found):
    config = tmp_path / "ends.py"
    config.write_text(f"import os, signal, sys, time\n{end}\n")
    limit = 5.0 if "sleep" in end else 60.0
    if found is None:
        assert measure(str(config), {"env.num_envs": 2}, 1, limit) is None
    else:
        with pytest.raises(UserError, match=found):
            measure(str(config), {"env.num_envs": 2}, 1, limit)


def test_values_are_those_of_one_setting(tmp_path):
    outcome = run("-o", str(tmp_path), "--rows=env.num_envs,env.workers", "--values=2,4")
    assert outcome.returncode == 2 and "--values are those of one setting" in outcome.stderr


def test_what_does_not_grow_is_refused(tmp_path):
    outcome = run("-o", str(tmp_path), "--rows=seed")
    assert outcome.returncode == 2 and "--rows=seed: a setting that grows is one of env.num_envs" in outcome.stderr
