"""refine=state: which stages there are, what one leaves to the next, and that a kill in any of them changes nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import default
from rpd_jax import settings
from rpd_jax.acting.kept_replay import read_replay
from rpd_jax.errors import UserError
from rpd_jax.evaluate.trained_student import load_student
from rpd_jax.first_stages import check_first_stages, take_over
from rpd_jax.run.checkpoints import newest_checkpoint, read_part
from rpd_jax.run.directory import open_run
from rpd_jax.stages import check_stages, plan, without_effect
from rpd_jax.student.still import resting
from rpd_jax.training_run.fields import TRAINING

ROOT = Path(__file__).resolve().parent.parent


def resolved(**changes):
    config = default.get_config()
    config.refine = "state"
    config.update_from_flattened_dict(changes)
    return settings.resolve(config)


def test_stages_follow_from_the_algorithm(tmp_path):
    names = {}
    for algorithm in ("rpd_mse", "dagger", "ppo", "ppd", "dagger_ppd"):
        stages = plan(resolved(algorithm=algorithm), tmp_path)
        names[algorithm] = [(stage.name, stage.config.algorithm, stage.config.teacher.name) for stage in stages]
        assert stages[-1].directory == tmp_path
        for stage in stages:
            settings.check(stage.config)
            assert stage.config.student.observation == ("rgb" if stage.name == "distil" else "state")
    distil = ("distil", "dagger", "student")
    assert names["rpd_mse"] == [("label", "dagger", "octo"), ("refine", "rpd_mse", "octo"), distil]
    # The control sees the same frames and imitates the VLA in all of them.
    assert names["dagger"] == [("label", "dagger", "octo"), ("distil", "dagger", "octo")]
    assert names["ppo"] == [("refine", "ppo", "octo"), distil]
    # Where the spread of the labels is read, several of them are kept.
    assert names["ppd"] == [("label", "dagger_ppd", "octo"), ("refine", "ppd", "octo"), distil]
    assert names["dagger_ppd"] == [("label", "dagger_ppd", "octo"), ("distil", "dagger_ppd", "octo")]
    label, refine, _ = plan(resolved(**{"stages.refine.ppo.gamma": 0.9}), tmp_path)
    assert refine.config.ppo.gamma == 0.9 and label.config.ppo.gamma == 0.99
    assert [stage.asks_teacher for stage in (label, refine)] == [True, False]
    moved = {"env.camera.eye_offset": (0.1, 0.0, 0.0), "env.camera.fov": 1.0}
    for view, seen in (("student", ((0.1, 0.0, 0.0), 1.0)), ("own", ((0.0, 0.0, 0.0), None))):
        label, *others = plan(resolved(**moved, **{"teacher.view": view}), tmp_path)
        assert (tuple(label.config.env.camera.eye_offset), label.config.env.camera.fov) == seen
        assert all(tuple(stage.config.env.camera.eye_offset) == (0.1, 0.0, 0.0) for stage in others)
    (only,) = plan(resolved(refine="pixels", profile="cpu"), tmp_path)
    assert (only.name, only.directory) == ("", tmp_path)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"algorithm": "rpd_mse", "stages.refine.ppo.gamma": 0.9}, []),
        ({"algorithm": "dagger", "stages.refine.ppo.gamma": 0.9}, ["stages.refine.ppo.gamma=0.9"]),
        ({"algorithm": "ppo", "stages.label.eval.until": 0.9}, ["stages.label.eval.until=0.9"]),
        ({"algorithm": "ppo"}, []),
        ({"algorithm": "ppo", "refine": "pixels", "profile": "cpu"}, []),
    ],
)
def test_what_is_set_for_a_stage_that_there_is_not_is_told(changes, names):
    config = resolved(**changes)
    assert without_effect(config, default.get_config().profiles[config.profile]) == names


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"profile": "cpu"},
            "refine='state' has values for its stages in profile='refine', and profile='cpu' has none",
        ),
        ({"student.observation": "state"}, "refine='state' ends with a student that sees frames"),
        ({"algorithm": "dagger", "teacher.view": "own"}, "teacher.view='own' is for the labels that an expert begins"),
        ({"refine": "pixels", "profile": "cpu", "teacher.view": "own"}, "teacher.view='own' is for the labels"),
        ({"env.image_size": 64}, "keeps frames as they are drawn"),
        ({"refine": "pixels", "stages.label.total_steps": 4096}, "stages.label.total_steps is a setting of refine"),
        ({"stages.refine.ppo.gamma": 1.5}, "stages.refine.ppo.gamma=1.5 must be"),
        (
            {"refine": "pixels", "profile": "cpu", "distill.still": True},
            "distill.still looks at the labels that a stage",
        ),
        ({"distill.schedule": "success", "distill.coef_final": 0.0}, "leave a student that only imitates nothing to"),
        ({"refine": "latent"}, "refine='latent' is not one of"),
    ],
)
def test_what_has_no_stages_is_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        resolved(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stages.refine.checkpoint.keep_best": 0}, r"stages\.refine: eval\.leave_best takes parameters from"),
        ({"stages.refine.eval.every": 10}, r"stages\.refine: eval\.leave_best .* let checkpoint.every divide"),
        ({"stages.label.total_steps": 100}, r"stages\.label: total_steps=100 is less than one iteration of 1024"),
        ({"stages.refine.ppo.num_minibatches": 2048}, r"stages\.refine: ppo\.num_minibatches=2048 is too many"),
        ({"stages.refine.distill.replay": 0}, r"stages\.refine: distill\.replay and distill\.replay_batch go"),
        ({"stages.refine.distill.guide": 0.5}, r"stages\.refine: distill\.guide lets the teacher act"),
        ({"stages.label.distill.replay": 10**8}, r"stages\.label: The frames that a device keeps take 9\d+ GB"),
        ({"stages.refine.total_steps": 1_000_000, "total_steps": 1024}, None),
        ({"algorithm": "ppd"}, None),
        ({"algorithm": "dagger_ppd"}, None),
        ({"algorithm": "ppo"}, None),
    ],
)
def test_what_a_stage_cannot_do_is_refused_before_the_first(changes, sentence):
    config = resolved(**changes)
    with pytest.raises(UserError, match=sentence) if sentence else contextlib.nullcontext():
        check_stages(config)


SMALL = {
    "refine": "state",
    "seed": 3,
    "total_steps": 48,
    "env.num_envs": 2,
    "env.workers": 1,
    "env.image_size": 40,
    "student.image_size": 40,
    "env.mesh_detail": 0.07,
    "ppo.rollout_steps": 8,
    "ppo.num_minibatches": 2,
    "ppo.update_epochs": 1,
    "distill.averaged": 2,
    "distill.replay": 96,
    "distill.replay_batch": 8,
    "eval.every": 2,
    "eval.episodes": 2,
    "eval.final_episodes": 2,
    "eval.video_episodes": 1,
    "checkpoint.every": 1,
    "teacher.eval_episodes": 2,
    "stages.label.total_steps": 32,
    "stages.label.ppo.num_minibatches": 2,
    "stages.label.ppo.update_epochs": 2,
    "stages.label.distill.replay": 32,
    "stages.label.distill.replay_batch": 8,
    "stages.label.eval.final_episodes": 2,
    "stages.label.checkpoint.every": 1,
    "stages.refine.total_steps": 64,
    "stages.refine.ppo.critic_first": 16,
    "stages.refine.ppo.rollout_steps": 8,
    "stages.refine.ppo.num_minibatches": 2,
    "stages.refine.ppo.update_epochs": 2,
    "stages.refine.distill.replay": 24,
    "stages.refine.distill.replay_batch": 8,
    "stages.refine.eval.every": 2,
    "stages.refine.eval.episodes": 2,
    "stages.refine.eval.final_episodes": 2,
    "stages.refine.checkpoint.every": 1,
}


def command(workdir, *others):
    flags = [*(f"--config.{name}={value}" for name, value in SMALL.items()), *others]
    arguments = [sys.executable, "train.py", "--config=configs/push_cube_sparse.py", f"--workdir={workdir}", *flags]
    return {"args": arguments, "cwd": ROOT, "text": True}


def rows(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stages") / "whole"
    outcome = subprocess.run(**command(workdir), capture_output=True, timeout=900)
    assert outcome.returncode == 0, outcome.stderr
    return workdir, outcome.stdout


@pytest.mark.slow
def test_a_run_goes_through_its_stages_and_each_is_a_run_itself(whole):
    workdir, said = whole
    places = [workdir / "label", workdir / "refine", workdir]
    for number, name in enumerate(("label", "refine", "distil"), start=1):
        assert f"Stage {number} of 3, {name}:" in said
    assert said.count("Estimated training time: at most ") == 3  # each may reach its end sooner
    results = json.loads((workdir / "results.json").read_text())
    teacher = json.loads((workdir / "teacher.json").read_text())
    assert results["teacher"] == teacher == json.loads((workdir / "label" / "teacher.json").read_text())
    assert results["algorithm"] == "rpd_mse"
    assert {name: stage["steps"] for name, stage in results["stages"].items()} == {
        "label": 32,
        "refine": 64,
        "distil": 48,
    }
    assert all(stage["minutes"] > 0 and "success" in stage["student"] for stage in results["stages"].values())
    # Steps of a run are those of all its stages.
    assert [row["step"] for row in rows(workdir)] == [112, 128, 144]
    assert (workdir / "curve.png").exists() and (workdir / "videos" / "student.mp4").exists()
    students = [load_student(place) for place in places]
    assert [student.network.observation for student in students] == ["state", "state", "rgb"]

    label, refine, distil = (newest_checkpoint(place / "checkpoints") for place in places)
    # The frames that the VLA labelled are kept once, for both of the others.
    frames, states, labels = map(np.asarray, read_replay(label, "frames", "states", "labels").values())
    assert frames.shape == (32, 40, 40, 3) and frames.std() > 0
    replayed = read_replay(refine, "states", "labels")
    # The refining stage keeps fewer of them: the newest.
    np.testing.assert_array_equal(replayed["states"], states[-24:])
    np.testing.assert_array_equal(replayed["labels"], labels[-24:])
    kept, relabelled = map(np.asarray, read_replay(distil, "frames", "labels").values())
    np.testing.assert_array_equal(kept[:32], frames)
    # For the student they carry the labels of the expert.
    expert = students[1]
    mean = expert.network.apply(expert.params, None, states, method="mean_action")
    relabelled = relabelled[:32, 0]
    np.testing.assert_allclose(relabelled, np.clip(mean, -1, 1), atol=1e-5)
    assert np.abs(relabelled - labels[:, 0]).max() > 1e-2
    assert said.count("Actions rest in dimensions 4, 5, 6: no label moved there (distill.still).") == 2
    # The VLA never turns the gripper: expert and student do not either, by noise or by what they learn.
    assert not labels[:, 0, 3:6].any() and (np.ptp(labels[:, 0], axis=0)[[0, 1, 2, 6]] > 0.01).all()
    for student in students[1:]:
        assert not np.asarray(student.params["params"]["actor"]["output"]["kernel"])[:, 3:6].any()
        resting = np.asarray(student.params["params"]["log_std"]) < -10
        np.testing.assert_array_equal(resting, [False, False, False, True, True, True, False])
    # The critic learnt first, while the policy rested.
    assert [row["train/distill_coef"] > 0 for row in rows(workdir / "refine")] == [False, True, True, True]


@pytest.mark.slow
def test_killed_in_every_stage_it_is_the_same_run(whole, tmp_path):
    expected, _ = whole
    workdir = tmp_path / "killed"
    for stage in ("label", "refine", ""):
        process = subprocess.Popen(
            **command(workdir), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        metrics, deadline = workdir / stage / "metrics.jsonl", time.monotonic() + 600
        while not (metrics.exists() and metrics.read_text().count("\n") >= 1):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (workdir / stage / "results.json").exists()
    outcome = subprocess.run(**command(workdir), capture_output=True, timeout=900)
    assert outcome.returncode == 0, outcome.stderr
    for place in ("label", "refine", ""):
        assert rows(workdir / place) == rows(expected / place), place
        newest = [newest_checkpoint(run / place / "checkpoints") for run in (expected, workdir)]
        jax.tree.map(np.testing.assert_array_equal, *(read_part(path / "state", "learner") for path in newest))
        jax.tree.map(np.testing.assert_array_equal, *(read_replay(path, "labels", "count") for path in newest))


@pytest.mark.slow
def test_ppd_keeps_several_labels_of_a_frame_for_its_refinement(tmp_path):
    """Seen through the teacher's own camera: frames that are none of the student's."""
    short = {"total_steps": 16, "stages.label.total_steps": 16, "stages.refine.total_steps": 16}
    others = {"algorithm": "ppd", "distill.num_samples": 3, "eval.video_episodes": 0, "teacher.eval_episodes": 0}
    others |= short | {"stages.refine.ppo.critic_first": 0}
    others |= {"teacher.view": "own", "env.camera.eye_offset": "(0.0,-0.3,0.0)"}
    flags = [f"--config.{name}={value}" for name, value in others.items()]
    outcome = subprocess.run(**command(tmp_path / "run", *flags), capture_output=True, timeout=900)
    assert outcome.returncode == 0, outcome.stderr
    newest = [newest_checkpoint(tmp_path / "run" / stage / "checkpoints") for stage in ("label", "refine", "")]
    kept = [np.asarray(read_replay(path, "labels")["labels"]) for path in newest]
    assert [labels.shape[1:] for labels in kept] == [(3, 7), (3, 7), (1, 7)]
    np.testing.assert_array_equal(kept[1][:16], kept[0][:16])
    counts = [int(read_replay(path, "count")["count"]) for path in newest]
    assert counts == [16, 16, 16]
    assert kept[0][:16].std(axis=1).max() > 0.01
    # The student's own labels begin with the stage: where it rests those of the expert say that were made elsewhere.
    assert resting(read_part(newest[2] / "state", "learner", "params")) == [4, 5, 6]
    (row,) = rows(tmp_path / "run" / "refine")
    assert row["train/replay_loss"] > 0 and row["train/distill_coef"] > 0
    (row,) = rows(tmp_path / "run" / "label")
    assert row["train/distill_loss"] > 1 and row["train/pg_loss"] == 0


@pytest.mark.slow
def test_first_stages_are_taken_from_a_run_where_they_are_the_same(whole, tmp_path):
    """Another student imitates the same expert."""
    source, _ = whole
    others = (f"--first_stages={source}", "--config.student.encoder=nature", "--config.total_steps=16")
    outcome = subprocess.run(**command(tmp_path / "run", *others), capture_output=True, timeout=900)
    assert outcome.returncode == 0, outcome.stderr
    for stage in ("label", "refine"):
        assert f"Stage {stage} is that of {source / stage}." in " ".join(outcome.stdout.split())
        assert (tmp_path / "run" / stage / "metrics.jsonl").samefile(source / stage / "metrics.jsonl")
    results, there = (json.loads((run / "results.json").read_text()) for run in (tmp_path / "run", source))
    assert [results["stages"][stage] for stage in ("label", "refine")] == [
        there["stages"][stage] for stage in ("label", "refine")
    ]
    assert (results["stages"]["distil"]["steps"], results["teacher"]) == (16, there["teacher"])
    # They are the new run's own: it can be evaluated, and started again, without the other.
    assert load_student(tmp_path / "run" / "refine").network.observation == "state"
    assert subprocess.run(**command(tmp_path / "run", *others[1:]), capture_output=True, timeout=300).returncode == 0


def finished(stages, *names):
    """Run directories of stages that have finished, as far as their configs and names go."""
    for stage in stages:
        open_run(stage.directory, stage.config, TRAINING)
        if stage.name in names:
            (stage.directory / "results.json").write_text("{}")


def test_stages_that_are_not_the_same_are_not_taken(tmp_path):
    config = resolved()
    source = tmp_path / "source"
    finished(plan(config, source)[:-1], "label", "refine")

    def taken(name, **changes):
        said = []
        take_over(plan(resolved(**changes), tmp_path / name), source, said.append)
        return sorted(path.name for path in (tmp_path / name).glob("*")), said

    assert taken("encoder", **{"student.encoder": "nature"})[0] == ["label", "refine"]
    assert taken("same") == (
        ["label", "refine"],
        [f"Stage {name} is that of {source / name}." for name in ("label", "refine")],
    )
    places, (of_label, of_refine) = taken("control", **{"algorithm": "rpd_l1"})
    assert places == ["label"] and of_label == f"Stage label is that of {source / 'label'}."
    reason = "is of another config (algorithm: 'rpd_mse' there, 'rpd_l1' now)."
    assert of_refine == f"Stage refine is not taken: {source / 'refine'} {reason}"
    # A refining stage with the same settings began from other labels: it is another one.
    places, (of_label,) = taken("other_labels", **{"stages.label.total_steps": 8192})
    assert places == [] and "total_steps: 32768 there, 8192 now" in of_label
    # What a run has begun itself stays.
    finished(plan(config, tmp_path / "own")[:1])
    assert taken("own") == (["label", "refine"], [f"Stage refine is that of {source / 'refine'}."])
    assert not (tmp_path / "own" / "label" / "results.json").exists()
    (source / "refine" / "results.json").unlink()
    places, (_, of_refine) = taken("going_on")
    assert places == ["label"] and of_refine == f"Stage refine is not taken: {source / 'refine'} has not finished."


def test_runs_without_first_stages_are_refused(tmp_path):
    with pytest.raises(UserError, match="--first_stages is for runs of several stages: leave it out"):
        check_first_stages(resolved(refine="pixels", profile="cpu"), tmp_path)
    with pytest.raises(UserError, match="has no first stages: give the directory of a run with refine=state"):
        check_first_stages(resolved(), tmp_path)
