"""The table of a teacher's successes says what happened in the episodes, in every form it is written in."""

import json
import subprocess
import sys

import imageio.v2 as imageio
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from octo_teacher.teacher import OctoTeacher
from rpd_jax.acting.episodes import teacher_act
from rpd_jax.acting.measure import measure_policy
from rpd_jax.errors import UserError
from rpd_jax.evaluate.policies import teacher_policy
from rpd_jax.evaluate.table import console_table, write_tables
from rpd_jax.tasks import find_task


class StillTeacher:
    """Never moves, so that an episode's reward stays what its first state gives."""

    def __init__(self):
        self.instructions = set()

    def act(self, rgb, instruction, key, num_samples=1):
        self.instructions.add(instruction)
        return jnp.zeros((num_samples, len(rgb), 7))


def test_a_still_teacher_fails_on_a_held_out_task_and_the_files_say_so(tmp_path):
    teacher, ended = StillTeacher(), []
    task = find_task("PokeCube-v1")
    row = measure_policy(
        teacher_act(teacher, task.instruction),
        task,
        num_episodes=2,
        seed=0,
        env_config=ConfigDict({"num_envs": 8, "workers": 1, "image_size": 16, "mesh_detail": 0.07}),
        video=tmp_path / "PokeCube-v1.mp4",
        on_step=ended.append,
    )
    assert teacher.instructions == {"push the cube by using the blue tool"}
    assert (row["success"], row["episodes"], row["length"], row["held_out"]) == (0.0, 2.0, 50.0, True)
    # Wilson: with no success in n episodes the upper bound is z² / (n + z²), z² = 3.8415
    assert (row["success_low"], row["success_high"]) == pytest.approx((0.0, 3.8415 / 5.8415), abs=1e-4)
    assert 0.0 < row["reward_low"] <= row["reward"] <= row["reward_high"] < 1.0
    assert ended == [0] * 49 + [2]
    frames = imageio.mimread(tmp_path / "PokeCube-v1.mp4")
    assert len(frames) == 51 and frames[0].shape == (16, 32, 3)

    write_tables(tmp_path, "still", {"episodes": 2}, [row])
    assert json.loads((tmp_path / "results.json").read_text())["tasks"] == [row]
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[-1].startswith("| PokeCube-v1 | held out | 0.0% | 0.0% to 65.8% |")
    assert lines[-1].count("|") == lines[-2].count("|") == lines[-3].count("|")
    assert console_table("still", [row]).row_count == 1


def run_evaluate(*flags):
    command = [sys.executable, "-m", "rpd_jax.evaluate", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_command_measures_a_teacher_through_another_camera(tmp_path):
    flags = ["--episodes=1", "--num_envs=1", "--tasks=PushCube-v1", "--image_size=64", "--mesh_detail=0.07"]
    view = "--config.env.camera.eye_offset=(0.0, 0.3, 0.0)"
    for name, more in (("usual", []), ("moved", [view])):
        done = run_evaluate("--teacher=octo-nano", f"--output={tmp_path / name}", *flags, *more)
        assert done.returncode == 0, done.stderr
        (row,) = json.loads((tmp_path / name / "results.json").read_text())["tasks"]
        assert (row["task"], row["episodes"]) == ("PushCube-v1", 1.0)
    usual, moved = (imageio.mimread(tmp_path / name / "PushCube-v1.mp4")[0] for name in ("usual", "moved"))
    assert abs(usual.astype(float) - moved).mean() > 10.0


@pytest.mark.slow
def test_the_command_compares_labels_of_several_samples(tmp_path, micro_octo):
    flags = ["--episodes=1", "--num_envs=1", "--tasks=PushCube-v1", "--image_size=32", "--mesh_detail=0.07"]
    done = run_evaluate(f"--teacher={micro_octo}", "--averaged=1,3", f"--output={tmp_path}", *flags)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["tasks"]
    assert [row["actions"] for row in rows] == ["one sample", "mean of 3", "nearest of 3"]
    assert len({row["reward"] for row in rows}) == 3  # they act differently
    table = (tmp_path / "table.md").read_text().splitlines()
    assert table[-1].startswith("| PushCube-v1 | nearest of 3 | yes |")
    assert table[-1].count("|") == table[-4].count("|")
    assert (tmp_path / "PushCube-v1-nearest-of-3.mp4").exists()


def test_parts_of_chunks_are_ways_to_act_that_are_compared(micro_octo):
    policy = teacher_policy(default.get_config(), str(micro_octo), execute=[1, 3])
    ways = {name: way(find_task("PushCube-v1")) for name, way in policy.ways_to_act.items()}
    assert list(ways) == ["1 of each chunk", "3 of each chunk"]
    assert policy.actions == "Sampled actions, the first 1 or 3 of each chunk executed."
    frame, state = np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 5), np.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    one, three = ([way(frame, state, key) for key in keys] for way in ways.values())
    chunk = OctoTeacher.load(micro_octo).act(frame, find_task("PushCube-v1").instruction, keys[0], steps=3)[0, 0]
    np.testing.assert_allclose(np.concatenate(three), chunk[:2], atol=1e-6)
    np.testing.assert_allclose(one[0], three[0], atol=1e-6)
    assert np.abs(one[1] - three[1]).max() > 1e-3  # it has looked again
    with pytest.raises(UserError, match=r"--execute=9 asks for more actions"):
        teacher_policy(default.get_config(), str(micro_octo), execute=[1, 9])


def test_an_unknown_teacher_is_answered_with_those_that_are_known():
    """And said of --teacher: nobody has set teacher.checkpoint."""
    settings = default.get_config()
    with pytest.raises(UserError, match=r"^--teacher='octo-nan' is not a folder: .*\(octo-nano, octo-nano-push-cube\)"):
        teacher_policy(settings, "octo-nan")
    with pytest.raises(UserError, match=r"^--teacher='openvla' is a kind of teacher .*octo, .*--config\.teacher\.name"):
        teacher_policy(settings, "openvla")
    settings.teacher.checkpoint = "octo-nan"
    with pytest.raises(UserError, match=r"^teacher\.checkpoint='octo-nan' is not a folder"):
        teacher_policy(settings)


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--config.ppo.gamma=0.5", "--config.ppo.gamma has no effect on what is evaluated."),
        ("--config.env.task=PullCube-v1", "use --tasks"),
        ("--config.teacher.dataset=bridge", "'bridge'"),
        ("--config.teacher.nam=openvla", "did you mean 'teacher.name'?"),
        ("--averaged=1,many", "--averaged=many is no number of samples"),
        ("--averaged=0", "--averaged=0 is no number of samples"),
        ("--checkpoint=3", "--checkpoint=3 is one of a run: name that with --run, or leave it out."),
        ("--execute=1,", "--execute= is no number of actions"),
    ],
)
def test_the_command_refuses_settings_that_it_would_ignore(flag, sentence):
    done = run_evaluate("--teacher=octo-nano", flag)
    assert done.returncode == 2 and sentence in done.stderr
