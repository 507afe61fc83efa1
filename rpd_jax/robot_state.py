"""What a policy is told of the simulator's state, as `teacher.state` names it. Imports no JAX.

ManiSkill's state of a task with a Panda begins with nine positions (seven joints in rad, two fingers in m) and their
nine velocities; where the pose of the point between the fingertips stands is `Task.tcp_pose`.
"""

import dataclasses
from typing import Any

import numpy as np

from rpd_jax.errors import UserError
from rpd_jax.tasks import find_task

KINDS = ("none", "joints", "pose", "simulator")
_JOINTS = tuple(range(9))
_FINGERS = (7, 8)
_POSE_DIM = 7  # position in m, quaternion w, x, y, z; of the world


@dataclasses.dataclass(frozen=True)
class ToldState:
    """A choice of the state's numbers.

    Attributes:
        kind: one of `KINDS`.
        columns: which of the state's numbers, in order; None: all of them.
    """

    kind: str = "none"
    columns: tuple[int, ...] | None = ()

    @property
    def size(self) -> int | None:
        """How many numbers; None: as many as the task's state has."""
        return None if self.columns is None else len(self.columns)

    def of(self, state: Any, frames: int) -> np.ndarray:
        """Returns float32 [frames, size], numbers of the state as they are.

        Args:
            state: float32 [frames, D], the simulator's; None only where nothing is told.
            frames: how many there are.

        Raises:
            UserError: there is no state, or it is one of other frames or without those numbers.
        """
        if self.columns == ():
            return np.empty((frames, 0), np.float32)
        if state is None:
            raise UserError(f"teacher.state={self.kind!r} looks at the state: give it one beside the frames.")
        found = np.asarray(state, np.float32)
        least = 0 if self.columns is None else max(self.columns) + 1
        if found.ndim != 2 or len(found) != frames or found.shape[1] < least:
            raise UserError(
                f"teacher.state={self.kind!r} needs states of {frames} frames with {least} numbers or more; these are "
                f"{list(found.shape)}."
            )
        return found if self.columns is None else found[:, self.columns]


NOTHING = ToldState()


def told_state(kind: str, task: str = "") -> ToldState:
    """What is told under a name.

    Args:
        kind: "none"; "joints": seven joints (rad) and two fingers (m), as in agent/qpos of ManiSkill's demos; "pose":
            the pose of the point between the fingertips as in extra/tcp_pose (position in m, quaternion w, x, y, z, of
            the world), and two fingers (m); "simulator": all.
        task: `env.task`, which only "pose" asks for.

    Raises:
        UserError: an unknown name, or a task that does not say where that pose is.
    """
    if kind not in KINDS:
        raise UserError(f"teacher.state={kind!r} is not one of {', '.join(KINDS)}.")
    if kind != "pose":
        return ToldState(kind, {"none": (), "joints": _JOINTS, "simulator": None}[kind])
    first = find_task(task).tcp_pose
    if first is None:
        raise UserError(
            f"teacher.state='pose' is not known in {task}: set tcp_pose of that Task (where extra/tcp_pose begins in "
            "its state), or teacher.state to joints or simulator."
        )
    return ToldState(kind, (*range(first, first + _POSE_DIM), *_FINGERS))
