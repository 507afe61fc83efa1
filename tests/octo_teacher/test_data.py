"""Training batches hold what the demos say: windows, chunks, padding, statistics; the iterator resumes exactly."""

import json

import h5py
import numpy as np
import pytest

from octo_teacher.data import (
    ChunkSource,
    Demo,
    action_statistics,
    normalize_actions,
    ordered_batches,
    read_maniskill,
    split_demos,
    training_batches,
)
from rpd_jax.errors import UserError

IDENTITY = {"mean": [0.0] * 7, "std": [1.0] * 7, "mask": [False] * 7}


def numbered_demo(steps: int, offset: int = 0) -> Demo:
    """Frame t is filled with t + offset; action t is t + offset in every dimension."""
    values = np.arange(steps) + offset
    images = np.broadcast_to(values[:, None, None, None], (steps, 4, 4, 3)).astype(np.uint8)
    return Demo(images, np.repeat(values[:, None], 7, axis=1).astype(np.float32), f"task {offset}")


def test_chunks_and_windows_at_the_ends_of_an_episode():
    source = ChunkSource([numbered_demo(2), numbered_demo(3, offset=10)], IDENTITY, window=2, horizon=3)
    assert len(source) == 5

    first = source[2]  # first step of the second episode: nothing of the first one leaks in
    assert first["observation"]["image_primary"][:, 0, 0, 0].tolist() == [10, 10]
    assert first["observation"]["timestep_pad_mask"].tolist() == [False, True]
    assert first["observation"]["timestep"].tolist() == [0, 0]
    assert first["action"][:, :, 0].tolist() == [[10, 11, 12], [10, 11, 12]]
    assert first["action_pad_mask"].all()
    assert first["instruction"] == "task 10"

    last = source[4]
    assert last["observation"]["image_primary"][:, 0, 0, 0].tolist() == [11, 12]
    assert last["observation"]["timestep_pad_mask"].tolist() == [True, True]
    assert last["action"][:, :, 3].tolist() == [[11, 12, 12], [12, 12, 12]]
    assert last["action_pad_mask"][:, :, 3].tolist() == [[True, True, False], [True, False, False]]


def test_statistics_of_known_actions():
    demos = [Demo(np.zeros((2, 1, 1, 3), np.uint8), np.array([[0.0] * 7, [1.0] * 7], np.float32), "")]
    demos.append(Demo(np.zeros((1, 1, 1, 3), np.uint8), np.array([[2.0] * 7], np.float32), ""))
    statistics = action_statistics(demos)
    assert statistics["num_transitions"] == 3 and statistics["num_trajectories"] == 2
    action = statistics["action"]
    # of 0, 1, 2: variance 2/3; the 99% quantile lies 0.98 of the way from 1 to 2
    for name, value in {"mean": 1.0, "std": (2 / 3) ** 0.5, "min": 0.0, "max": 2.0, "p99": 1.98, "p01": 0.02}.items():
        np.testing.assert_allclose(action[name], [value] * 7, rtol=1e-12)
    assert action["mask"] == [True] * 6 + [False]
    json.dumps(statistics)
    normalised = normalize_actions(demos[1].actions, action)[0]
    np.testing.assert_allclose(normalised, [1.5**0.5] * 6 + [2.0], rtol=1e-6)


def test_an_action_dimension_that_never_changes_is_normalised_to_zero():
    demos = [Demo(np.zeros((4, 1, 1, 3), np.uint8), np.full((4, 7), 0.25, np.float32), "")]
    assert normalize_actions(demos[0].actions, action_statistics(demos)["action"])[:, :6].tolist() == [[0.0] * 6] * 4


def test_an_epoch_shows_every_step_once_and_the_next_one_in_another_order():
    source = ChunkSource([numbered_demo(12)], IDENTITY, window=1, horizon=1)
    batches = training_batches(source, 4, seed=3)
    epochs = [[int(value) for _ in range(3) for value in next(batches)["action"][:, 0, 0, 0]] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1]


def test_the_iterator_state_continues_with_the_same_batches():
    source = ChunkSource([numbered_demo(10)], IDENTITY, window=1, horizon=2)
    batches = training_batches(source, 4, seed=5)
    for _ in range(4):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    expected = [next(batches)["action"] for _ in range(4)]
    resumed = training_batches(source, 4, seed=5)
    resumed.set_state(state)
    np.testing.assert_array_equal([next(resumed)["action"] for _ in range(4)], expected)


def test_ordered_batches_cover_every_step():
    source = ChunkSource([numbered_demo(5)], IDENTITY, window=1, horizon=1)
    steps = [batch["action"][:, 0, 0, 0].tolist() for batch in ordered_batches(source, 2)]
    assert steps == [[0, 1], [2, 3], [4, 0]]


def test_held_out_episodes_are_whole_and_disjoint():
    demos = [numbered_demo(2, offset=10 * i) for i in range(10)]
    train, held_out = split_demos(demos, 0.2, seed=0)
    names = [demo.instruction for demo in train], [demo.instruction for demo in held_out]
    assert len(names[1]) == 2 and sorted(names[0] + names[1]) == sorted(demo.instruction for demo in demos)
    with pytest.raises(UserError, match="too few"):
        split_demos(demos[:1], 0.2, seed=0)


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
    assert len(read_maniskill(path)[0].images) == 3
    write_file(path, edit)
    with pytest.raises(UserError, match=message) as error:
        read_maniskill(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_no_h5_or_has_no_json_is_named(tmp_path):
    path = tmp_path / "demos.h5"
    with pytest.raises(UserError, match=r"demos.json is missing"):
        read_maniskill(path)
    write_file(path, header={"episodes": []})
    with pytest.raises(UserError, match=r"demos.json lacks the key 'env_info'"):
        read_maniskill(path)
    write_file(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="not a readable h5 file"):
        read_maniskill(path)


def test_failed_and_overlong_episodes_are_left_out_and_frames_resized(tmp_path):
    path = tmp_path / "demos.h5"
    write_file(path, replace(RGB, np.full((4, 8, 8, 3), 77, np.uint8)))
    demo = read_maniskill(path, image_size=4)[0]
    assert demo.images.shape == (3, 4, 4, 3) and (demo.images == 77).all()
    header = {"env_info": {"env_id": "PushCube-v1"}, "episodes": [{"episode_id": 0, "success": False}]}
    write_file(path, header=header)
    with pytest.raises(UserError, match="no usable episode"):
        read_maniskill(path)
    header["env_info"]["max_episode_steps"] = 2
    header["episodes"][0]["success"] = True
    write_file(path, header=header)
    with pytest.raises(UserError, match="no usable episode"):
        read_maniskill(path)
    assert len(read_maniskill(path, only_successful=False)) == 1
