"""Fine-tuning learns, resumes with the same batches and losses, and writes a checkpoint that loads as a teacher."""

import contextlib
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest

from configs.finetune_octo import get_config
from octo_teacher.action_statistics import DEMOS_ACTIONS
from octo_teacher.finetune import FINE_TUNING, FineTuning, finetune
from octo_teacher.finetuning.octo_nano import TOKENS
from octo_teacher.finetuning.train_step import Devices
from octo_teacher.octo_model import OctoModel
from octo_teacher.teacher import OctoTeacher
from rpd_jax.errors import UserError
from rpd_jax.run.console import Console
from rpd_jax.run.directory import check_run
from rpd_jax.run.ending import Diverged
from rpd_jax.run.stop import Interrupted
from rpd_jax.tasks import TASKS

sys.path.append(str(Path(__file__).parent / "data"))
from demo_files import write_lerobot


@pytest.fixture(scope="module")
def settings(micro_octo, bright_demos, tmp_path_factory):
    """What the runs here share."""
    cache = tmp_path_factory.mktemp("cache")
    return {"init": str(micro_octo), "demos": str(bright_demos), "cache": str(cache)}


def make_config(settings, /, **changes):
    config = get_config()
    config.held_out = 0.25
    config.batch_size = 4
    config.optimizer.warmup_steps = 1
    config.log_every = 1
    config.steps, config.save_every, config.validate_every = 6, 3, 6
    config.update(settings | changes)
    return config


def read_log(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def read_losses(workdir):
    return {line["step"]: line["loss"] for line in read_log(workdir) if "loss" in line}


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    finetune(make_config(settings), workdir)
    return workdir


class Killed(BaseException):
    """Nothing handles it: what is on disk is what a kill would leave."""


class KilledInItsFifthStep(FineTuning):
    def _train(self):
        if self.step == 4:
            raise Killed
        return super()._train()


class KilledBeforeItsLastExport(FineTuning):
    def _export(self):
        if self.step == 6:
            raise Killed
        super()._export()


class StoppedInItsMeasurementOfStep3(FineTuning):
    def _measure(self, row):
        super()._measure(row)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            self.stop.check()


def go(kind, config, workdir):
    with contextlib.ExitStack() as stack:
        kind(config, check_run(workdir, config, FINE_TUNING), Devices(1), Console(), stack).run()


def assert_same_run(workdir, finished):
    log = read_log(workdir)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    for ours, theirs in zip(log, read_log(finished), strict=True):
        for name in ("loss", "grad_norm", "val_loss", "val_action_mse"):
            assert ours.get(name) == theirs.get(name), (ours["step"], name)
    models = [OctoModel.load_pretrained(folder / "model", 6) for folder in (workdir, finished)]
    jax.tree.map(np.testing.assert_array_equal, *(model.params for model in models))


@pytest.mark.parametrize(
    ("place", "workers"),
    [
        (None, 1),
        ({"next_index": 3}, 0),
        ({"batches": {"next_index": 3}, "row": None, "losses": []}, 2),
    ],
)
def test_a_run_that_was_killed_continues_as_if_it_had_not_been(settings, finished, tmp_path, place, workers):
    """Whatever the worker processes, also one of an older version, whose checkpoints held Grain's place in the data."""
    with pytest.raises(Killed):
        go(KilledInItsFifthStep, make_config(settings), tmp_path)
    if place is not None:
        (file,) = (path for path in (tmp_path / "checkpoints/3/data").rglob("*") if "losses" in path.read_text())
        file.write_text(json.dumps(place))
    finetune(make_config(settings, data_workers=workers), tmp_path)
    assert_same_run(tmp_path, finished)


def test_a_run_that_was_stopped_in_a_measurement_continues_as_if_it_had_not_been(settings, finished, tmp_path, capsys):
    with pytest.raises(Interrupted):
        go(StoppedInItsMeasurementOfStep3, make_config(settings, save_every=10), tmp_path)
    assert "SIGTERM: saved after step 3; the same command continues." in capsys.readouterr().out
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2], "the row of step 3 waits in the checkpoint"
    with pytest.raises(Killed):
        go(KilledInItsFifthStep, make_config(settings, save_every=10), tmp_path)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4]
    finetune(make_config(settings, save_every=10), tmp_path)
    assert_same_run(tmp_path, finished)


