"""A fine-tuned model is recommended as a teacher only if train.py can use it; otherwise the reason is said."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.finetune_octo import get_config
from octo_teacher.finetuning.adaptation import adapt_model
from octo_teacher.finetuning.demos import actions_of, closing_line, read_training_demos, why_no_teacher
from octo_teacher.octo_model import OctoModel
from rpd_jax.errors import UserError
from rpd_jax.run.console import Console

sys.path.append(str(Path(__file__).parents[1] / "data"))
from demo_files import episode, write_lerobot, write_maniskill, write_rlds


def last_words(config, micro_octo):
    datasets = read_training_demos(config, {"primary": 32}, Console())
    model, _ = adapt_model(
        OctoModel.load_pretrained(micro_octo),
        jax.random.key(0),
        camera_sizes={"primary": 32},
        window=1,
        action_horizon=4,
        action_dim=datasets[0][1][0].actions.shape[1],
    )
    actions = np.concatenate([demo.actions for demo in datasets[0][1]])
    mask = [True] * (actions.shape[1] - 1) + [False]
    statistics = {"mean": actions.mean(0).tolist(), "std": actions.std(0).tolist(), "mask": mask}
    model = model.replace(dataset_statistics={"own": {"action": statistics}})
    return closing_line(config, Path("my runs/model"), why_no_teacher(config, datasets, model))


@pytest.fixture
def config(tmp_path):
    config = get_config()
    config.cache = str(tmp_path / "cache")
    return config


def uniform(numbers, bound=1.0):
    return np.random.default_rng(0).uniform(-bound, bound, (3, numbers)).astype(np.float32)


def test_demos_in_our_convention_are_recommended_with_a_quoted_path(tmp_path, config, micro_octo):
    config.demos = str(write_maniskill(tmp_path / "demos.h5", [uniform(7)]))
    expected = "The model is in my runs/model; use it with --config.teacher.checkpoint='my runs/model'."
    assert last_words(config, micro_octo) == expected
    config.modality = "image"
    assert "cannot be a teacher of train.py: it knows tasks by goal images only" in last_words(config, micro_octo)


def test_demos_of_which_nothing_is_known_are_recommended_under_that_condition(tmp_path, config, micro_octo):
    config.demos = str(write_rlds(tmp_path / "toy", [[episode(uniform(7))]]))
    words = last_words(config, micro_octo)
    assert "--config.teacher.checkpoint='my runs/model' if the actions of" in words
    assert "toy are pd_ee_delta_pose's, which the files do not say" in words


@pytest.mark.parametrize(
    ("actions", "names", "reason"),
    [
        (uniform(6), None, "they have 6 numbers, pd_ee_delta_pose's 7"),
        (uniform(8), None, "they have 8 numbers, pd_ee_delta_pose's 7"),
        (uniform(7, 40.0), None, "pd_ee_delta_pose's from -1 to 1"),
        (uniform(7), [f"joint_{i}" for i in range(7)], "which are joints"),
    ],
)
def test_other_actions_are_not_recommended(tmp_path, config, micro_octo, actions, names, reason):
    config.demos = str(write_lerobot(tmp_path / "set", [actions], names=names))
    words = last_words(config, micro_octo)
    assert words.startswith("The model is in my runs/model; it cannot be a teacher of train.py: the actions of")
    assert reason in words and "--config.teacher.checkpoint" not in words


def test_a_gripper_that_was_converted_is_told_as_signed(tmp_path, config):
    """Half open and open, 0.2 and 1 after conversion: a teacher that looked at this range would convert it again."""
    actions = uniform(7)
    actions[:, 6] = [0.6, 1, 1]
    config.demos = str(write_lerobot(tmp_path / "set", [actions], names=["x", "y", "z", "r", "p", "w", "gripper_open"]))
    told = actions_of(read_training_demos(config, {"primary": 8}, Console()))
    assert told == {"control_mode": None, "gripper": "signed", "unlike": ""}
    config.gripper = "as_is"
    assert actions_of(read_training_demos(config, {"primary": 8}, Console()))["gripper"] is None


def test_a_model_without_a_camera_is_not_recommended(tmp_path, config, micro_octo):
    config.demos = str(write_maniskill(tmp_path / "demos.h5", [uniform(7)]))
    datasets = read_training_demos(config, {"primary": 32}, Console())
    model = OctoModel.load_pretrained(micro_octo)
    model.example_batch["observation"].pop("image_primary")
    assert "camera" in why_no_teacher(config, datasets, model)


def test_every_dataset_is_read_and_what_is_left_out_is_printed(tmp_path, config, capsys):
    first = write_maniskill(tmp_path / "one.h5", [uniform(7)] * 2, entries=[{"success": False}])
    second = write_rlds(tmp_path / "toy", [[episode(uniform(7))]])
    config.demos = f"{first}, {second}"
    datasets = read_training_demos(config, {"primary": 8}, Console())
    assert [len(demos) for _, demos in datasets] == [1, 1]
    assert "training leaves out 1 of 2 episodes, which failed (traj_0)" in capsys.readouterr().out
    config.demos = " , "
    with pytest.raises(UserError, match=r"config\.demos is empty"):
        read_training_demos(config, {"primary": 8}, Console())
