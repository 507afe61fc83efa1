"""A replay's rows are written once, and every checkpoint there is gives back the ring as it was."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpd_jax.acting.kept_replay import read_replay
from rpd_jax.acting.training_state import TrainingState
from rpd_jax.errors import UserError
from rpd_jax.learning.replay import Labelled, Replay
from rpd_jax.run.checkpoints import Checkpoints

CAPACITY, ROWS = 10, 3  # the ring is never full at the end of a rollout


def empty():
    replay = Replay.create(CAPACITY, num_samples=1, action_dim=7, frame_shape=(4, 4, 3), state_dim=2)
    return TrainingState({"weight": jnp.zeros(3)}, replay)


def after(iterations):
    """The state after so many iterations of three rows each, none of them equal."""
    state = empty()
    for iteration in range(1, iterations + 1):
        random = np.random.default_rng(iteration)
        frames = random.integers(0, 256, (ROWS, 4, 4, 3), np.uint8)
        states, labels = random.normal(size=(ROWS, 2)), random.normal(size=(ROWS, 1, 7))
        replay = state.replay.add(Labelled(frames, states.astype(np.float32), labels.astype(np.float32)))
        state = TrainingState({"weight": jnp.full(3, iteration)}, replay, iteration, came=state.came + ROWS)
    return state


def save(checkpoints, iteration):
    after(iteration).save(checkpoints, step=8 * iteration)


def files(directory):
    return sorted(path.name for path in (directory / "replay").iterdir())


def assert_continues_from(directory, iteration, keep=2):
    with Checkpoints(directory, keep=keep) as checkpoints:
        found, expected = empty().restored(checkpoints, pytest.fail), after(iteration)
    assert (found.iteration, found.came) == (iteration, expected.came)
    jax.tree.map(np.testing.assert_array_equal, (found.learner, found.replay), (expected.learner, expected.replay))


def test_each_checkpoint_gives_back_its_ring_and_rows_are_written_once(tmp_path):
    written = {}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for iteration in (1, 2, 4, 5, 6, 7):
            save(checkpoints, iteration)
            times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "replay").iterdir()}
            assert all(time == written.get(name, time) for name, time in times.items())
            written |= times
    # 7 needs rows 11 to 21, 6 needs 8 to 18: the file of rows 6 to 12 is the oldest.
    assert files(tmp_path) == ["4-6", "5-12", "6-15", "7-18"]
    assert not list((tmp_path / "7" / "state").rglob("*replay*"))
    assert_continues_from(tmp_path, 7)
    names = ("frames", "states", "labels", "count")
    for name, array in read_replay(tmp_path / "7", *names).items():
        np.testing.assert_array_equal(array, getattr(after(7).replay, name), err_msg=name)
    # The older one still is what it was.
    shutil.rmtree(tmp_path / "7")
    assert_continues_from(tmp_path, 6)


def test_more_rows_than_the_ring_holds_between_two_checkpoints(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 9)
    assert files(tmp_path) == ["9-17"]
    assert_continues_from(tmp_path, 9)


def test_a_continued_run_writes_only_what_is_new(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 2)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        empty().restored(checkpoints, pytest.fail)
        save(checkpoints, 3)
    assert files(tmp_path) == ["2-0", "3-6"]
    assert_continues_from(tmp_path, 3)


def test_killed_between_rows_and_checkpoint_it_continues_from_the_one_before(tmp_path, monkeypatch):
    """Rows of a checkpoint that never was, whole or half, are neither read nor kept."""
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for iteration in (2, 3):
            save(checkpoints, iteration)
        shutil.copytree(tmp_path, tmp_path.parent / "before")
        save(checkpoints, 5)
    shutil.rmtree(tmp_path / "5")
    shutil.copytree(tmp_path.parent / "before" / "2", tmp_path / "2")
    (tmp_path / "replay" / "5-9" / "manifest.ocdbt").write_bytes(b"half")
    (tmp_path / "replay" / "5-9.orbax-checkpoint-tmp").mkdir()
    assert_continues_from(tmp_path, 3)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        empty().restored(checkpoints, pytest.fail)
        save(checkpoints, 4)
        save(checkpoints, 5)
    assert files(tmp_path) == ["2-0", "3-6", "4-9", "5-12"]
    assert_continues_from(tmp_path, 5)


def test_a_checkpoint_that_holds_its_replay_itself_continues(tmp_path):
    """As they were written before rows had files of their own."""
    old = after(5)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(5, {"learner": old.learner, "replay": old.replay}, {"step": 40, "row": None, "devices": 1})
    (found,) = read_replay(tmp_path / "5", "frames").values()
    np.testing.assert_array_equal(found, old.replay.frames)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        state = empty().restored(checkpoints, pytest.fail)
        jax.tree.map(np.testing.assert_array_equal, state.replay, old.replay)
        fresh = Labelled(*(jnp.ones((ROWS, *ring.shape[1:]), ring.dtype) for ring in jax.tree.leaves(old.replay)[:3]))
        grown = TrainingState(state.learner, state.replay.add(fresh), 6, came=state.came + ROWS)
        grown.save(checkpoints, step=48)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        found = empty().restored(checkpoints, pytest.fail)
    jax.tree.map(np.testing.assert_array_equal, found.replay, grown.replay)


def test_damaged_and_missing_rows_are_told(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 2)
    shutil.copytree(tmp_path / "replay" / "2-0", tmp_path.parent / "whole")
    for path in (tmp_path / "replay" / "2-0").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    sentence = r"2 cannot be read .*: remove that folder .* or .*replay to continue with an empty replay\."
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        with pytest.raises(UserError, match=sentence):
            empty().restored(checkpoints, pytest.fail)
        with pytest.raises(UserError, match=r"2 cannot be read .*: name another one"):
            read_replay(tmp_path / "2", "frames")
        shutil.rmtree(tmp_path / "replay" / "2-0")
        with pytest.raises(UserError, match=sentence):
            empty().restored(checkpoints, pytest.fail)
        shutil.rmtree(tmp_path / "replay")
        said = []
        state = empty().restored(checkpoints, said.append)
        assert said == ["The replay starts empty: its folder was removed."]
        assert (state.iteration, state.came, int(state.replay.count)) == (2, 0, 0)


def test_a_full_disk_leaves_the_checkpoint_before_and_its_rows(small_disk, fill):
    directory = small_disk / "checkpoints"
    with Checkpoints(directory, keep=1) as checkpoints:
        save(checkpoints, 2)
        filler = fill(small_disk)
        with pytest.raises(UserError, match=r"checkpoint 3 .*: make room on the disk .* continues from checkpoint 2\."):
            save(checkpoints, 3)
        filler.unlink()
        assert files(directory) == ["2-0"]
        assert_continues_from(directory, 2, keep=1)
        save(checkpoints, 3)
    assert_continues_from(directory, 3, keep=1)
