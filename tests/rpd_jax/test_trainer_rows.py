"""metrics.jsonl holds the row of each iteration once, whenever the run was stopped or killed."""

import contextlib
import json
import os
import re
import signal

import jax
import numpy as np
import pytest

from configs.push_cube_sparse import get_config
from rpd_jax import settings
from rpd_jax.run.checkpoints import read_part
from rpd_jax.run.stop import Interrupted
from rpd_jax.stages import StagePlan
from rpd_jax.trainer import Trainer
from rpd_jax.training_run.console import TrainingConsole

SMALL = {
    "algorithm": "ppo",
    "total_steps": 96,
    "student.observation": "state",
    "env.image_size": 16,
    "env.mesh_detail": 0.07,
    "env.num_envs": 2,
    "refine": "pixels",
    "env.workers": 1,
    "ppo.rollout_steps": 8,
    "ppo.num_minibatches": 2,
    "ppo.update_epochs": 1,
    "eval.every": 2,
    "eval.episodes": 2,
    "eval.final_episodes": 2,
    "eval.video_episodes": 0,
    "checkpoint.every": 100,
}


class Killed(BaseException):
    """Nothing handles it: what is on disk is what a kill would leave."""


class StoppedInItsFirstEvaluation(Trainer):
    def _evaluate(self, last, clock):
        os.kill(os.getpid(), signal.SIGTERM)
        return super()._evaluate(last, clock)


class BestInItsFirstEvaluation(Trainer):
    stops_after = None  # this iteration, in its evaluation

    def _evaluate(self, last, clock):
        if self.state.iteration == self.stops_after and not last:
            os.kill(os.getpid(), signal.SIGTERM)
        result, _ = super()._evaluate(last, clock)
        return result, 0.9 if self.state.iteration == 2 else 0.1


class StoppedInTheBestEvaluation(BestInItsFirstEvaluation):
    stops_after = 2


class StoppedInTheLastEvaluation(BestInItsFirstEvaluation):
    stops_after = 4


class KilledInItsFourthIteration(Trainer):
    def _learn(self, position, clock):
        if self.state.iteration == 3:
            raise Killed
        return super()._learn(position, clock)


class SucceedsInItsFourthIteration(Trainer):
    def _learn(self, position, clock):
        position = super()._learn(position, clock)
        if self.state.iteration == 4:
            self.state = self.state.saw(np.ones(100))
        return position


def go(trainer, workdir, quiet=True, **others):
    config = get_config()
    config.update_from_flattened_dict(SMALL | others)
    with contextlib.ExitStack() as stack:
        trainer(StagePlan("", settings.resolve(config), workdir), TrainingConsole(quiet=quiet), stack).run()


def left_by(workdir):
    """Iterations that there are checkpoints of, and the parameters in the newest."""
    saved = sorted(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))
    return saved, read_params(workdir, saved[-1])


def read_params(workdir, iteration):
    return read_part(workdir / "checkpoints" / str(iteration) / "state", "learner", "params")


def read_rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def iterations(workdir):
    return [row["iteration"] for row in read_rows(workdir)]


@pytest.mark.slow
def test_stopped_in_an_evaluation_then_killed(tmp_path, capsys):
    with pytest.raises(Interrupted):
        go(StoppedInItsFirstEvaluation, tmp_path)
    assert iterations(tmp_path) == [0], "the row of iteration 1 waits in the checkpoint for its evaluation"
    with pytest.raises(Killed):
        go(KilledInItsFourthIteration, tmp_path)
    assert iterations(tmp_path) == [0, 1, 2]
    go(Trainer, tmp_path, quiet=False)
    assert iterations(tmp_path) == [0, 1, 2, 3, 4, 5]
    counted = re.findall(r"(\d+)/6 ", capsys.readouterr().out)
    assert counted[0] == "2" and counted[-1] == "6"


@pytest.mark.slow
def test_evaluations_are_left_out_where_the_sampled_actions_do_worse(tmp_path):
    go(SucceedsInItsFourthIteration, tmp_path, **{"eval.when_sampled": 0.9})
    rows = read_rows(tmp_path)
    sampled = {row["iteration"] + 1: row["eval/sampled_success"] for row in rows if "eval/sampled_success" in row}
    assert sampled == {2: 0.0, 4: pytest.approx(1.0, abs=0.05)}, "the sixth is the last: it is evaluated anyhow"
    assert [row["iteration"] + 1 for row in rows if "eval/success" in row] == [4, 6]
    assert [row["iteration"] + 1 for row in rows if "time/evaluate" in row] == [4, 6]


@pytest.mark.slow
def test_evaluations_take_their_share_of_the_steps_also_after_a_kill(tmp_path):
    # Two episodes of 50 steps, which 32 steps of training are followed by.
    few = {"eval.share": 1.0, "total_steps": 160, "checkpoint.every": 1}
    with pytest.raises(Killed):
        go(KilledInItsFourthIteration, tmp_path, **few)
    go(Trainer, tmp_path, **few)
    evaluated = [row["iteration"] + 1 for row in read_rows(tmp_path) if "eval/success" in row]
    assert evaluated == [2, 8, 10], "100 steps are more than 64 and than 96, not than 128; the tenth is the last"


@pytest.mark.slow
def test_the_best_is_left_also_where_a_stop_came_in_its_evaluation_or_in_the_last_one(tmp_path):
    best = {"eval.leave_best": True, "eval.patience": 1, "checkpoint.every": 2}
    best |= {"checkpoint.keep": 1, "checkpoint.keep_best": 1}
    go(BestInItsFirstEvaluation, tmp_path / "whole", **best)
    saved, params = left_by(tmp_path / "whole")
    assert saved == [2, 4], "patience ended it after the second evaluation"
    jax.tree.map(np.testing.assert_array_equal, params, read_params(tmp_path / "whole", 2))
    for stopped in (StoppedInTheBestEvaluation, StoppedInTheLastEvaluation):
        workdir = tmp_path / stopped.__name__
        with pytest.raises(Interrupted):
            go(stopped, workdir, **best)
        go(BestInItsFirstEvaluation, workdir, **best)
        again, as_whole = left_by(workdir)
        assert again == saved
        jax.tree.map(np.testing.assert_array_equal, params, as_whole)
