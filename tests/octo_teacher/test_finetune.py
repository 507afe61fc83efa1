"""Fine-tuning learns, resumes with the same batches and losses, and writes a checkpoint that loads as a teacher."""

import json

import h5py
import jax
import numpy as np
import pytest

from configs.finetune_octo import get_config
from octo_teacher.finetune import finetune
from octo_teacher.octo_model import OctoModel
from octo_teacher.octo_nano import TOKENS, create_octo_nano
from octo_teacher.teacher import OctoTeacher
from rpd_jax.errors import UserError
from rpd_jax.tasks import TASKS


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """Four episodes whose frames are bright where the action's x is positive, dark where it is negative."""
    path = tmp_path_factory.mktemp("demos") / "demos.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for index in range(4):
            actions = np.zeros((6, 7), np.float32)
            actions[:, 0] = rng.choice([-0.5, 0.5], size=6)
            frames = np.repeat(np.where(actions[:, 0] > 0, 200, 50).astype(np.uint8), 128 * 128 * 3)
            frames = np.concatenate([frames.reshape(6, 128, 128, 3), np.zeros((1, 128, 128, 3), np.uint8)])
            file[f"traj_{index}/actions"] = actions
            file[f"traj_{index}/obs/sensor_data/human_camera/rgb"] = frames
    header = {"env_info": {"env_id": "PushCube-v1"}, "episodes": [{"episode_id": i} for i in range(4)]}
    path.with_suffix(".json").write_text(json.dumps(header))
    return path


def make_config(path, /, **changes):
    config = get_config()
    config.demos = str(path)
    config.held_out = 0.25
    config.batch_size = 4
    config.optimizer.warmup_steps = 1
    config.log_every = 1
    config.steps, config.save_every, config.validate_every = 6, 3, 6
    config.update(changes)
    return config


def read_losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def finished(demos, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    finetune(make_config(demos), workdir)
    return workdir


def test_an_interrupted_run_has_the_losses_of_an_uninterrupted_one(demos, finished, tmp_path, monkeypatch):
    import octo_teacher.finetune as module

    log, killed = module._log, []

    def kill_after_four(path, board, step, **metrics):
        log(path, board, step, **metrics)
        if step == 4 and not killed:
            killed.append(step)
            raise RuntimeError("killed")

    monkeypatch.setattr(module, "_log", kill_after_four)
    with pytest.raises(RuntimeError, match="killed"):
        finetune(make_config(demos), tmp_path)
    finetune(make_config(demos), tmp_path)  # from the checkpoint of step 3
    losses, expected = read_losses(tmp_path), read_losses(finished)
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(list(losses.values()), list(expected.values()), rtol=1e-5)
    models = [OctoModel.load_pretrained(workdir / "model", 6) for workdir in (tmp_path, finished)]
    for ours, theirs in zip(*(jax.tree.leaves(model.params) for model in models), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_result_loads_as_a_teacher_with_the_demos_statistics(finished):
    teacher = OctoTeacher.load(finished / "model")
    rgb = np.zeros((2, 128, 128, 3), np.uint8)
    actions = np.asarray(teacher.act(rgb, "push the cube away from the robot base", jax.random.key(0), 3))
    assert actions.shape == (3, 2, 7) and np.abs(actions).max() <= 1.0
    # y, z and rotation never change in the demos, so that whatever the network says is scaled by zero
    np.testing.assert_allclose(actions[..., 1:6], 0.0, atol=1e-6)
    statistics = teacher.model.dataset_statistics["maniskill"]
    assert statistics["num_trajectories"] == 3 and statistics["num_transitions"] == 18


def test_t5_stays_as_it_was_and_the_transformer_and_head_move(finished):
    config = get_config()
    before = create_octo_nano(jax.random.key(config.seed), finished / "again").params
    after = OctoModel.load_pretrained(finished / "model").params
    moved = jax.tree_util.tree_map_with_path(
        lambda path, a, b: ("hf_model" in str(path), bool(np.any(np.asarray(a) != np.asarray(b)))), before, after
    )
    leaves = jax.tree_util.tree_leaves_with_path(moved, is_leaf=lambda leaf: isinstance(leaf, tuple))
    assert not any(changed for _, (is_t5, changed) in leaves if is_t5)
    still = [jax.tree_util.keystr(path) for path, (is_t5, changed) in leaves if not is_t5 and not changed]
    # Frames of one colour are zero after the stem's normalisation, so that parts of it get no gradient here.
    assert [name for name in still if "SmallStem" not in name] == []


def test_octo_nano_is_small_and_reads_all_instructions(finished):
    model = OctoModel.load_pretrained(finished / "model")
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
        ({"model": "octo-giant"}, "config.model='octo-giant'"),
        ({"demos": "nowhere.h5"}, "nowhere.json is missing"),
        ({"init": "nowhere"}, "no checkpoint folder nowhere"),
    ],
)
def test_mistakes_are_named(demos, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        finetune(make_config(demos, **changes), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_workdir_of_another_config_is_refused(demos, finished):
    with pytest.raises(UserError, match="batch_size: 4 there, 8 here"):
        finetune(make_config(demos, batch_size=8), finished)
