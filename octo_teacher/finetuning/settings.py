"""All checks of a fine-tuning config: what each field may be, and what fields ask of one another."""

from collections.abc import Callable

from ml_collections import ConfigDict

from octo_teacher.data.actions import GRIPPERS
from octo_teacher.data.chunks import MODALITIES
from octo_teacher.finetuning.train_step import MODES
from octo_teacher.teacher import PRECISIONS
from rpd_jax.command.checks import Check, check_fields, flag, number, one_of, several, text, whole
from rpd_jax.errors import UserError
from rpd_jax.tasks import find_task

_CAMERA = text(rule="must name a camera of the demos, or '' for their only one.")
_OTHER_CAMERA = text(or_none=True)
_STEPS = whole(1, 10**9)
_FACTORS = several(number(above=0, high=10), "must be two factors above 0, such as (0.9, 1.1).", length=2)
_AREAS = several(number(above=0, high=1), "must be two areas in (0, 1], such as (0.8, 1.0).", length=2)

SETTINGS: dict[str, Check] = {
    "seed": whole(0, 2**32 - 1),
    "init": text(empty=False),  # "scratch" or a checkpoint, which is looked for when it is loaded
    "model": text(empty=False),  # see RELATIONS
    "mode": one_of(*MODES),
    "frozen": text(),
    "window": whole(1, 1000),
    "action_horizon": whole(0, 1000),
    "modality": one_of(*MODALITIES),
    "demos": text(empty=False),
    "cameras.primary": _CAMERA,
    "cameras.wrist": _OTHER_CAMERA,
    "new_camera_size": whole(1, 4096),
    "instruction": text(),
    "split": text(empty=False),
    "only_successful": flag(),
    "gripper": one_of(*GRIPPERS),
    "dataset_name": text(empty=False),
    "held_out": number(0, below=1, rule="must be in [0, 1)."),
    "cache": text(),
    "batch_size": whole(1, 10**6),
    "accumulate": whole(1, 10**6),
    "steps": _STEPS,
    "precision": one_of(*PRECISIONS),
    "ema": number(0, below=1, rule="must be in [0, 1)."),
    "devices": whole(0, 10**6),
    "optimizer.learning_rate": number(0, 1),
    "optimizer.warmup_steps": whole(0, 10**9),
    "optimizer.weight_decay": number(0, 100),
    "optimizer.clip_norm": number(1e-6, 10**6),
    "optimizer.freeze_t5": flag(),
    "augment.enabled": flag(),
    "augment.crop_scale": _AREAS,
    "augment.crop_ratio": _FACTORS,
    "augment.shift": whole(0, 4096),
    "augment.brightness": number(0, 1),
    "augment.contrast": _FACTORS,
    "augment.saturation": _FACTORS,
    "augment.hue": number(0, 0.5),
    "eval.every": whole(0, 10**9),
    "eval.tasks": text(),
    "eval.episodes": whole(1, 10**6),
    "eval.num_envs": whole(1, 65_536),
    "eval.seed": whole(0, 2**31 - 1),
    "eval.mesh_detail": number(above=0, high=1, rule="must lie in (0, 1]; 1.0 draws every triangle."),
    "log_every": _STEPS,
    "validate_every": _STEPS,
    "save_every": _STEPS,
    "keep": whole(1, 10**6),
    "data_threads": whole(0, 1000),
    "data_workers": whole(0, 1000),
}

# What cannot be, and the sentence for it.
RELATIONS: tuple[tuple[Callable[[ConfigDict, int], bool], str], ...] = (
    (
        lambda c, _: c.init == "scratch" and c.model != "octo-nano",
        "config.model={c.model!r} cannot be trained from scratch: the allowed value is 'octo-nano'.",
    ),
    (
        lambda c, _: c.optimizer.warmup_steps >= c.steps,
        "config.optimizer.warmup_steps={c.optimizer.warmup_steps} must be less than config.steps={c.steps}.",
    ),
    (
        lambda c, devices: c.batch_size % (c.accumulate * devices) != 0,
        "config.batch_size={c.batch_size} is no multiple of config.accumulate={c.accumulate} times {devices} devices.",
    ),
    (
        lambda c, _: bool(c.eval.every) and not eval_tasks(c),
        "config.eval.every is set but config.eval.tasks is empty: name tasks, separated by commas.",
    ),
    *(
        (
            lambda c, _, name=name: c.augment[name][0] > c.augment[name][1],
            f"config.augment.{name}={{c.augment.{name}}} must not go down: write the lesser of the two first.",
        )
        for name in ("crop_scale", "crop_ratio", "contrast", "saturation")
    ),
)


def check_config(config: ConfigDict) -> None:
    """Raises UserError if a field cannot work on whatever machine.

    Args:
        config: as `configs.finetune_octo.get_config` makes it; may name more cameras.
    """
    cameras = {f"cameras.{name}": _OTHER_CAMERA for name in config.get("cameras", {})}
    check_fields(config, cameras | SETTINGS, prefix="config.")
    for name in eval_tasks(config):
        find_task(name, "config.eval.tasks")


def check_together(config: ConfigDict, num_devices: int) -> None:
    """Raises UserError if fields of a checked config contradict each other, or the devices that share each batch."""
    for is_wrong, sentence in RELATIONS:
        if is_wrong(config, num_devices):
            raise UserError(sentence.format(c=config, devices=num_devices))


def eval_tasks(config: ConfigDict) -> list[str]:
    """Names of the tasks on which the model is tried in the simulator."""
    return [name.strip() for name in config.eval.tasks.split(",") if name.strip()]
