"""A small run directory, and what its readers make of a damaged copy."""

import json
import shutil
from pathlib import Path
from random import Random

import jax
import numpy as np
from damage import damage_folder

from configs import default
from rpd_jax import settings
from rpd_jax.errors import UserError
from rpd_jax.evaluate.trained_student import load_student
from rpd_jax.report import statistics
from rpd_jax.report.page import write_report
from rpd_jax.report.runs import find_runs, group
from rpd_jax.run.checkpoints import Checkpoints
from rpd_jax.run.directory import open_run
from rpd_jax.run.metrics import MetricsLog
from rpd_jax.student.networks import ActorCritic
from rpd_jax.training_run.fields import TRAINING

KINDS = ("report", "report_page", "student")


def write_whole(kind: str, workdir: Path) -> None:
    """Writes a finished run of a small student that sees the state, in the trainer's own format."""
    config = default.get_config()
    config.algorithm, config.total_steps, config.student.observation = "ppo", 200, "state"
    config.env.num_envs, config.ppo.rollout_steps = 10, 10
    config = settings.resolve(config)
    open_run(workdir, config, TRAINING)
    log = MetricsLog(workdir, 0)
    for iteration in range(2):
        numbers = {"eval/success": 0.5, "eval/return": 1.0, "eval/episodes": 10.0, "time/total": 4.0}
        log.write(iteration, 100 * (iteration + 1), numbers)
    log.close()
    student = {"success": 0.5, "success_low": 0.2, "success_high": 0.8, "episodes": 10.0, "return": 1.0}
    (workdir / "results.json").write_text(json.dumps({"student": student, "teacher": None}))
    (workdir / "teacher.json").write_text(json.dumps(student))
    network = ActorCritic.from_config(config.student)
    shapes = jax.eval_shape(network.init, jax.random.key(0), None, np.zeros((1, 5), np.float32))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), shapes)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=1)
    checkpoints.save(3, {"learner": {"params": params}}, {"step": 0})
    checkpoints.close()


def read_damaged(kind: str, whole: Path, folder: Path, seed: int) -> str:
    """Damages a copy of the run `whole` in `folder` and reads it; returns "read" or "refused: " and the sentence."""
    shutil.rmtree(folder, ignore_errors=True)
    random = Random(seed)
    shutil.copytree(whole, folder / "run")
    # Each reader's own files: the checkpoint's are many, and a report reads none of them.
    place = folder / "run" / "checkpoints" if kind == "student" and random.random() < 0.8 else folder / "run"
    if kind != "student":
        shutil.rmtree(folder / "run" / "checkpoints")
        shutil.rmtree(folder / "run" / "tensorboard")
    damage_folder(place, random)
    try:
        if kind == "student":
            student = load_student(folder / "run")
            student.network.apply(student.params, None, np.zeros((1, student.state_dim), np.float32))
        else:
            panels = group(find_runs([folder / "run"]))
            for series in panels[0].series:
                statistics.final_success(series), statistics.seconds_per_stage(series.runs)
                statistics.mean_curve(series.runs, "eval/success", 2)
            panels[0].teachers("success")
            if kind == "report_page":
                write_report(find_runs([folder / "run"]), folder / "report", [0.5])
    except UserError as error:
        assert "\n" not in str(error), str(error)
        return f"refused: {error}"
    return "read"
