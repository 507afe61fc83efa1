"""What settings ask of one another, and of the devices: each a condition that must not hold, and its sentence."""

from collections.abc import Callable

from ml_collections import ConfigDict

from rpd_jax.errors import UserError
from rpd_jax.learning.algorithms import find_algorithm
from rpd_jax.student.networks import SMALLEST_IMAGE

# How the addresses of those begin that are policy servers.
SERVERS = {"openpi": ("ws://", "wss://"), "groot": ("tcp://",)}
_OF_CHECKPOINTS = ("octo", "openvla", "lerobot", "student")


def batch(config: ConfigDict) -> int:
    return config.env.num_envs * config.ppo.rollout_steps


def sees_frames(config: ConfigDict) -> bool:
    return "rgb" in config.student.observation


def keeps_replay(config: ConfigDict) -> bool:
    return config.distill.replay > 0 and find_algorithm(config.algorithm).distillation is not None


def _repeats_itself(config: ConfigDict) -> bool:
    return config.distill.num_samples == 1 or (
        config.teacher.name in ("openvla", "student") and config.teacher.temperature == 0
    )


# What cannot be, and the sentence for it.
RELATIONS: tuple[tuple[Callable[[ConfigDict], bool], str], ...] = (
    (
        lambda c: batch(c) < 2 * c.ppo.num_minibatches,
        "ppo.num_minibatches={c.ppo.num_minibatches} is too many for the {batch} frames of an iteration "
        "(env.num_envs x ppo.rollout_steps): a minibatch needs two frames or more.",
    ),
    (
        lambda c: c.total_steps < batch(c),
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
        lambda c: sees_frames(c) and c.student.image_size < SMALLEST_IMAGE,
        f"student.image_size={{c.student.image_size}} is too small for the encoder: use {SMALLEST_IMAGE} or more.",
    ),
    (
        lambda c: sees_frames(c) and c.distill.augment >= c.student.image_size,
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
                address.strip().startswith(SERVERS.get(c.teacher.name, "")) for address in c.teacher.address.split(",")
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
        lambda c: c.refine == "state" and not sees_frames(c),
        "refine='state' ends with a student that sees frames, and student.observation='state' sees none: set "
        "student.observation to rgb, or refine to pixels.",
    ),
    (
        lambda c: c.student.state_coef > 0 and not sees_frames(c),
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
        lambda c, devices, **_: batch(c) // devices < c.ppo.num_minibatches,
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


def refuse(table: tuple[tuple[Callable[..., bool], str], ...], config: ConfigDict, **machine: float) -> None:
    for is_wrong, sentence in table:
        if is_wrong(config, **machine):
            raise UserError(sentence.format(c=config, batch=batch(config), **machine))
