"""Fills in the settings that depend on the machine."""

import os
from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from rpd_jax.command.checks import check_fields, check_names, check_value, get, one_of
from rpd_jax.command.wrong_flags import fields
from rpd_jax.errors import UserError
from rpd_jax.settings.checks import check
from rpd_jax.settings.relations import SERVERS
from rpd_jax.settings.values import SETTINGS, table_of

# Whose checkpoints the profiles name.
_PROFILES_TEACHER = "octo"


def has_cuda() -> bool:
    """True if JAX sees a CUDA device; raises UserError if it does not start on the devices that it is told to use."""
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # where it was told to use a GPU and has none, it asserts
        reason = (str(error).splitlines() or ["it finds no device"])[0]
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX does not start ({reason}; JAX_PLATFORMS={platforms!r}): leave that variable out where it names "
            "what is not here, and look at what python -m rpd_jax.doctor says."
        ) from error
    return any(device.platform == "gpu" for device in devices)


def resolve(config: ConfigDict) -> ConfigDict:
    """Returns a copy in which the profile has filled every open field; explicit values stay.

    Args:
        config: as `configs.default.get_config` makes it. Its `profiles` holds one nested dictionary per profile.

    Raises:
        UserError: a field that there is not, a value outside the allowed ones, or values that contradict each other.
    """
    config = ConfigDict(config.to_dict())
    check_names(config, table_of(config))
    profiles = _profiles(config)
    check_value("profile", config.profile, one_of("auto", *profiles))
    check_value("teacher.name", config.teacher.name, SETTINGS["teacher.name"])
    check_value("refine", config.refine, SETTINGS["refine"])
    if config.refine == "auto":
        config.refine = "state" if config.profile == "refine" or _refines_on_state(config, profiles) else "pixels"
    if config.profile == "auto":
        if config.refine == "state":
            config.profile = "refine"
        elif has_cuda():
            config.profile = "paper"
        elif config.student.observation == "state":
            config.profile = "cpu_state"
        else:
            config.profile = "cpu_begun" if config.student.start else "cpu"
    if config.teacher.name != _PROFILES_TEACHER and config.teacher.checkpoint is None:
        config.teacher.checkpoint = default_checkpoint(config.teacher)
    _fill(config, profiles)
    if config.refine == "pixels":
        _drop_stages(config)
        if config.distill.still is True:  # none of RELATIONS, which hold for a stage's own config too
            raise UserError(
                "distill.still looks at the labels that a stage begins with, and with refine='pixels' there are none: "
                "set it to False."
            )
    elif any(get(config.stages, path) is None for path, _ in fields(config.get("stages", ConfigDict()))):
        raise UserError(
            f"refine='state' has values for its stages in profile='refine', and profile={config.profile!r} has none: "
            "leave the profile out, or set --config.refine=pixels."
        )
    check_fields(config, table_of(config))
    if config.env.backend == "auto":
        config.env.backend = "gpu" if has_cuda() else "cpu"
    if config.teacher.overlap == "auto":
        config.teacher.overlap = "on" if _teacher_has_own_hardware(config) else "off"
    check(config)
    return config


def _refines_on_state(config: ConfigDict, profiles: dict) -> bool:
    """Whether a run that leaves it to us has three stages: it can, and there is no GPU for the paper's way."""
    ours = profiles.get("refine", {})
    drawn, seen = (config[part].image_size or ours.get(part, {}).get("image_size") for part in ("env", "student"))
    return (
        config.profile == "auto"
        and not has_cuda()
        and jax.process_count() == 1
        and config.student.observation in ("rgb", "rgb+state")
        and not config.student.start
        and drawn == seen
    )


def _drop_stages(config: ConfigDict) -> None:
    """Takes the settings of stages that the run does not have out of a config."""
    for path, _ in fields(config.get("stages", ConfigDict())):
        if get(config.stages, path) is not None and config.profile != "refine":
            raise UserError(
                f"stages.{path} is a setting of refine='state': leave it out, or set --config.refine=state."
            )
    if "stages" in config:
        del config.stages


def _teacher_has_own_hardware(config: ConfigDict) -> bool:
    """True if something of the teacher's hardware is idle while the environments step."""
    if config.teacher.name in SERVERS:
        return True
    simulators = {"cpu"} if config.env.backend == "cpu" else {"cuda", "cuda:0"}
    default_device = "cuda" if has_cuda() else "cpu"
    return any((default_device if device == "auto" else device) not in simulators for device in config.teacher.devices)


def default_checkpoint(teacher: ConfigDict) -> str:
    """A teacher's checkpoint if none is given: the setting `teacher.<name>_checkpoint` where there is one, or ""."""
    return teacher.get(f"{teacher.name}_checkpoint", "")


def departures(config: ConfigDict, profile: ConfigDict, prefix: str = "") -> list[str]:
    """Names and values of the settings in which a resolved config departs from `profile`, as "part.name=value".

    What only one of them has, such as the settings of stages, is left out.
    """
    names = []
    for name, value in profile.items():
        if name not in config:
            continue
        if isinstance(value, ConfigDict):
            names += departures(config[name], value, f"{prefix}{name}.")
        elif config[name] != value:
            names.append(f"{prefix}{name}={config[name]}")
    return names


def _profiles(config: ConfigDict) -> dict[str, ConfigDict]:
    """Takes the profiles out of a config."""
    profiles = config.get("profiles")
    if not isinstance(profiles, ConfigDict) or not profiles:
        raise UserError("The config lacks profiles: make it with get_config of a file of configs/.")
    del config.profiles
    return {name: profile for name, profile in profiles.items() if isinstance(profile, ConfigDict)}


def _fill(config: ConfigDict, profiles: Mapping[str, ConfigDict]) -> None:
    """Gives open fields the values of the config's profile."""
    if config.profile not in profiles:
        raise UserError(f"The config lacks profiles.{config.profile}: make it with get_config of a file of configs/.")
    profile, table = profiles[config.profile], table_of(config)
    for path, _ in fields(profile):
        if path not in table:
            raise UserError(f"profiles.{config.profile}.{path} is no field of the config: leave it out.")
        if get(config, path) is None:
            config.update_from_flattened_dict({path: get(profile, path)})
