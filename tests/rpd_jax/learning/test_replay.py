"""The ring keeps the newest frames and their labels together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpd_jax.learning.replay import Labelled, Replay


def batch(first, num):
    """Frames, states and labels that all say which frame they belong to."""
    names = np.arange(first, first + num)
    frames = np.broadcast_to(names[:, None, None, None], (num, 4, 4, 3)).astype(np.uint8)
    states = np.broadcast_to(names[:, None], (num, 2)).astype(np.float32)
    labels = np.broadcast_to(names[:, None, None], (num, 3, 7)).astype(np.float32)
    return Labelled(jnp.asarray(frames), jnp.asarray(states), jnp.asarray(labels))


def without_frames(first, num):
    return batch(first, num).replace(frames=None)


def test_newest_frames_replace_the_oldest_with_their_labels():
    replay = Replay.create(10, num_samples=3, action_dim=7, frame_shape=(4, 4, 3), state_dim=2)
    add = jax.jit(Replay.add, donate_argnums=0)
    for first in range(0, 32, 4):
        replay = add(replay, batch(first, 4))
    kept = sorted(replay.frames[:, 0, 0, 0].tolist())
    assert kept == list(range(22, 32))
    np.testing.assert_array_equal(replay.states[:, 0], replay.frames[:, 0, 0, 0])
    np.testing.assert_array_equal(replay.labels[:, 2, 6], replay.frames[:, 0, 0, 0])


def test_donated_ring_is_written_in_place():
    replay = Replay.create(10, 3, 7, frame_shape=(4, 4, 3))
    place = replay.frames.unsafe_buffer_pointer()
    replay = jax.jit(Replay.add, donate_argnums=0)(replay, batch(0, 4).replace(states=None))
    assert replay.frames.unsafe_buffer_pointer() == place


def test_only_filled_slots_are_sampled_and_all_of_them():
    replay = Replay.create(10, 3, 7, state_dim=2)
    drawn, filled = replay.sample(jax.random.key(0), 5)
    assert filled == 0 and not drawn.states.any()
    replay = replay.add(without_frames(1, 4))
    drawn, filled = replay.sample(jax.random.key(0), 100)
    assert filled == 4 and set(drawn.states[:, 0].tolist()) == {1, 2, 3, 4}
    np.testing.assert_array_equal(drawn.labels[:, 2, 6], drawn.states[:, 0])
    for first in range(5, 5 + 30 * 4, 4):
        replay = replay.add(without_frames(first, 4))
    drawn, filled = replay.sample(jax.random.key(0), 300)
    assert filled == 10 and set(drawn.states[:, 0].tolist()) == set(range(115, 125))


@pytest.mark.parametrize("num", [1, 4, 10])
def test_fresh_frames_are_drawn_as_if_they_had_been_added(num):
    replay = Replay.create(10, 3, 7, frame_shape=(4, 4, 3), state_dim=2)
    for first in range(0, 12 * num, num):
        drawn, filled = replay.sample(jax.random.key(first), 50, batch(first, num))
        replay = replay.add(batch(first, num))
        expected, expected_filled = replay.sample(jax.random.key(first), 50)
        assert filled == expected_filled
        for found, wanted in zip(jax.tree.leaves(drawn), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_too_many_frames_at_once_are_an_error():
    replay, too_many = Replay.create(10, 3, 7, state_dim=2), without_frames(0, 11)
    with pytest.raises(ValueError, match="11 frames do not fit into a replay of 10"):
        replay.add(too_many)
    with pytest.raises(ValueError, match="11 frames do not fit into a replay of 10"):
        replay.sample(jax.random.key(0), 5, too_many)
