"""What may be asked of a task; light to import, so that a mistake is told before any simulator is started."""

from rpd_jax.errors import UserError
from rpd_jax.tasks import Task, find_task

REWARD_MODES = ("sparse", "normalized_dense")


def check_task_arguments(env_id: str, image_size: int, reward_mode: str, mesh_detail: float) -> Task:
    """Returns the task; raises UserError if it is unknown or another argument of `make_task_env` is out of range."""
    task = find_task(env_id)
    if reward_mode not in REWARD_MODES:
        raise UserError(f"env.reward_mode={reward_mode!r} is not one of {', '.join(map(repr, REWARD_MODES))}.")
    if not 0.0 < mesh_detail <= 1.0:
        raise UserError(f"env.mesh_detail={mesh_detail} is not in (0, 1]: 1.0 keeps every triangle of the robot.")
    if image_size < 1:
        raise UserError(f"env.image_size={image_size} is not a positive number of pixels.")
    return task
