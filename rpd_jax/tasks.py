"""The eight ManiSkill tasks of the paper (Table I): the only place that names their instructions and limits."""

import dataclasses
import difflib

from rpd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Task:
    """One simulated task.

    Attributes:
        env_id: ManiSkill's registered id.
        instruction: the sentence that the teacher is given.
        max_episode_steps: control steps (20 Hz) after which an episode is truncated.
        held_out: True if the paper's teachers were not fine-tuned on it.
    """

    env_id: str
    instruction: str
    max_episode_steps: int = 50
    held_out: bool = False


TASKS: dict[str, Task] = {
    task.env_id: task
    for task in (
        Task("LiftPegUpright-v1", "lift the peg upright"),
        Task("PickCube-v1", "pick up the cube"),
        Task("PullCube-v1", "pull the cube towards the robot base"),
        Task("PullCubeTool-v1", "pull the cube by using the red tool", max_episode_steps=100, held_out=True),
        Task("PushCube-v1", "push the cube away from the robot base"),
        Task("RollBall-v1", "push the ball", max_episode_steps=80),
        Task("StackCube-v1", "stack the red cube on the green cube"),
        Task("PokeCube-v1", "push the cube by using the blue tool", held_out=True),
    )
}


def find_task(env_id: str) -> Task:
    """Returns the task registered under `env_id`; raises UserError with the nearest name if there is none."""
    if env_id in TASKS:
        return TASKS[env_id]
    nearest = difflib.get_close_matches(env_id, TASKS, n=1, cutoff=0.0)[0]
    raise UserError(f"env.task={env_id!r} is not one of the tasks {', '.join(TASKS)}: did you mean {nearest!r}?")
