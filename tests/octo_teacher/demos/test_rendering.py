"""Demos are drawn again from their states: the same frames through the same camera, others from elsewhere."""

import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest
from command_line import demos_command

from octo_teacher.data.maniskill_files import CAMERA, number_of
from octo_teacher.demos.episode_files import DemoFile, Episode
from octo_teacher.demos.render import Rendering, _find_episodes, render
from rpd_jax.errors import UserError

RGB = f"obs/sensor_data/{CAMERA}/rgb"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two episodes of PickCube, whose goal is seen only by the human camera."""
    path = tmp_path_factory.mktemp("demos") / "pick.h5"
    command = ["record", "--task", "PickCube-v1", "--image-size", "32", "--mesh-detail", "0.07", "--workers", "1"]
    demos_command(*command, "--episodes", "2", "-o", str(path))
    return path


@pytest.fixture
def bare(recorded, tmp_path):
    """The same demos as ManiSkill's own look: no frames, and only its keys."""
    path = tmp_path / "bare.h5"
    with h5py.File(recorded) as source, h5py.File(path, "w") as file:
        for name in source:
            for key in ("actions", "env_states", "success", "terminated", "truncated"):
                source.copy(f"{name}/{key}", file.require_group(name))
            file[name].create_group("obs")
    shutil.copyfile(recorded.with_suffix(".json"), path.with_suffix(".json"))
    return path


@pytest.mark.slow
def test_the_frames_are_those_of_the_recording_and_move_with_the_camera(recorded, bare, tmp_path):
    command = ["render", str(bare), "--image-size", "32", "--mesh-detail", "0.07", "--workers", "1"]
    same, moved = tmp_path / "same.h5", tmp_path / "moved.h5"
    demos_command(*command, "-o", str(same))
    demos_command(*command, "-o", str(moved), "--episodes", "1", "--eye-offset", "0.2", "0", "0")
    with h5py.File(recorded) as expected, h5py.File(same) as found, h5py.File(moved) as other:
        assert sorted(found) == ["traj_0", "traj_1"] and sorted(other) == ["traj_0"]
        for name in found:
            frames = expected[name][RGB][:].astype(int)
            # states are rounded to float32 poses, which may move an edge by a pixel's fraction
            assert np.abs(found[name][RGB][:] - frames).mean() < 0.2
            np.testing.assert_array_equal(found[name]["actions"], expected[name]["actions"])
            np.testing.assert_array_equal(found[name]["success"], expected[name]["success"])
        frames = expected["traj_0"][RGB][:].astype(int)
        assert np.abs(other["traj_0"][RGB][:] - frames).mean() > 3
    header = json.loads(moved.with_suffix(".json").read_text())
    assert header[CAMERA]["eye_offset"] == [0.2, 0.0, 0.0] and header["source_type"] == "rendered"
    assert header["episodes"][0]["episode_seed"] == 0
    # a state that is not finite or missing is found out before anything is drawn wrongly
    with h5py.File(bare, "a") as file:
        state = file["traj_0/env_states/actors/cube"]
        whole, state[2, 1] = state[2, 1], np.nan
    with pytest.raises(UserError, match=r"bare.h5: traj_0/env_states/actors/cube is not finite at step 2, number 1"):
        render(Rendering(bare, tmp_path / "out.h5", image_size=32, mesh_detail=0.07, workers=1))
    with h5py.File(bare, "a") as file:
        file["traj_0/env_states/actors/cube"][2, 1] = whole
    with h5py.File(bare, "a") as file:
        del file["traj_0/env_states/actors/goal_site"]
    with pytest.raises(UserError, match=r"bare.h5 lacks traj_0/env_states/actors/goal_site"):
        render(Rendering(bare, tmp_path / "out.h5", image_size=32, mesh_detail=0.07, workers=1))


