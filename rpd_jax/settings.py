"""Fills in the settings that depend on the machine, and refuses settings that cannot work."""

import difflib

import jax
from ml_collections import ConfigDict

from rpd_jax.errors import UserError
from rpd_jax.learning.losses import ALGORITHMS
from rpd_jax.run import wandb_log
from rpd_jax.tasks import find_task
from rpd_jax.teachers import teacher_names

_CHOICES = {
    "algorithm": tuple(ALGORITHMS),
    "env.reward_mode": ("sparse", "normalized_dense"),
    "env.backend": ("auto", "cpu", "gpu"),
    "student.observation": ("rgb", "rgb+state", "state"),
    "student.encoder": ("nature", "small"),
    "student.precision": ("float32", "bfloat16"),
    "teacher.precision": ("float32", "bfloat16"),
    "teacher.refresh": ("rollout", "epoch"),
    "teacher.overlap": ("auto", "on", "off"),
    "distill.schedule": ("constant", "cosine"),
}

# Whose checkpoints the profiles name.
_PROFILES_TEACHER = "octo"

_POSITIVE = (
    "total_steps",
    "env.num_envs",
    "env.image_size",
    "student.image_size",
    "ppo.rollout_steps",
    "ppo.update_epochs",
    "ppo.num_minibatches",
    "eval.every",
    "eval.final_episodes",
    "checkpoint.every",
    "checkpoint.keep",
)


def has_cuda() -> bool:
    """True if JAX sees a CUDA device."""
    return any(device.platform == "gpu" for device in jax.devices())


def resolve(config: ConfigDict) -> ConfigDict:
    """Returns a copy in which the profile has filled every open field; explicit values stay.

    Args:
        config: as `configs.default.get_config` makes it. Its `profiles` holds one nested dictionary per profile.

    Raises:
        UserError: an unknown profile, a value outside the allowed ones, or values that contradict each other.
    """
    config = ConfigDict(config.to_dict())
    profiles = config.profiles.to_dict()
    del config.profiles
    if config.profile == "auto":
        if has_cuda():
            config.profile = "paper"
        else:
            config.profile = "cpu_state" if config.student.observation == "state" else "cpu"
    _check_choice("profile", config.profile, tuple(profiles))
    if config.teacher.name != _PROFILES_TEACHER and config.teacher.checkpoint is None:
        config.teacher.checkpoint = default_checkpoint(config.teacher)
    _fill(config, profiles[config.profile])
    if config.env.backend == "auto":
        config.env.backend = "gpu" if has_cuda() else "cpu"
    if config.teacher.overlap == "auto":
        config.teacher.overlap = "on" if _teacher_has_own_hardware(config) else "off"
    _validate(config)
    return config


def _teacher_has_own_hardware(config: ConfigDict) -> bool:
    """True if something of the teacher's hardware is idle while the environments step."""
    simulators = {"cpu"} if config.env.backend == "cpu" else {"cuda", "cuda:0"}
    default_device = "cuda" if has_cuda() else "cpu"
    return any((default_device if device == "auto" else device) not in simulators for device in config.teacher.devices)


def default_checkpoint(teacher: ConfigDict) -> str:
    """A teacher's checkpoint if none is given: the setting `teacher.<name>_checkpoint` where there is one, or ""."""
    return teacher.get(f"{teacher.name}_checkpoint", "")


def departures(config: ConfigDict, profile: ConfigDict, prefix: str = "") -> list[str]:
    """Names and values of the settings in which a resolved config departs from `profile`, as "part.name=value"."""
    names = []
    for name, value in profile.items():
        if isinstance(value, ConfigDict):
            names += departures(config[name], value, f"{prefix}{name}.")
        elif config[name] != value:
            names.append(f"{prefix}{name}={config[name]}")
    return names


def _fill(config: ConfigDict, values: dict) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _fill(config[name], value)
        elif config[name] is None:
            config[name] = value


def _get(config: ConfigDict, path: str):
    for name in path.split("."):
        config = config[name]
    return config


def _check_choice(path: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        nearest = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.0)[0]
        raise UserError(f"{path}={value!r} is not one of {', '.join(allowed)}: did you mean {nearest!r}?")


def _validate(config: ConfigDict) -> None:
    find_task(config.env.task)
    if config.log.wandb:
        wandb_log.check_installed()
    for path, allowed in _CHOICES.items():
        _check_choice(path, _get(config, path), allowed)
    _check_choice("teacher.name", config.teacher.name, teacher_names())
    for path in _POSITIVE:
        if _get(config, path) < 1:
            raise UserError(f"{path}={_get(config, path)} must be at least 1.")
    if not 0.0 < config.env.mesh_detail <= 1.0:
        raise UserError(f"env.mesh_detail={config.env.mesh_detail} must lie in (0, 1]; 1.0 draws every triangle.")
    for name in ("eye_offset", "target_offset"):
        if len(config.env.camera[name]) != 3:
            raise UserError(
                f"env.camera.{name}={config.env.camera[name]} must be three numbers (metres), such as (0.0, 0.2, 0.0)."
            )
    batch = config.env.num_envs * config.ppo.rollout_steps
    if batch < 2 * config.ppo.num_minibatches:
        raise UserError(
            f"ppo.num_minibatches={config.ppo.num_minibatches} is too many for the {batch} frames of an iteration "
            "(env.num_envs x ppo.rollout_steps): a minibatch needs two frames or more."
        )
    if config.total_steps < batch:
        raise UserError(
            f"total_steps={config.total_steps} is less than one iteration of {batch} frames "
            "(env.num_envs x ppo.rollout_steps): raise it or lower those."
        )
    if config.distill.schedule == "cosine" and config.distill.anneal_steps < 1:
        raise UserError("distill.schedule='cosine' needs distill.anneal_steps of at least 1.")
    if (config.distill.replay > 0) != (config.distill.replay_batch > 0):
        raise UserError("distill.replay and distill.replay_batch go together: set both, or both to 0.")
