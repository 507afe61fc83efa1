"""ManiSkill's own files: what is read, what is left out, and what is said of malformed ones."""

import json

import h5py
import numpy as np
import pytest

from octo_teacher.data.maniskill import read_maniskill
from rpd_jax.errors import UserError


def read_all(path, **options):
    return list(read_maniskill(path, **options))


def write_file(path, edit=lambda group: None, header=None):
    with h5py.File(path, "w") as file:
        group = file.create_group("traj_0")
        group["actions"] = np.zeros((3, 7), np.float32)
        group["obs/sensor_data/human_camera/rgb"] = np.zeros((4, 8, 8, 3), np.uint8)
        edit(group)
    if header is None:
        header = {"env_info": {"env_id": "PushCube-v1"}, "episodes": [{"episode_id": 0, "success": True}]}
    path.with_suffix(".json").write_text(json.dumps(header))


def replace(key, value):
    def edit(group):
        if key in group:
            del group[key]
        group[key] = value

    return edit


RGB = "obs/sensor_data/human_camera/rgb"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda group: group.__delitem__("actions"), "lacks traj_0/actions"),
        (lambda group: group.__delitem__("obs"), f"lacks traj_0/{RGB}"),
        (replace("actions", np.zeros((3, 8), np.float32)), r"traj_0/actions has shape \(3, 8\)"),
        (replace(RGB, np.zeros((4, 8, 8, 3), np.float32)), f"traj_0/{RGB} is float32"),
        (replace(RGB, np.zeros((9, 8, 8, 3), np.uint8)), f"traj_0/{RGB} has 9 frames for 3 actions"),
    ],
)
def test_a_malformed_file_is_named_with_the_key(tmp_path, edit, message):
    path = tmp_path / "demos.h5"
    write_file(path)
    assert read_all(path)[0].images["primary"].shape == (3, 8, 8, 3)
    write_file(path, edit)
    with pytest.raises(UserError, match=message) as error:
        read_all(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_no_h5_or_has_no_json_is_named(tmp_path):
    path = tmp_path / "demos.h5"
    with pytest.raises(UserError, match=r"demos.json is missing"):
        read_all(path)
    write_file(path, header={"episodes": []})
    with pytest.raises(UserError, match=r"demos.json lacks the key 'env_info'"):
        read_all(path)
    write_file(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="not a readable h5 file"):
        read_all(path)


def test_failed_and_overlong_episodes_are_left_out(tmp_path):
    path = tmp_path / "demos.h5"
    header = {"env_info": {"env_id": "PushCube-v1"}, "episodes": [{"episode_id": 0, "success": False}]}
    write_file(path, header=header)
    with pytest.raises(UserError, match="no usable episode"):
        read_all(path)
    header["env_info"]["max_episode_steps"] = 2
    header["episodes"][0]["success"] = True
    write_file(path, header=header)
    with pytest.raises(UserError, match="no usable episode"):
        read_all(path)
    assert len(read_all(path, only_successful=False)) == 1


def test_two_cameras_by_name(tmp_path):
    path = tmp_path / "demos.h5"
    write_file(path, replace("obs/sensor_data/hand/rgb", np.full((4, 2, 2, 3), 9, np.uint8)))
    demo = read_all(path, cameras={"primary": "", "wrist": "hand"})[0]
    assert demo.images["primary"].shape == (3, 8, 8, 3) and demo.images["wrist"].shape == (3, 2, 2, 3)
    with pytest.raises(UserError, match="lacks traj_0/obs/sensor_data/foot/rgb"):
        read_all(path, cameras={"primary": "foot"})
