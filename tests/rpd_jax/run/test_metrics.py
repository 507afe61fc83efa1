import json
import shutil
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rpd_jax.run.checkpoints import Checkpoints
from rpd_jax.run.ending import saved_at_an_early_end
from rpd_jax.run.metrics import MetricsLog, RunRemoved
from rpd_jax.run.stages import StageClock


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_log_drops_what_came_after_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for iteration in range(3):
        log.write(iteration, 64 * (iteration + 1), {"loss": iteration})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "st')  # a kill in the middle of a line
    log = MetricsLog(tmp_path, 2)
    log.write(2, 192, {"loss": 20.0})
    log.close()
    rows = read(tmp_path / "metrics.jsonl")
    assert [(row["iteration"], row["step"], row["loss"]) for row in rows] == [
        (0, 64, 0.0),
        (1, 128, 1.0),
        (2, 192, 20.0),
    ]


def test_tensorboard_reads_what_was_written_before_and_after_a_stop(tmp_path):
    for first in (0, 2):
        log = MetricsLog(tmp_path, first)
        for iteration in (first, first + 1):
            log.write(iteration, 64 * (iteration + 1), {"loss": iteration / 2})
        log.close()
    read_back = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in read_back] == [(64, 0.0), (128, 0.5), (192, 1.0), (256, 1.5)]


@pytest.mark.parametrize("again", [False, True])
def test_a_run_whose_folder_was_removed_ends_and_writes_nothing_there(tmp_path, again):
    """Another run may have the place by then."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    log, saved = MetricsLog(workdir, 0), []
    log.write(0, 64, {"loss": 0.0})
    shutil.rmtree(workdir)
    if again:
        workdir.mkdir()
        MetricsLog(workdir, 0).close()
    options = {"unit": "iteration", "workdir": workdir, "say": print}
    with (
        Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints,
        pytest.raises(RunRemoved, match="was removed or replaced while the run went on, which ends without"),
        saved_at_an_early_end(checkpoints, lambda: 2, lambda: saved.append(2), **options),
    ):
        log.write(1, 128, {"loss": 0.0})
    log.close()
    assert saved == [] and workdir.exists() == again
    if again:
        assert (workdir / "metrics.jsonl").read_text() == ""


def test_stages_and_rest_add_up_to_the_total():
    clock = StageClock()
    with clock.stage("a"):
        time.sleep(0.01)
    with clock.stage("a"):
        time.sleep(0.01)
    time.sleep(0.01)
    lap = clock.lap()
    assert lap["a"] + lap["rest"] == pytest.approx(lap["total"])
    assert lap["a"] >= 0.02
    assert lap["rest"] >= 0.01
    assert "a" not in clock.lap()