def test_a_model_that_a_kill_or_a_full_disk_cut_short_is_written_again(settings, finished, tmp_path):
    with pytest.raises(Killed):
        go(KilledBeforeItsLastExport, make_config(settings), tmp_path)
    model = tmp_path / "model"
    assert [path.name for path in model.iterdir() if path.name.isdigit()] == ["3"]
    assert finetune(make_config(settings), tmp_path) == model
    assert_same_run(tmp_path, finished)
    for file in ("6/default/checkpoint", "config.json"):
        (model / file).write_bytes((model / file).read_bytes()[:100])
    (model / ".6-abcdefg").mkdir()
    finetune(make_config(settings), tmp_path)
    assert_same_run(tmp_path, finished)
    assert not (model / ".6-abcdefg").exists()


def test_the_newest_checkpoints_and_models_are_kept(settings, tmp_path):
    finetune(make_config(settings, save_every=1, keep=2), tmp_path)
    for folder in ("checkpoints", "model"):
        kept = sorted(path.name for path in (tmp_path / folder).iterdir() if path.name.isdigit())
        assert kept == ["5", "6"], folder


def test_a_run_whose_parameters_diverge_ends_with_its_last_good_checkpoint(settings, tmp_path):
    config = make_config(settings, save_every=1, steps=60, log_every=60)
    # Each step multiplies the kernels by -99.
    config.optimizer.learning_rate, config.optimizer.weight_decay = 1.0, 100.0
    with pytest.raises(Diverged, match=r"were not finite; the last good checkpoint, of step \d, is kept in") as caught:
        finetune(config, tmp_path)
    assert caught.value.status == 1
    steps = sorted(int(path.name) for path in (tmp_path / "model").iterdir() if path.name.isdigit())
    assert f"of step {steps[-1]}, is kept" in str(caught.value) and len(steps) == 2
    params = OctoModel.load_pretrained(tmp_path / "model").params
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())[-1] == str(
        steps[-1]
    )


class SeesItsSteps(FineTuning):
    """Keeps what each step measured."""

    def _train(self):
        try:
            return super()._train()
        finally:
            self.log_of_steps[self.step] = self.metrics


def test_the_step_that_diverged_is_named_soon_after_it_though_nothing_is_due(settings, tmp_path):
    config = make_config(settings, save_every=300, steps=300, log_every=300, validate_every=300)
    config.optimizer.learning_rate, config.optimizer.weight_decay = 1.0, 100.0
    SeesItsSteps.log_of_steps = log = {}
    with pytest.raises(Diverged, match="nothing was saved before") as caught:
        go(SeesItsSteps, config, tmp_path)
    bad = {step: [name for name in ("loss", "grad_norm") if not np.isfinite(log[step][name])] for step in log}
    first = min(step for step, names in bad.items() if names)
    assert str(caught.value).startswith(f"The {' and the '.join(bad[first])} of step {first} were not finite")
    assert max(log) < 100
    assert not list((tmp_path / "model").glob("*")) and not list((tmp_path / "checkpoints").glob("[0-9]*"))
    assert read_log(tmp_path) == []


@pytest.mark.parametrize("small_disk", ["6m"], indirect=True)
def test_a_full_disk_gives_one_sentence_and_the_same_command_continues(settings, finished, small_disk, fill):
    workdir = small_disk / "run"
    with pytest.raises(Killed):
        go(KilledInItsFifthStep, make_config(settings), workdir)
    filler = fill(small_disk)
    sentence = "No space left on device.: make room on the disk and run the same command again."
    with pytest.raises(UserError, match=sentence):
        finetune(make_config(settings), workdir)
    filler.unlink()
    finetune(make_config(settings), workdir)
    assert_same_run(workdir, finished)


def test_the_result_loads_as_a_teacher_with_the_demos_statistics(finished):
    teacher = OctoTeacher.load(finished / "model")
    rgb = np.zeros((2, 32, 32, 3), np.uint8)
    actions = np.asarray(teacher.act(rgb, "push the cube away from the robot base", jax.random.key(0), 3))
    assert actions.shape == (3, 2, 7) and np.abs(actions).max() <= 1.0
    # y, z and rotation never change in the demos, so that whatever the network says is scaled by zero
    np.testing.assert_allclose(actions[..., 1:6], 0.0, atol=1e-6)
    statistics = teacher.model.dataset_statistics["maniskill"]
    assert statistics["num_trajectories"] == 3 and statistics["num_transitions"] == 18


