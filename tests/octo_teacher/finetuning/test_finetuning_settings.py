"""Every field of a fine-tuning config has a check, and the configs that there are pass."""

import importlib
import math
from pathlib import Path

import pytest

from configs.finetune_octo import get_config
from octo_teacher.finetuning.settings import SETTINGS, check_config, check_together
from rpd_jax.command.wrong_flags import fields
from rpd_jax.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs"
WRONG = {
    "seed": -1,
    "mode": "tail_only",
    "modality": "smell",
    "held_out": 1.0,
    "ema": 1.0,
    "window": 0,
    "steps": 0,
    "keep": 0,
    "cameras.primary": None,
    "optimizer.learning_rate": -1e-3,
    "optimizer.clip_norm": 0.0,
    "optimizer.weight_decay": math.nan,
    "augment.crop_scale": (0.0, 1.0),
    "augment.contrast": (0.9,),
    "augment.hue": 2.0,
    "eval.episodes": 0,
    "data_workers": -1,
}


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS.glob("finetune_octo*.py")])
def test_every_field_has_a_check_and_the_configs_that_there_are_pass(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    assert {path for path, _ in fields(config)} == set(SETTINGS)
    check_config(config)
    check_together(config, 1)


@pytest.mark.parametrize(("field", "value"), WRONG.items())
def test_a_value_that_cannot_work_is_refused_by_name(field, value):
    config = get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=f"config.{field}="):
        check_config(config)


@pytest.mark.parametrize("name", ["crop_scale", "crop_ratio", "contrast", "saturation"])
def test_a_range_that_goes_down_is_refused(name):
    config = get_config()
    config.augment[name] = (0.8, 0.8)
    check_together(config, 1)
    config.augment[name] = (1.0, 0.8)
    check_config(config)
    with pytest.raises(UserError, match=rf"config\.augment\.{name}=\(1.0, 0.8\) must not go down: write the lesser of"):
        check_together(config, 1)


def test_a_config_may_name_more_cameras():
    config = get_config()
    config.cameras.third = "left"
    check_config(config)
