"""Fills in the settings that depend on the machine, and holds all checks of settings.

`SETTINGS` says what each field may be, `RELATIONS` what fields ask of one another, `MACHINE` what they ask of the
devices.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping

import jax
from ml_collections import ConfigDict

from rpd_jax.action_convention import GRIPPER_SETTINGS
from rpd_jax.command.checks import (
    Check,
    anything,
    check_fields,
    check_names,
    check_value,
    flag,
    get,
    number,
    one_of,
    several,
    text,
    text_like,
    whole,
)
from rpd_jax.command.wrong_flags import fields
from rpd_jax.errors import UserError
from rpd_jax.learning.algorithms import LABELS, algorithm_names, find_algorithm
from rpd_jax.robot_state import KINDS as TOLD_STATES
from rpd_jax.run import wandb_log
from rpd_jax.student.networks import CRITICS, ENCODERS, OBSERVATIONS, PRECISIONS, SMALLEST_IMAGE
from rpd_jax.student.state_features import KINDS
from rpd_jax.tasks import find_task
from rpd_jax.teachers import teacher_names

_LONGEST_WAIT = 10**6  # seconds; the operating system counts milliseconds in 31 bits
_OFFSET = several(number(-100.0, 100.0), "must be three numbers (metres), such as (0.0, 0.2, 0.0).", length=3)
_DEVICES = several(text(empty=False), "must name one device or more, such as ('cuda:0', 'cuda:1').")
_ADDRESS = text_like(
    r"((wss?://[^\s,/@]+(/[^\s,]*)?|tcp://[^\s,/@]+)(,\s*(?=\w)|$))*",
    "must be ws://host:port or wss://host:port of a policy server (of groot: tcp://host:port), several with commas "
    "between.",
)
_SIZE = several(whole(1, 4096), "must be () or height and width, 1 to 4096 pixels, such as (224, 224).", length=2)
_RESIZE = dataclasses.replace(_SIZE, allows=lambda value: len(value) == 0 or _SIZE.allows(value))
_COEFFICIENT = number(0, 10**6)
# Whose fields are below; the teacher of another package may have fields of its own.
_OUR_TEACHERS = ("octo", "openvla", "openpi", "groot", "lerobot", "student")
# How the addresses of those begin that are policy servers.
_SERVERS = {"openpi": ("ws://", "wss://"), "groot": ("tcp://",)}
_OF_CHECKPOINTS = ("octo", "openvla", "lerobot", "student")
# Whose checkpoints the profiles name.
_PROFILES_TEACHER = "octo"
# Less is lost beside 1 in float32.
_LEAST = 1e-6

SETTINGS: dict[str, Check] = {
    "algorithm": text(empty=False),  # see NAMES
    "refine": one_of("auto", "pixels", "state"),
    "profile": text(empty=False),  # "auto" or one of the config's own `profiles`
    "seed": whole(0, 2**32 - 1),
    "total_steps": whole(1, 10**10),
    "env.task": text(empty=False),  # one that `find_task` finds
    "env.reward_mode": one_of("sparse", "normalized_dense"),
    "env.backend": one_of("auto", "cpu", "gpu"),
    "env.num_envs": whole(1, 65_536),
    "env.workers": whole(1, 4096, or_none=True),
    "env.image_size": whole(1, 4096),
    "env.mesh_detail": number(above=0, high=1, rule="must lie in (0, 1]; 1.0 draws every triangle."),
    "env.step_timeout": number(above=0, high=_LONGEST_WAIT),
    "env.restart_workers": flag(),
    "env.camera.eye_offset": _OFFSET,
    "env.camera.target_offset": _OFFSET,
    "env.camera.fov": number(0.01, 3.1, rule="must be at least 0.01 and at most 3.1 (radians).", or_none=True),
    "student.observation": one_of(*OBSERVATIONS),
    "student.image_size": whole(1, 4096),
    "student.start": text(),
    "student.encoder": one_of(*ENCODERS),
    "student.precision": one_of(*PRECISIONS),
    "student.initial_log_std": number(-10, 5),
    "student.value_stop_gradient": flag(),
    "student.critic": one_of(*CRITICS),
    "student.state": one_of(*KINDS),
    "student.state_coef": number(0, 1e3),
    "teacher.name": text(empty=False),  # see NAMES
    "teacher.checkpoint": text(),
    "teacher.instruction": text(),
    "teacher.precision": one_of("float32", "bfloat16"),
    "teacher.refresh": one_of("rollout", "epoch"),
    "teacher.overlap": one_of("auto", "on", "off"),
    "teacher.dataset": text(),
    "teacher.gripper": one_of(*GRIPPER_SETTINGS),
    "teacher.openvla_checkpoint": text(),
    "teacher.python": text(),
    "teacher.devices": _DEVICES,
    "teacher.temperature": number(0, 100, rule="must be at least 0 and at most 100; 0 takes the most likely action."),
    "teacher.batch_size": whole(1, 65_536),
    "teacher.start_timeout": number(above=0, high=_LONGEST_WAIT),
    "teacher.request_timeout": number(above=0, high=_LONGEST_WAIT),
    "teacher.address": _ADDRESS,
    "teacher.connections": whole(1, 1024),
    "teacher.api_key_file": text(),
    "teacher.observation.image": text(empty=False),
    "teacher.observation.state": text(empty=False),
    "teacher.observation.prompt": text(),
    "teacher.action_key": text(empty=False),
    "teacher.view": one_of("student", "own"),
    "teacher.resize": _RESIZE,
    "teacher.letterbox": flag(),
    "teacher.chunk": whole(1, 1000),
    "teacher.state": one_of(*TOLD_STATES),
    "teacher.eval_episodes": whole(0, 10**6),
    "ppo.rollout_steps": whole(1, 10**6),
    "ppo.update_epochs": whole(1, 1000),
    "ppo.num_minibatches": whole(1, 10**6),
    "ppo.learning_rate": number(0, 1),
    "ppo.learning_rate_final": number(0, 1),
    "ppo.critic_first": whole(0, 10**10),
    "ppo.critic_continues": flag(),
    "ppo.bootstrap_success": flag(),
    "ppo.gamma": number(0, 1),
    "ppo.gae_lambda": number(0, 1),
    "ppo.finite_horizon": flag(),
    "ppo.clip": number(_LEAST, 10**6),
    "ppo.clip_value_loss": flag(),
    "ppo.entropy_coef": _COEFFICIENT,
    "ppo.value_coef": _COEFFICIENT,
    "ppo.max_grad_norm": number(_LEAST, 10**6),
    "ppo.adam_eps": number(1e-15, 1),
    "ppo.target_kl": number(0, 10**6, rule="must be at least 0 and at most 1,000,000; 0 never stops early."),
    "ppo.normalize_advantages": flag(),
    "ppo.advantage_std_floor": number(0, 10**6),
    "distill.coef": _COEFFICIENT,
    "distill.schedule": one_of("constant", "cosine", "success"),
    "distill.coef_final": _COEFFICIENT,
    "distill.anneal_steps": whole(0, 10**10),
    "distill.anneal_success": number(above=0, high=1, rule="must lie in (0, 1]."),
    "distill.num_samples": whole(1, 1000),
    "distill.averaged": whole(1, 1000),
    "distill.label": one_of(*LABELS),
    "distill.std_floor": number(0, 10**6),
    "distill.replay": whole(0, 10**8),
    "distill.replay_batch": whole(0, 10**6),
    "distill.replay_coef": _COEFFICIENT,
    "distill.replay_both": flag(),
    "distill.still": flag(),
    "distill.guide": number(0, 1),
    "distill.guide_final": number(0, 1),
    "distill.augment": whole(0, 4096),
    "distill.augment_ppo": flag(),
    "eval.every": whole(1, 10**9),
    "eval.episodes": whole(1, 10**6),
    "eval.final_episodes": whole(1, 10**6),
    "eval.video_episodes": whole(0, 1000),
    "eval.until": number(0, 1),
    "eval.when_sampled": number(0, 1),
    "eval.share": number(0, 1),
    "eval.patience": whole(0, 10**6),
    "eval.leave_best": flag(),
    "checkpoint.every": whole(1, 10**9),
    "checkpoint.keep": whole(1, 10**6),
    "checkpoint.keep_best": whole(0, 10**6),
    "log.wandb": flag(),
}

# Fields that name what installed packages may add to: looked up when they are checked.
NAMES: dict[str, Callable[[], tuple[str, ...]]] = {
    "algorithm": algorithm_names,
    "teacher.name": teacher_names,
}


def _batch(config: ConfigDict) -> int:
    return config.env.num_envs * config.ppo.rollout_steps


def _sees_frames(config: ConfigDict) -> bool:
    return "rgb" in config.student.observation


def _keeps_replay(config: ConfigDict) -> bool:
    return config.distill.replay > 0 and find_algorithm(config.algorithm).distillation is not None


def _repeats_itself(config: ConfigDict) -> bool:
    return config.distill.num_samples == 1 or (
        config.teacher.name in ("openvla", "student") and config.teacher.temperature == 0
    )


# What cannot be, and the sentence for it.
RELATIONS: tuple[tuple[Callable[[ConfigDict], bool], str], ...] = (
    (
        lambda c: _batch(c) < 2 * c.ppo.num_minibatches,
        "ppo.num_minibatches={c.ppo.num_minibatches} is too many for the {batch} frames of an iteration "
        "(env.num_envs x ppo.rollout_steps): a minibatch needs two frames or more.",
    ),
    (
        lambda c: c.total_steps < _batch(c),
        "total_steps={c.total_steps} is less than one iteration of {batch} frames "
        "(env.num_envs x ppo.rollout_steps): raise it or lower those.",
    ),
    (
        lambda c: c.distill.schedule == "cosine" and c.distill.anneal_steps < 1,
        "distill.schedule='cosine' needs distill.anneal_steps of at least 1.",
    ),
    (
        lambda c: bool(c.distill.replay) != bool(c.distill.replay_batch),
        "distill.replay and distill.replay_batch go together: set both, or both to 0.",
    ),
    (
        lambda c: _sees_frames(c) and c.student.image_size < SMALLEST_IMAGE,
        f"student.image_size={{c.student.image_size}} is too small for the encoder: use {SMALLEST_IMAGE} or more.",
    ),
    (
        lambda c: _sees_frames(c) and c.distill.augment >= c.student.image_size,
        "distill.augment={c.distill.augment} shifts the whole frame out of sight: it must be less than "
        "student.image_size={c.student.image_size}.",
    ),
    (
        lambda c: c.teacher.name in _OF_CHECKPOINTS and c.teacher.checkpoint == "",
        "teacher.checkpoint='' names nothing: give a checkpoint's folder, hf://owner/name or the name of an embedded "
        "teacher, or leave it open.",
    ),
    (
        lambda c: c.teacher.name == "openpi" and c.teacher.address == "",
        "teacher.address='' names no policy server: give one, such as ws://127.0.0.1:8000.",
    ),
    (
        lambda c: c.teacher.name == "groot" and c.teacher.address == "",
        "teacher.address='' names no policy server: give one, such as tcp://127.0.0.1:5555.",
    ),
    (
        lambda c: (
            not all(
                address.strip().startswith(_SERVERS.get(c.teacher.name, "")) for address in c.teacher.address.split(",")
            )
        ),
        "teacher.address={c.teacher.address!r} is none of teacher.name={c.teacher.name!r}: openpi's servers are at "
        "ws://host:port or wss://host:port, GR00T's at tcp://host:port.",
    ),
    (
        lambda c: c.teacher.name == "openpi" and c.teacher.observation.image == c.teacher.observation.prompt,
        "teacher.observation.image and teacher.observation.prompt must differ: both are "
        "{c.teacher.observation.image!r}.",
    ),
    (
        lambda c: (
            c.teacher.name == "openpi"
            and c.teacher.state != "none"
            and c.teacher.observation.state in (c.teacher.observation.image, c.teacher.observation.prompt)
        ),
        "teacher.observation.state={c.teacher.observation.state!r} must differ from the names of the image and the "
        "prompt.",
    ),
    (
        lambda c: not find_algorithm(c.algorithm).reinforces and c.distill.coef == 0,
        "distill.coef={c.distill.coef} leaves {c.algorithm} nothing to learn: it has the distillation term alone.",
    ),
    (
        lambda c: (
            c.distill.schedule == "success"
            and c.distill.coef_final == 0
            and (c.refine == "state" or not find_algorithm(c.algorithm).reinforces)
        ),
        "distill.schedule='success' and distill.coef_final=0 leave a student that only imitates nothing to learn once "
        "it succeeds: set the schedule to constant (that of refine='state' is its last stage's; the refining one's is "
        "stages.refine.distill.schedule).",
    ),
    (
        lambda c: (
            c.refine == "pixels"
            and find_algorithm(c.algorithm).reinforces
            and (c.distill.guide or c.distill.guide_final)
        ),
        "distill.guide lets the teacher act, and PPO can only learn from actions of the student's own policy: set "
        "distill.guide and distill.guide_final to 0, or use algorithm=dagger.",
    ),
    (
        lambda c: c.refine == "state" and not _sees_frames(c),
        "refine='state' ends with a student that sees frames, and student.observation='state' sees none: set "
        "student.observation to rgb, or refine to pixels.",
    ),
    (
        lambda c: c.student.state_coef > 0 and not _sees_frames(c),
        "student.state_coef={c.student.state_coef} guesses the state from frames, and student.observation='state' sees "
        "none: set it to 0.",
    ),
    (
        lambda c: c.teacher.view == "own" and not (c.refine == "state" and find_algorithm(c.algorithm).reinforces),
        "teacher.view='own' is for the labels that an expert begins with (refine='state', and an algorithm that "
        "reinforces): elsewhere the frame that is labelled is the student's; set it to student.",
    ),
    (
        lambda c: c.refine == "state" and c.student.start,
        "student.start={c.student.start!r} is for runs of one stage: the last of several begins anew; set refine to "
        "pixels, or leave it out.",
    ),
    (
        lambda c: c.eval.leave_best and not (c.checkpoint.keep_best and c.eval.every % c.checkpoint.every == 0),
        "eval.leave_best takes parameters from the checkpoint of an evaluation: let checkpoint.every divide "
        "eval.every, and keep one of the best (checkpoint.keep_best=1).",
    ),
    (
        lambda c: c.refine == "state" and c.student.image_size != c.env.image_size,
        "refine='state' keeps frames as they are drawn: set student.image_size and env.image_size alike.",
    ),
    (
        lambda c: find_algorithm(c.algorithm).reads_spread and c.distill.std_floor == 0 and _repeats_itself(c),
        "distill.std_floor=0 makes the loss of {c.algorithm} infinite where all samples of a frame are the same: raise "
        "it, or draw different ones (distill.num_samples of 2 or more, and with OpenVLA a teacher.temperature above "
        "0).",
    ),
)

# The same for devices: their number, the frames that an iteration keeps, and the memory that they may take, in GB.
MACHINE: tuple[tuple[Callable[..., bool], str], ...] = (
    (
        lambda c, devices, **_: c.env.num_envs % devices != 0,
        "env.num_envs={c.env.num_envs} cannot be spread evenly over {devices} devices: make it a multiple, or show JAX "
        "fewer devices (CUDA_VISIBLE_DEVICES).",
    ),
    (
        lambda c, devices, **_: c.distill.replay % devices != 0,
        "distill.replay={c.distill.replay} cannot be spread evenly over {devices} devices: make it a multiple, or show "
        "JAX fewer devices (CUDA_VISIBLE_DEVICES).",
    ),
    (
        lambda c, devices, **_: _batch(c) // devices < c.ppo.num_minibatches,
        "ppo.num_minibatches={c.ppo.num_minibatches} is too many for the {batch} frames of an iteration "
        "(env.num_envs x ppo.rollout_steps) on {devices} devices: each device needs a frame of each minibatch.",
    ),
    (
        lambda c, processes, **_: c.refine == "state" and processes > 1,
        "refine='state' runs in one process, and {processes} are connected: start one for each run.",
    ),
    (
        lambda c, frames, memory, **_: frames > memory,
        "The frames that a device keeps take {frames:.0f} GB and it has {memory:.0f}: lower env.num_envs, "
        "ppo.rollout_steps, env.image_size or distill.replay.",
    ),
)


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
    check_names(config, _table(config))
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
    check_fields(config, _table(config))
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


def check(config: ConfigDict) -> None:
    """Raises UserError if a field of a resolved config, or several together, cannot work, on whatever machine."""
    check_fields(config, _table(config))
    for path, names in NAMES.items():
        check_value(path, get(config, path), one_of(*names()))
    find_task(config.env.task)
    if config.log.wandb:
        wandb_log.check_installed()
    _refuse(RELATIONS, config)


def _table(config: ConfigDict) -> dict[str, Check]:
    """`SETTINGS`, and the fields that the teacher of another package has for itself."""
    if not isinstance(config.get("teacher"), ConfigDict) or config.teacher.get("name") in _OUR_TEACHERS:
        return SETTINGS | _stages_table(config)
    own = (f"teacher.{name}" for name, _ in fields(config.teacher))
    return dict.fromkeys(own, anything()) | SETTINGS | _stages_table(config)


def _stages_table(config: ConfigDict) -> dict[str, Check]:
    """Checks of the settings that a stage has for itself: those of the setting that it replaces there."""
    stages = config.get("stages")
    if not isinstance(stages, ConfigDict):
        return {}
    paths = ((path, path.partition(".")[2]) for path, _ in fields(stages))
    return {f"stages.{path}": SETTINGS[setting] for path, setting in paths if setting in SETTINGS}


def check_student(student: ConfigDict) -> None:
    """Raises UserError if a field of `config.student` is wrong, of a run whose other settings no longer matter."""
    own = {path.removeprefix("student."): check for path, check in SETTINGS.items() if path.startswith("student.")}
    check_fields(student, own, prefix="student.")


def check_machine(config: ConfigDict) -> None:
    """Raises UserError if a resolved config asks too much of the devices that JAX sees here."""
    devices = jax.device_count()
    machine = {"devices": devices, "processes": jax.process_count()}
    _refuse(MACHINE, config, **machine, frames=_kept_frames(config) / devices, memory=_memory())


def _refuse(table: tuple[tuple[Callable[..., bool], str], ...], config: ConfigDict, **machine: float) -> None:
    for is_wrong, sentence in table:
        if is_wrong(config, **machine):
            raise UserError(sentence.format(c=config, batch=_batch(config), **machine))


def _kept_frames(config: ConfigDict) -> float:
    """GB of the frames of an iteration and of the replay, with the one that the estimate of the time fills."""
    rollout = _batch(config) * config.env.image_size**2 if config.algorithm != "ppo" or _sees_frames(config) else 0
    replay = 0
    if _keeps_replay(config) and (_sees_frames(config) or config.distill.replay_both):
        replay = 2 * config.distill.replay * config.student.image_size**2
    return 3 * (rollout + replay) / 1e9


def _memory() -> float:
    """GB of one device."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 1e9


def _teacher_has_own_hardware(config: ConfigDict) -> bool:
    """True if something of the teacher's hardware is idle while the environments step."""
    if config.teacher.name in _SERVERS:
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
    profile, table = profiles[config.profile], _table(config)
    for path, _ in fields(profile):
        if path not in table:
            raise UserError(f"profiles.{config.profile}.{path} is no field of the config: leave it out.")
        if get(config, path) is None:
            config.update_from_flattened_dict({path: get(profile, path)})
