"""The eight ManiSkill tasks of the paper (Table I): the only place that names their instructions and limits."""

import dataclasses

from rpd_jax import registry
from rpd_jax.errors import UserError, nearest

GROUP = "rpd_jax.tasks"


@dataclasses.dataclass(frozen=True)
class Task:
    """One simulated task.

    Attributes:
        env_id: ManiSkill's registered id.
        instruction: the sentence that the teacher is given.
        max_episode_steps: control steps (20 Hz) after which an episode is truncated.
        held_out: True if the paper's teachers were not fine-tuned on it.
        module: imported where environments of the task are made; registers it with ManiSkill. Empty: ManiSkill's own.
        look_at: the point that the task's human camera looks at, metres; ManiSkill keeps the resulting pose only.
        tcp_pose: where in the flat state the pose of the point between the fingertips begins (extra/tcp_pose, 7
            numbers), or None.
    """

    env_id: str
    instruction: str
    max_episode_steps: int = 50
    held_out: bool = False
    module: str = ""
    look_at: tuple[float, float, float] = (0.0, 0.0, 0.35)
    tcp_pose: int | None = None


# Behind nine positions and nine velocities; is_grasped comes first in PickCube.
_TCP = 18

TASKS: dict[str, Task] = {
    task.env_id: task
    for task in (
        Task("LiftPegUpright-v1", "lift the peg upright", tcp_pose=_TCP),
        Task("PickCube-v1", "pick up the cube", tcp_pose=_TCP + 1),
        Task("PullCube-v1", "pull the cube towards the robot base", tcp_pose=_TCP),
        Task(
            "PullCubeTool-v1",
            "pull the cube by using the red tool",
            max_episode_steps=100,
            held_out=True,
            tcp_pose=_TCP,
        ),
        Task("PushCube-v1", "push the cube away from the robot base", tcp_pose=_TCP),
        Task("RollBall-v1", "push the ball", max_episode_steps=80, look_at=(0.0, 0.13, 0.0), tcp_pose=_TCP),
        Task("StackCube-v1", "stack the red cube on the green cube", tcp_pose=_TCP),
        Task(
            "PokeCube-v1",
            "push the cube by using the blue tool",
            held_out=True,
            look_at=(0.2, 0.2, 0.35),
            tcp_pose=_TCP,
        ),
    )
}


def task_names() -> tuple[str, ...]:
    """The tasks that there are, here and in packages."""
    return (*TASKS, *registry.names(GROUP))


def find_task(env_id: str, asked_by: str = "env.task") -> Task:
    """Returns the task registered under `env_id`, here or by a package (an entry point of `rpd_jax.tasks`).

    Args:
        env_id: its name.
        asked_by: the setting, flag or file that names it, for the sentence.

    Raises:
        UserError: there is none, with the nearest name; or its package cannot be loaded or offers something else.
    """
    if env_id in TASKS:
        return TASKS[env_id]
    names = task_names()
    if env_id not in names:
        meant = nearest(env_id, names)
        raise UserError(f"{asked_by}={env_id!r} is not one of the tasks {', '.join(names)}: did you mean {meant!r}?")
    task = registry.load(GROUP, env_id, Task)
    if task.env_id != env_id:
        raise UserError(
            f"{env_id!r} of {GROUP} is {task!r} and not the Task of that name: mend the package that offers it."
        )
    return task
