"""`inspect` says what demos hold, and what training would make of them."""

import sys
from pathlib import Path

import numpy as np
import pytest

from octo_teacher.demos.inspect import inspect_file
from rpd_jax.errors import UserError

sys.path.append(str(Path(__file__).parents[1] / "data"))
from demo_files import HAND, episode, write_lerobot, write_maniskill, write_rlds


def uniform(steps, numbers=7):
    return np.random.default_rng(0).uniform(-1, 1, (steps, numbers)).astype(np.float32)


@pytest.fixture
def words(capsys, monkeypatch):
    """What `inspect` prints, in one line."""
    monkeypatch.setenv("COLUMNS", "400")

    def inspect(path, camera=""):
        inspect_file(path, camera=camera)
        return " ".join(capsys.readouterr().out.split())

    return inspect


def test_what_training_leaves_out_of_a_maniskill_file_is_said(tmp_path, words):
    entries = [{"success": False}, {}, {}]
    path = write_maniskill(tmp_path / "demos.h5", [uniform(3), uniform(60), uniform(0)], entries=entries)
    said = words(path)
    assert "control mode pd_ee_delta_pose" in said and "3, 2 successful" in said and "63 (episode: 3 to 60" in said
    for line in ("which failed (traj_0)", "longer than the task's limit of 50 steps (traj_1)", "have no step (traj_2)"):
        assert line in said
    assert (tmp_path / "demos.png").is_file()
    with pytest.raises(UserError, match=r"choose with --camera among its cameras \(human_camera\)"):
        inspect_file(path, camera="hand")
    with pytest.raises(UserError, match=r"picture cannot be written to .*nowhere/a.png \(No such file or directory\)"):
        inspect_file(path, tmp_path / "nowhere" / "a.png")


def test_the_meaning_of_actions_is_said(tmp_path, words):
    actions = uniform(4)
    actions[:, 6] = [0, 1, 1, 0]
    folder = write_rlds(tmp_path / "toy" / "1.0.0", [[episode(actions), episode(actions, text="")]])
    said = words(folder)
    assert "gripper from 0 to 1; training asks for config.gripper" in said
    assert "leaves out 1 of 2 episodes, which have no instruction" in said
    assert (tmp_path / "toy" / "1.0.0.png").is_file()
    said = words(write_lerobot(tmp_path / "joints", [uniform(3, 8)], names=[f"joint_{i}" for i in range(8)]), HAND)
    assert "named joint_0, joint_1" in said and "no model of them can drive the tasks: they have 8 numbers" in said
    said = words(write_maniskill(tmp_path / "translations.h5", [uniform(3, 4)], mode="pd_ee_delta_pos"))
    assert "control mode pd_ee_delta_pos, converted to pd_ee_delta_pose" in said


def test_instructions_and_names_are_shown_as_they_are(tmp_path, words):
    """Not as rich's markup, which drops or refuses what is in brackets, nor as one of the pictures that it has."""
    told = "push [/cube] to [red]the goal[/red] :apple:"
    folder = write_rlds(tmp_path / "[bold]" / "1.0.0", [[episode(uniform(4), text=told)]])
    said = words(folder)
    assert told in said and str(folder) in said and f"Picture: {tmp_path}/[bold]/1.0.0.png" in said
    words(write_maniskill(tmp_path / "$^$.h5", [uniform(3)]))
    assert (tmp_path / "$^$.png").is_file()  # its title is no formula of matplotlib's
