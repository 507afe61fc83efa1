import errno
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from rpd_jax.errors import UserError
from rpd_jax.run.checkpoints import Checkpoints
from rpd_jax.run.metrics import MetricsLog
from rpd_jax.run.row_files import Rows


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
    assert kept(tmp_path) == [2, 3]


def test_the_newest_is_replaced_and_never_missing(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1, keep_best=1)
    checkpoints.save(1, make_tree(1.0), {"step": 1})
    checkpoints.save(1, make_tree(2.0), {"step": 2}, 0.9)
    checkpoints.save(2, make_tree(3.0), {}, 0.5)
    assert kept(tmp_path) == [1, 2], "its success is known now"

    def on_a_full_disk(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", on_a_full_disk)
    with pytest.raises(UserError, match="make room"):
        checkpoints.save(2, make_tree(4.0), {})
    assert kept(tmp_path) == [1, 2]
    # As a kill leaves it that comes before the other one is whole.
    (tmp_path / "2").rename(tmp_path / "2.replaced")
    iteration, tree, _ = Checkpoints(tmp_path, keep=1, keep_best=1).restore(make_tree(0.0))
    assert iteration == 2 and (tree["weights"] == 3.0).all()


def kept(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


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


def cut_arrays(folder, size):
    """Leaves `size` bytes of each file that holds arrays' data, and what describes them as it is."""
    files = [path for path in folder.glob("**/d/*") if path.stat().st_size > 5000]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("size", [0, 2000])
def test_a_cut_array_file_gives_one_sentence(tmp_path, size):
    values = jnp.asarray(np.random.default_rng(0).standard_normal((100, 100)), jnp.float32)
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, {"weights": values}, {}, rows=Rows(0, 50, lambda start, end: {"frames": values[start:end]}))
    cut_arrays(tmp_path / "1" / "state", size)
    cut_arrays(tmp_path / "replay", size)
    sentence = r"/1 cannot be read \(OUT_OF_RANGE.*\): "
    with pytest.raises(UserError, match=sentence + "remove that folder"):
        checkpoints.restore({"weights": values})
    with pytest.raises(UserError, match=sentence + "name another one"):
        checkpoints.read_part(1, "weights")
    with pytest.raises(UserError, match=sentence + "remove that folder .* or .*replay to continue with an empty"):
        checkpoints.read_rows(0, 50, values.sharding, lambda span, rows: None)


RESTORE_CUT = """
import asyncio
import sys
import jax.numpy as jnp
from pathlib import Path
from rpd_jax.errors import UserError
from rpd_jax.run.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2)
try:
    checkpoints.restore({f"weights{number}": jnp.zeros((100, 200)) for number in range(60)})
except UserError as error:
    print(error)
asyncio.new_event_loop().create_future().set_exception(ValueError("of another array, as it comes now and then"))
"""


def test_cut_array_files_leave_no_stack_traces(tmp_path):
    random = np.random.default_rng(0)
    arrays = {f"weights{number}": jnp.asarray(random.standard_normal((100, 200)), jnp.float32) for number in range(60)}
    Checkpoints(tmp_path, keep=2).save(1, arrays, {})
    cut_arrays(tmp_path / "1" / "state", 2000)
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", RESTORE_CUT, tmp_path], capture_output=True, text=True)
        assert "cannot be read" in done.stdout and done.stderr == ""


def test_keeps_the_best_besides_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, keep_best=1)
    for iteration, success in ((1, 0.2), (2, 0.9), (3, None), (4, 0.5)):
        checkpoints.save(iteration, make_tree(float(iteration)), {}, success)
    assert kept(tmp_path) == [2, 4]
    again = Checkpoints(tmp_path, keep=1, keep_best=1)
    again.save(5, make_tree(5.0), {}, 0.7)
    assert kept(tmp_path) == [2, 5], "the best is known to a resumed run too"
    assert again.restore(make_tree(0.0))[0] == 5, "a run continues from the newest, not from the best"


def test_a_full_disk_gives_one_sentence_and_leaves_the_last_checkpoint(small_disk, fill, caplog):
    checkpoints = Checkpoints(small_disk / "checkpoints", keep=2)
    checkpoints.save(1, make_tree(1.0), {"step": 64})
    log = MetricsLog(small_disk, 0)
    filler = fill(small_disk)
    caplog.clear()
    with pytest.raises(UserError, match=r"make room on the disk .* continues from checkpoint 1\."):
        checkpoints.save(2, make_tree(2.0), {"step": 128})
    assert not caplog.records, "Orbax tells no more than the sentence does"
    with pytest.raises(OSError, match="No space left"):
        for iteration in range(1000):
            log.write(iteration, 64, {"loss": 1.0})
    log.close()
    checkpoints.close()
    filler.unlink()
    checkpoints = Checkpoints(small_disk / "checkpoints", keep=2)
    iteration, tree, progress = checkpoints.restore(make_tree(0.0))
    assert (iteration, progress) == (1, {"step": 64})
    np.testing.assert_array_equal(tree["weights"], make_tree(1.0)["weights"])
    checkpoints.save(2, make_tree(2.0), {"step": 128})
    assert checkpoints.latest == 2


SAVE_FOREVER = """
import sys
import jax.numpy as jnp
from rpd_jax.run.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2)
iteration = checkpoints.latest or 0
while True:
    iteration += 1
    checkpoints.save(iteration, {"weights": jnp.full((200, 200), iteration)}, {"step": iteration})
    print(iteration, flush=True)
"""


@pytest.mark.slow
def test_no_kill_leaves_a_corrupt_or_lost_checkpoint(tmp_path):
    """What the process said it had saved is there after a SIGKILL at a random moment of saving, whole."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, tmp_path], stdout=subprocess.PIPE, text=True)
        for _ in range(rng.integers(2, 6)):
            said = int(process.stdout.readline())
        time.sleep(rng.uniform(0.0, 0.1))
        process.kill()
        said = int((process.communicate()[0].splitlines() or [said])[-1])
        like = {"weights": jnp.zeros((200, 200), jnp.int32)}
        iteration, tree, progress = Checkpoints(tmp_path, keep=2).restore(like)
        assert iteration in (said, said + 1) and progress == {"step": iteration}
        np.testing.assert_array_equal(tree["weights"], np.full((200, 200), iteration))
