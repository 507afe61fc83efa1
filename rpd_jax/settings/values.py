"""What each setting may be by itself, and the sentences for what it may not."""

import dataclasses
from collections.abc import Callable

from ml_collections import ConfigDict

from rpd_jax.action_convention import GRIPPER_SETTINGS
from rpd_jax.command.checks import Check, anything, flag, number, one_of, several, text, text_like, whole
from rpd_jax.command.wrong_flags import fields
from rpd_jax.learning.algorithms import LABELS, algorithm_names
from rpd_jax.robot_state import KINDS as TOLD_STATES
from rpd_jax.student.networks import CRITICS, ENCODERS, OBSERVATIONS, PRECISIONS
from rpd_jax.student.state_features import KINDS
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


def table_of(config: ConfigDict) -> dict[str, Check]:
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
