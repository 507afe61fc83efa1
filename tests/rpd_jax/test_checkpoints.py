import jax.numpy as jnp
import numpy as np
import pytest

from rpd_jax.checkpoints import Checkpoints
from rpd_jax.errors import UserError


def make_tree(value):
    return {
        "weights": jnp.full((3, 2), value),
        "frames": jnp.full((4, 2), 7, jnp.uint8),
        "count": jnp.asarray(5, jnp.int32),
    }


def test_restores_what_was_saved_bit_for_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.restore(make_tree(0.0)) is None
    saved = make_tree(np.float32(1) / 3)
    checkpoints.save(10, saved, {"step": 640})
    iteration, tree, progress = Checkpoints(tmp_path, keep=2).restore(make_tree(0.0))
    assert (iteration, progress) == (10, {"step": 640})
    for name, leaf in saved.items():
        assert tree[name].dtype == leaf.dtype
        np.testing.assert_array_equal(tree[name], leaf)


def test_keeps_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for iteration in (1, 2, 3):
        checkpoints.save(iteration, make_tree(float(iteration)), {})
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["2", "3"]


def test_a_half_written_checkpoint_is_ignored(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, make_tree(1.0), {})
    half = tmp_path / "2.orbax-checkpoint-tmp"
    (half / "state").mkdir(parents=True)
    assert Checkpoints(tmp_path, keep=2).restore(make_tree(0.0))[0] == 1


def test_a_damaged_checkpoint_gives_one_sentence(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, make_tree(1.0), {})
    for path in (tmp_path / "1" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot be read .*: remove that folder"):
        Checkpoints(tmp_path, keep=2).restore(make_tree(0.0))