@pytest.fixture
def stateless(tmp_path):
    """A file that is refused before any environment is made."""
    path = tmp_path / "demos.h5"
    with h5py.File(path, "w") as file:
        file["traj_0/actions"] = np.zeros((3, 7), np.float32)

    def write(**entry):
        header = {"env_info": {"env_id": "PushCube-v1"}, "episodes": [{"episode_id": 0, **entry}]}
        path.with_suffix(".json").write_text(json.dumps(header))
        return path

    return write


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"control_mode": "pd_joint_pos"}, "traj_0 has control_mode 'pd_joint_pos'"),
        ({"success": False}, "no successful episode within 50 steps"),
        ({"episode_id": 4}, "no entry for traj_0"),
        ({"episode_seed": "x"}, r"demos.json: episode 0: 'episode_seed' is 'x', not a whole number"),
    ],
)
def test_unusable_demos_are_named(stateless, tmp_path, entry, message):
    with pytest.raises(UserError, match=message):
        render(Rendering(stateless(**entry), tmp_path / "out.h5"))
    assert not (tmp_path / "out.h5").exists()


def test_what_is_not_drawn_is_said(tmp_path):
    path = tmp_path / "demos.h5"
    with h5py.File(path, "w") as file:
        for index, steps in enumerate((3, 3, 60, 0)):
            file[f"traj_{index}/actions"] = np.zeros((steps, 7), np.float32)
    episodes = [{"episode_id": index, "success": index != 1} for index in range(4)]
    path.with_suffix(".json").write_text(json.dumps({"env_info": {"env_id": "PickCube-v1"}, "episodes": episodes}))
    said = []
    _, names, _ = _find_episodes(Rendering(path, tmp_path / "out.h5"), said.append)
    assert names == ["traj_0"]
    assert (
        "2 of 4 episodes are not drawn, 1 failed and 1 longer than 50 steps (traj_1, traj_2): --keep-failures"
        in said[0]
    )
    assert "1 of 4 episodes have no step, so are not drawn (traj_3)" in said[1]
    _, names, _ = _find_episodes(Rendering(path, tmp_path / "out.h5", keep_failures=True), said.append)
    assert names == ["traj_0", "traj_1", "traj_2"]


def write_input(path, count, seeds=0):
    """Episodes without states; the second failed."""
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        for index in range(count):
            file[f"traj_{index}/actions"] = np.random.default_rng(index + seeds).uniform(-1, 1, (3, 7)).astype("f4")
    entries = [{"episode_id": i, "episode_seed": i + seeds, "success": i != 1} for i in range(count)]
    path.with_suffix(".json").write_text(json.dumps({"env_info": {"env_id": "PickCube-v1"}, "episodes": entries}))
    return path


@pytest.mark.parametrize("killed", [False, True])
def test_an_output_is_extended_only_with_the_input_that_it_was_drawn_from(tmp_path, killed):
    source, output = write_input(tmp_path / "demos.h5", 3), tmp_path / "out.h5"
    options = Rendering(source, output)
    env_info, names, _ = _find_episodes(options, print)
    camera = {"image_size": 128, "mesh_detail": 1.0}
    drawn = DemoFile.open_for_append(output, env_info, camera, {"source_type": "rendered", "source_desc": ""})
    frames = np.zeros((4, 128, 128, 3), np.uint8)
    with h5py.File(source) as file:
        for name in names:
            actions = file[name]["actions"][:]
            drawn.add(Episode(number_of(name), True, 0.0, 0.0, frames, {"actors": {}}, {"actions": actions}))
    if not killed:
        drawn.merge()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    others, fewer = (write_input(tmp_path / name / "demos.h5", *n) for name, n in {"b": (3, 9), "c": (1,)}.items())
    for other, at, name in (
        (dataclasses.replace(options, keep_failures=True), 1, "traj_1"),
        (Rendering(others, output), 0, "traj_0"),
        (Rendering(fewer, output), 1, "nothing"),
    ):
        sentence = f"traj_{at} was not drawn from .* there, {name} of .*: use the same input and --keep-failures, or"
        with pytest.raises(UserError, match=sentence):
            render(other)
    shutil.rmtree(tmp_path / "b"), shutil.rmtree(tmp_path / "c")
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert len(render(options)) == 2  # nothing is left to be drawn