def test_a_model_of_other_actions_says_so_and_is_no_teacher(settings, finished, tmp_path):
    """Seven numbers, but joints: only the demos tell, and they are not there any more where train.py starts."""
    config = json.loads((finished / "model" / "config.json").read_text())
    assert config[DEMOS_ACTIONS] == {"control_mode": "pd_ee_delta_pose", "gripper": "signed", "unlike": ""}
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 5, 7)).astype(np.float32)
    demos = write_lerobot(tmp_path / "joints", list(actions), names=[f"joint_{i}" for i in range(7)])
    finetune(make_config(settings, demos=str(demos), held_out=0.0, steps=2, validate_every=9), tmp_path / "run")
    shutil.rmtree(demos)
    model = tmp_path / "run" / "model"
    sentence = rf"^{re.escape(str(model))} cannot be a teacher of the tasks, .* which are joints: fine-tune it on"
    with pytest.raises(UserError, match=sentence):
        OctoTeacher.load(model)
    # What is fine-tuned from it on demos of the tasks is one.
    finetune(make_config(settings, init=str(model), steps=2, validate_every=9), tmp_path / "mended")
    OctoTeacher.load(tmp_path / "mended" / "model")


def changed_parameters(before, after):
    """Names of the parameters that differ, and of those that do not."""
    before, after = (jax.tree_util.tree_leaves_with_path(model.params) for model in (before, after))
    names = {True: [], False: []}
    for (path, a), (_, b) in zip(before, after, strict=True):
        names[bool(np.any(np.asarray(a) != np.asarray(b)))].append(jax.tree_util.keystr(path))
    return names[True], names[False]


def test_t5_stays_as_it_was_and_everything_else_moves(micro_octo, finished):
    changed, same = changed_parameters(
        OctoModel.load_pretrained(micro_octo), OctoModel.load_pretrained(finished / "model")
    )
    assert not any("hf_model" in name for name in changed)
    assert [name for name in same if "hf_model" not in name] == []


def test_held_out_episodes_are_validated_and_the_waiting_is_measured(finished):
    log = read_log(finished)
    validated = [line for line in log if "val_loss" in line]
    assert [line["step"] for line in validated] == [6] and validated[0]["val_action_mse"] > 0
    assert all(0.0 <= line["data_wait_share"] <= 1.0 for line in log if "data_wait_share" in line)
    assert sum("frames_per_second" in line for line in log) == 5  # not of the first step, which compiles


def test_another_chunk_window_and_way_of_telling_from_a_checkpoint(settings, finished, tmp_path, capsys):
    config = make_config(
        settings,
        init=str(finished / "model"),
        mode="head_only",
        action_horizon=2,
        window=11,
        modality="multimodal",
        precision="bfloat16",
        accumulate=2,
        ema=0.5,
        steps=2,
    )
    finetune(config, tmp_path)
    out = capsys.readouterr().out
    for note in ("action_horizon 4 -> 2", "window 10 -> 11", "new weights in heads_action"):
        assert note in out
    assert "frames/s" in out and "of the time waiting for data" in out
    model = OctoModel.load_pretrained(tmp_path / "model")
    goal = np.full((1, 32, 32, 3), 200, np.uint8)
    observations = {
        "image_primary": np.zeros((1, 11, 32, 32, 3), np.uint8),
        "timestep_pad_mask": np.ones((1, 11), bool),
    }
    assert model.sample_actions(observations, model.create_tasks(goals={"image_primary": goal})).shape == (1, 2, 7)
    before, after = (
        OctoModel.load_pretrained(folder / "model").params["octo_transformer"] for folder in (finished, tmp_path)
    )
    resized = {"obs_primary_pos_embedding", "readout_action_pos_embedding", "obs_task_language_pos_embedding"}
    for name in set(before) - resized:
        jax.tree.map(np.testing.assert_array_equal, before[name], after[name])


