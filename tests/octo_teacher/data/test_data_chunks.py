"""Training batches hold what the demos say: windows, chunks, padding, statistics; the iterator resumes exactly."""

import json

import numpy as np
import pytest

from octo_teacher.data.chunks import ChunkSource, ordered_batches, training_batches
from octo_teacher.data.episodes import Demo, action_statistics, normalize_actions, split_demos
from rpd_jax.errors import UserError

IDENTITY = {"mean": [0.0] * 7, "std": [1.0] * 7, "mask": [False] * 7}


def numbered_demo(steps: int, offset: int = 0) -> Demo:
    """Frame t is filled with t + offset; action t is t + offset in every dimension."""
    values = np.arange(steps) + offset
    images = np.broadcast_to(values[:, None, None, None], (steps, 4, 4, 3)).astype(np.uint8)
    return Demo({"primary": images}, np.repeat(values[:, None], 7, axis=1).astype(np.float32), f"task {offset}")


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
    demos = [Demo({}, np.array([[0.0] * 7, [1.0] * 7], np.float32), "")]
    demos.append(Demo({}, np.array([[2.0] * 7], np.float32), ""))
    statistics = action_statistics(demos)
    assert statistics["num_transitions"] == 3 and statistics["num_trajectories"] == 2
    action = statistics["action"]
    # of 0, 1, 2: variance 2/3; the 99% quantile lies 0.98 of the way from 1 to 2
    for name, value in {"mean": 1.0, "std": (2 / 3) ** 0.5, "min": 0.0, "max": 2.0, "p99": 1.98, "p01": 0.02}.items():
        np.testing.assert_allclose(action[name], [value] * 7, rtol=1e-12)
    json.dumps(statistics)
    normalised = normalize_actions(demos[1].actions, action)[0]
    np.testing.assert_allclose(normalised, [1.5**0.5] * 7, rtol=1e-6)


@pytest.mark.parametrize(
    ("numbers", "last", "normalised"),
    [
        (7, [-1.0, 1.0], [-1.0, 1.0]),  # a gripper of the tasks stays as it is
        (7, [0.2, 1.0], [0.2, 1.0]),
        (7, [0.0, 100.0], [-1.0, 1.0]),
        (6, [0.0, 100.0], [-1.0, 1.0]),  # of a robot of five joints, degrees and percent
        (8, [0.0, 1.0], [-1.0, 1.0]),
    ],
)
def test_only_a_gripper_within_its_bounds_is_not_normalised(numbers, last, normalised):
    actions = np.repeat(np.float32([[3.0], [5.0]]), numbers, axis=1)
    actions[:, -1] = last
    found = normalize_actions(actions, action_statistics([Demo({}, actions, "")])["action"])
    np.testing.assert_allclose(found[:, -1], normalised, rtol=1e-6)
    np.testing.assert_allclose(found[:, :-1], np.repeat([[-1.0], [1.0]], numbers - 1, axis=1), rtol=1e-6)


def test_an_action_dimension_that_never_changes_is_normalised_to_zero():
    demos = [Demo({}, np.full((4, 7), 0.25, np.float32), "")]
    assert normalize_actions(demos[0].actions, action_statistics(demos)["action"])[:, :6].tolist() == [[0.0] * 6] * 4


def test_an_epoch_shows_every_step_once_and_the_next_one_in_another_order():
    source = ChunkSource([numbered_demo(12)], IDENTITY, window=1, horizon=1)
    batches = training_batches(source, 4, seed=3)
    epochs = [[int(value) for _ in range(3) for value in next(batches)["action"][:, 0, 0, 0]] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_go_on_where_others_ended_whatever_the_workers(workers):
    source = ChunkSource([numbered_demo(10)], IDENTITY, window=1, horizon=2)
    batches = training_batches(source, 4, seed=5)
    expected = [next(batches)["action"] for _ in range(8)]
    for start in (0, 3):
        resumed = training_batches(source, 4, seed=5, start=start, workers=workers)
        np.testing.assert_array_equal([next(resumed)["action"] for _ in range(8 - start)], expected[start:])


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


def test_goals_are_later_frames_of_the_same_episode():
    source = ChunkSource(
        [numbered_demo(4), numbered_demo(3, offset=10)], IDENTITY, window=1, horizon=1, modality="image"
    )
    rng = np.random.default_rng(0)
    seen = {index: set() for index in range(len(source))}
    for index in seen:
        for _ in range(40):
            example = source.draw(index, rng)
            assert example["instruction"] == "" and example["by_image"]
            seen[index].add(int(example["goal"]["image_primary"][0, 0, 0]))
    # every later frame, the last one of each episode itself
    assert seen == {0: {1, 2, 3}, 1: {2, 3}, 2: {3}, 3: {3}, 4: {11, 12}, 5: {12}, 6: {12}}
    assert source[4]["goal"]["image_primary"][0, 0, 0] == 12


def test_a_multimodal_task_is_told_by_one_of_the_two():
    source = ChunkSource([numbered_demo(30, offset=1)], IDENTITY, window=1, horizon=1, modality="multimodal")
    batches = training_batches(source, 30, seed=0)
    batch = next(batches)
    by_image = batch["by_image"]
    assert 5 < by_image.sum() < 25
    assert [text == "" for text in batch["instruction"]] == by_image.tolist()
    np.testing.assert_array_equal((batch["goal"]["image_primary"] > 0).all(axis=(1, 2, 3)), by_image)
    # the draws belong to the position in the stream: one that starts there makes the same ones
    expected = next(batches)
    resumed = training_batches(source, 30, seed=0, start=1)
    np.testing.assert_array_equal(next(resumed)["goal"]["image_primary"], expected["goal"]["image_primary"])
    assert not np.array_equal(expected["by_image"], by_image)


def test_actions_of_later_steps_than_the_goals_are_padding_where_an_image_tells_it():
    source = ChunkSource([numbered_demo(9, offset=1)], IDENTITY, window=2, horizon=4, modality="multimodal")
    rng = np.random.default_rng(0)
    seen = {True: 0, False: 0}
    for index in [*range(9)] * 10:
        example = source.draw(index, rng)
        by_image = bool(example["by_image"])
        last = example["goal"]["image_primary"][0, 0, 0] if by_image else 9  # frames and actions count from 1
        steps = example["observation"]["timestep"][:, None] + np.arange(4) + 1
        np.testing.assert_array_equal(example["action_pad_mask"][..., 0], steps <= last)
        seen[by_image] += (steps > last).any()
    assert seen[True] > seen[False] > 0


def test_an_unknown_modality_is_named():
    with pytest.raises(UserError, match="modality='smell'"):
        ChunkSource([numbered_demo(2)], IDENTITY, window=1, horizon=1, modality="smell")
