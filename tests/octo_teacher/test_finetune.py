"""Fine-tuning learns, resumes with the same batches and losses, and writes a checkpoint that loads as a teacher."""

import json

import jax
import numpy as np
import pytest

from configs.finetune_octo import get_config
from octo_teacher.finetune import finetune
from octo_teacher.finetuning.octo_nano import TOKENS
from octo_teacher.octo_model import OctoModel
from octo_teacher.teacher import OctoTeacher
from rpd_jax.errors import UserError
from rpd_jax.tasks import TASKS


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


def test_an_interrupted_run_has_the_losses_of_an_uninterrupted_one(settings, finished, tmp_path, monkeypatch):
    import octo_teacher.finetune as module

    log, killed = module._log, []

    def kill_after_four(path, board, step, **metrics):
        log(path, board, step, **metrics)
        if step == 4 and not killed:
            killed.append(step)
            raise RuntimeError("killed")

    monkeypatch.setattr(module, "_log", kill_after_four)
    with pytest.raises(RuntimeError, match="killed"):
        finetune(make_config(settings), tmp_path)
    finetune(make_config(settings), tmp_path)  # from the checkpoint of step 3
    losses, expected = read_losses(tmp_path), read_losses(finished)
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(list(losses.values()), list(expected.values()), rtol=1e-5)
    models = [OctoModel.load_pretrained(workdir / "model", 6) for workdir in (tmp_path, finished)]
    for ours, theirs in zip(*(jax.tree.leaves(model.params) for model in models), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_result_loads_as_a_teacher_with_the_demos_statistics(finished):
    teacher = OctoTeacher.load(finished / "model")
    rgb = np.zeros((2, 32, 32, 3), np.uint8)
    actions = np.asarray(teacher.act(rgb, "push the cube away from the robot base", jax.random.key(0), 3))
    assert actions.shape == (3, 2, 7) and np.abs(actions).max() <= 1.0
    # y, z and rotation never change in the demos, so that whatever the network says is scaled by zero
    np.testing.assert_allclose(actions[..., 1:6], 0.0, atol=1e-6)
    statistics = teacher.model.dataset_statistics["maniskill"]
    assert statistics["num_trajectories"] == 3 and statistics["num_transitions"] == 18


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
    with pytest.raises(UserError, match="batch_size: 4 there, 8 here"):
        finetune(make_config(settings, batch_size=8), finished)