@pytest.mark.slow
def test_octo_nano_from_scratch_is_small_reads_all_instructions_and_is_tried_in_the_simulator(settings, tmp_path):
    config = make_config(settings, init="scratch", steps=2, held_out=0.0)
    config.eval.every, config.eval.episodes, config.eval.num_envs = 2, 1, 1
    finetune(config, tmp_path)
    log = read_log(tmp_path)
    assert [line["step"] for line in log if "success/PushCube-v1" in line] == [2]
    model = OctoModel.load_pretrained(tmp_path / "model")
    assert sum(leaf.size for leaf in jax.tree.leaves(model.params)) < 3_000_000
    instructions = [task.instruction for task in TASKS.values()]
    ids = model.text_processor.encode(instructions)["input_ids"]
    assert ids.shape == (8, TOKENS) and len(np.unique(ids, axis=0)) == 8
    unknown = 2
    assert not (ids == unknown).any()
    assert model.text_processor.encode(["juggle the cube"])["input_ids"][0, 0] == unknown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "config.steps=0"),
        ({"held_out": 1.0}, "config.held_out=1.0"),
        ({"init": "scratch", "model": "octo-giant"}, "config.model='octo-giant'"),
        ({"demos": "nowhere.h5"}, "nowhere.json is missing"),
        ({"init": "nowhere"}, "no checkpoint folder nowhere"),
        ({"mode": "tail_only"}, "config.mode='tail_only'"),
        ({"modality": "smell"}, "config.modality='smell'"),
        ({"precision": "float8"}, "config.precision='float8'"),
        ({"batch_size": 3, "accumulate": 2}, "config.batch_size=3 is no multiple of config.accumulate=2"),
        ({"devices": 99}, "config.devices=99: this machine has"),
        ({"ema": 1.0}, "config.ema=1.0"),
    ],
)
def test_mistakes_are_named(settings, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        finetune(make_config(settings, **changes), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_workdir_of_another_config_is_refused(settings, finished):
    with pytest.raises(UserError, match="batch_size: 4 there, 8 now"):
        finetune(make_config(settings, batch_size=8), finished)


def test_instructions_that_the_tokenizer_cannot_tell_apart_are_refused_or_said(settings, tmp_path, capsys):
    actions = [np.random.default_rng(seed).uniform(-1, 1, (5, 7)).astype(np.float32) for seed in range(4)]
    told = ("fold the towel", "Fold the  towel", "open the drawer", "push the cube")
    demos = write_lerobot(tmp_path / "demos", actions, tasks=told)
    changes = {"demos": str(demos), "held_out": 0.0, "steps": 2, "validate_every": 9}
    what = "The tokenizer of config.init={!r} cannot tell 'fold the towel' from 'open the drawer': "
    with pytest.raises(UserError, match=f"{what.format('scratch')}octo-nano knows the words of the tasks"):
        finetune(make_config(settings, init="scratch", **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
    finetune(make_config(settings, **changes), tmp_path / "other")
    assert f"{what.format(settings['init'])}the model will take them for one." in capsys.readouterr().out


@pytest.mark.parametrize("change", ["more", "others"])
def test_a_run_whose_demos_have_changed_is_refused(settings, finished, tmp_path, change):
    """Whether there are more of them or other actions in as many steps."""
    workdir, demos = shutil.copytree(finished, tmp_path / "run"), tmp_path / "demos.h5"
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    for ending in (".h5", ".json"):
        shutil.copy(Path(settings["demos"]).with_suffix(ending), demos.with_suffix(ending))
    config = make_config(settings, demos=str(demos))
    written = json.loads((workdir / "config.json").read_text()) | {"demos": str(demos)}
    (workdir / "config.json").write_text(json.dumps(written))
    finetune(config, workdir)  # the same content under another name: nothing is left to do
    before[workdir / "config.json"] = (workdir / "config.json").read_bytes()
    with h5py.File(demos, "a") as file:
        if change == "more":
            file.copy("traj_0", "traj_4")
            header = json.loads(demos.with_suffix(".json").read_text())
            header["episodes"].append({"episode_id": 4})
            demos.with_suffix(".json").write_text(json.dumps(header))
        else:
            for name in file:
                file[name]["actions"][:] *= 0.5
    what = "with other actions" if change == "others" else "18 steps of 3 episodes to train on then, 24 steps of 4 now"
    with pytest.raises(UserError, match=rf"no longer those that it began with \({what}\): restore config.demos='.*'"):
        finetune(config, workdir)
    for path in ("statistics.json", "metrics.jsonl", "config.json"):
        assert (workdir / path).read_bytes() == before[workdir / path]


def test_a_run_of_before_some_fields_is_continued(settings, tmp_path):
    """Failed and overlong episodes were left out, and grippers taken as they were, before there were fields for it."""
    config = make_config(settings)
    older = json.loads(config.to_json())
    for name in ("only_successful", "gripper", "keep"):
        del older[name]
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert check_run(tmp_path, config, FINE_TUNING) == tmp_path
    config.only_successful = False
    with pytest.raises(UserError, match="only_successful: True there, False now"):
        check_run(tmp_path, config, FINE_TUNING)
