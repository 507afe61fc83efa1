"""What is train.py's own about a run directory: its fields, its default name, the stages of its iterations. No JAX."""

from pathlib import Path

from ml_collections import ConfigDict

from rpd_jax.run import directory
from rpd_jax.run.directory import RunKind

STAGES = ("simulate+render", "label", "update", "evaluate", "checkpoint", "rest")
# Of a run with refine=state, each a folder of it; its last stage is the run itself.
FIRST_STAGES = ("label", "refine")
FREE_FIELDS = ("env.workers", "env.step_timeout", "checkpoint.keep", "checkpoint.keep_best", "eval.video_episodes")
FREE_FIELDS += ("log.wandb",)
FREE_FIELDS += ("teacher.python", "teacher.devices", "teacher.start_timeout", "teacher.request_timeout")
FREE_FIELDS += ("teacher.overlap", "teacher.address", "teacher.connections", "teacher.api_key_file")
_ADDED_FIELDS = {
    "student.precision": "float32",
    "student.start": "",
    "student.critic": "shared",
    "student.state": "raw",
    "student.state_coef": 0.0,
    "teacher.view": "student",
    "teacher.refresh": "rollout",
    "teacher.dataset": "",
    "teacher.openvla_checkpoint": "hf://Juelg/openvla-7b-finetuned-maniskill",
    # An Octo's gripper stayed as it was and OpenVLA's was turned: for every checkpoint but an Octo of 0..1, "auto".
    "teacher.gripper": "auto",
    "ppo.critic_first": 0,
    "ppo.critic_continues": False,
    "ppo.bootstrap_success": True,
    "distill.label": "mean",
    "distill.replay_both": False,
    "distill.still": False,
    "distill.anneal_success": 0.5,
    "distill.guide": 0.0,
    "distill.guide_final": 0.0,
    "eval.until": 0.0,
    "eval.when_sampled": 0.0,
    "eval.share": 0.0,
    "eval.patience": 0,
    "eval.leave_best": False,
    "refine": "pixels",
    "teacher.temperature": 0.0,
    "teacher.batch_size": 32,
    "teacher.address": "",
    "teacher.connections": 4,
    "teacher.api_key_file": "",
    "teacher.observation": {},  # the group, before its fields
    "teacher.observation.image": "observation/image",
    "teacher.observation.prompt": "prompt",
    "teacher.observation.state": "observation/state",
    "teacher.action_key": "actions",
    "teacher.resize": [],
    "teacher.letterbox": True,
    "teacher.chunk": 1,
    "teacher.state": "none",
}
TRAINING = RunKind(free=FREE_FIELDS, added=_ADDED_FIELDS)


def read_run_config(workdir: str | Path) -> ConfigDict:
    """The resolved config of a run of train.py, fields newer than it filled in; raises UserError if it is none."""
    return directory.read_run_config(workdir, TRAINING)


def default_workdir(config_file: str, config: ConfigDict) -> Path:
    """runs/<config>-<algorithm>-seed<seed> of a resolved config, with observation and `refine` if they are unusual."""
    parts = [Path(config_file).stem, config.algorithm]
    if config.student.observation != "rgb":
        parts.append(config.student.observation)
    if config.refine != "pixels":
        parts.append(f"refine_{config.refine}")
    return Path("runs") / "-".join([*parts, f"seed{config.seed}"])
