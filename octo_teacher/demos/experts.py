"""Scripted closed-loop experts that act on privileged poses, in control mode pd_ee_delta_pose.

Every expert is a function of the current poses alone, so the same observation always carries the same label, which is
what imitation needs. An action component of 1 commands 0.1 m and moves the tool about 0.04 m in one control step;
where inverse kinematics has no solution the arm does not move at all, so commands are kept inside its reach.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import gymnasium as gym
import numpy as np

from rpd_jax.errors import UserError

OPEN, CLOSED = 1.0, -1.0
# Commands fingers 4 cm apart: about a peg of 5 cm a grip in which it can turn.
LOOSE = 0.2
Poses = Mapping[str, np.ndarray]


class Expert(NamedTuple):
    """A scripted policy and the simulator's objects that it looks at.

    Attributes:
        actors: attribute names of the task whose poses the policy reads.
        act: poses by name -> action float32 [7] in [-1, 1]. Each pose is float64 [7]: position in metres (world axes)
            and quaternion (w, x, y, z). "tcp" is the tool; "fingers" holds the two finger joints, float64 [2], metres.
    """

    actors: tuple[str, ...]
    act: Callable[[Poses], np.ndarray]


def read_poses(env: gym.Env, expert: Expert) -> dict[str, np.ndarray]:
    """Returns the poses that `expert` reads from a ManiSkill environment with num_envs=1."""
    task = env.unwrapped
    poses = {name: np.asarray(getattr(task, name).pose.raw_pose[0], np.float64) for name in expert.actors}
    poses["tcp"] = np.asarray(task.agent.tcp.pose.raw_pose[0], np.float64)
    poses["fingers"] = np.asarray(task.agent.robot.get_qpos()[0, -2:], np.float64)
    return poses


def find_expert(env_id: str) -> Expert:
    """Returns the expert of a task; raises UserError if the task has none."""
    if env_id not in EXPERTS:
        raise UserError(f"There is no scripted expert for {env_id!r}: demos can be recorded of {', '.join(EXPERTS)}.")
    return EXPERTS[env_id]


def _action(translation, gripper: float, rotation=(0.0, 0.0, 0.0)) -> np.ndarray:
    return np.clip(np.concatenate([translation, rotation, [gripper]]), -1.0, 1.0).astype(np.float32)


def _towards(target, tcp) -> np.ndarray:
    # 0.05 m per unit rather than the 0.04 m that one step moves: no overshoot.
    return (np.asarray(target) - tcp) / 0.05


def push_cube(poses: Poses) -> np.ndarray:
    """Goes down behind the cube with closed fingers and pushes it along x."""
    tcp, cube = poses["tcp"][:3], poses["obj"][:3]
    ahead, aside = cube[0] - tcp[0], cube[1] - tcp[1]
    # Beyond x = 0.18 m the arm has no solution near the table.
    forward = np.clip((0.18 - tcp[0]) / 0.1, 0.1, 0.7)
    if ahead > 0.02 and abs(aside) < 0.025 and tcp[2] < 0.065:
        return _action([forward, aside / 0.05, (0.03 - tcp[2]) / 0.05], CLOSED)
    behind_cube = ahead > 0.045 and abs(aside) < 0.03
    move = _towards([cube[0] - 0.065, cube[1], 0.02 if behind_cube else 0.09], tcp)
    move[0] = min(move[0], forward)
    return _action(move, CLOSED)


def pull_cube(poses: Poses) -> np.ndarray:
    """Goes down beyond the cube with closed fingers and pulls it along -x."""
    tcp, cube = poses["tcp"][:3], poses["obj"][:3]
    beyond, aside = tcp[0] - cube[0], cube[1] - tcp[1]
    if beyond > 0.015 and abs(aside) < 0.025 and tcp[2] < 0.065:
        return _action([-0.7, aside / 0.05, (0.02 - tcp[2]) / 0.05], CLOSED)
    over_far_side = beyond > 0.04 and abs(aside) < 0.03
    move = _towards([cube[0] + 0.06, cube[1], 0.02 if over_far_side else 0.09], tcp)
    move[0] = min(move[0], np.clip((0.18 - tcp[0]) / 0.1, 0.1, 1.0))
    return _action(move, CLOSED)


def pick_cube(poses: Poses) -> np.ndarray:
    """Grasps the cube from above and carries it to the goal."""
    grasp = _grasp(poses["tcp"][:3], poses["cube"][:3], poses["fingers"])
    if grasp is not None:
        return grasp
    return _action((poses["goal_site"][:3] - poses["cube"][:3]) / 0.07, CLOSED)


def stack_cube(poses: Poses) -> np.ndarray:
    """Grasps cube A from above, sets it down on cube B and lets go."""
    tcp, cube, base = poses["tcp"][:3], poses["cubeA"][:3], poses["cubeB"][:3]
    offset = cube - base
    aside = np.linalg.norm(offset[:2])
    if aside < 0.015 and offset[2] < 0.0435:
        return _action([0.0, 0.0, 0.0 if poses["fingers"].min() < 0.03 else 0.5], OPEN)
    grasp = _grasp(tcp, cube, poses["fingers"])
    if grasp is not None:
        return grasp
    height = 0.038 if aside < 0.012 else 0.075
    move = (base + np.array([0.0, 0.0, height]) - cube) / 0.06
    # Near the other cube sideways only above it.
    if 0.012 < aside < 0.12 and offset[2] < 0.055:
        move[:2] = 0.0
    return _action(move, CLOSED)


def roll_ball(poses: Poses) -> np.ndarray:
    """Grips the ball, carries it towards the goal at full speed and lets go on the way.

    The robot stands at y = 1 m and looks along -y, so its axes (x, y) are the world's (-y, x).
    """
    tcp, ball, goal = poses["tcp"][:3], poses["ball"][:3], poses["goal_region"][:3]
    offset = ball - tcp
    aside = np.linalg.norm(offset[:2])
    if ball[1] < 0.36:
        move, gripper = goal - ball, OPEN
        move = move / np.abs(move).max() if aside < 0.04 else np.zeros(3)
    elif aside < 0.025 and abs(offset[2]) < 0.02:
        gripped = poses["fingers"].max() < 0.0365
        move = goal - ball if gripped else np.zeros(3)
        move, gripper = move / max(np.abs(move).max(), 1e-6), CLOSED
    else:
        height = 0.035 if aside < 0.015 else 0.1
        move, gripper = _towards([ball[0], ball[1], height], tcp), OPEN
    if gripper == CLOSED or ball[1] < 0.36:
        move[2] = (0.036 - tcp[2]) / 0.05
    return _action([-move[1], move[0], move[2]], gripper)


def lift_peg_upright(poses: Poses) -> np.ndarray:
    """Grips the far end of the peg loosely, swings it up about the near end, and lets go."""
    tcp, peg = poses["tcp"][:3], poses["peg"][:3]
    w, x, y, z = poses["peg"][3:]
    axis = np.array([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)])
    if axis[0] < 0 and axis[2] < 0.5:
        axis = -axis
    tilt = np.arctan2(axis[2], axis[0])
    # Beyond x = 0.17 m the arm has no solution near the table.
    grip = np.clip(0.17 - (peg[0] if tilt < 0.1 else 0.0), 0.06, 0.09)
    at = peg + grip * axis
    offset = at - tcp
    if tilt < 0.05:
        if np.linalg.norm(offset[:2]) > 0.02:
            return _action(_towards([at[0], at[1], at[2] + 0.07], tcp), OPEN)
        if abs(offset[2]) > 0.015:
            return _action(_towards(at, tcp), OPEN)
        if poses["fingers"].max() > 0.03:
            return _action(_towards(at, tcp), LOOSE)
    turn = np.clip(np.pi / 2 - tilt, -0.25, 0.25)
    pivot = peg - 0.12 * axis
    lever = tcp - pivot
    turned = np.array(
        [np.cos(turn) * lever[0] - np.sin(turn) * lever[2], lever[1], np.sin(turn) * lever[0] + np.cos(turn) * lever[2]]
    )
    pivot[2] = 0.025 * max(np.cos(tilt + turn), 0.0)
    return _action((pivot + turned - tcp) / 0.05, LOOSE)


def _grasp(tcp: np.ndarray, cube: np.ndarray, fingers: np.ndarray) -> np.ndarray | None:
    """The action that brings the cube between closed fingers; None once it is there."""
    offset = cube - tcp
    aside = np.linalg.norm(offset[:2])
    if aside < 0.02 and abs(offset[2]) < 0.015:
        return None if fingers.max() < 0.032 else _action(_towards(cube, tcp), CLOSED)
    if aside < 0.02:
        return _action(_towards(cube, tcp), OPEN)
    return _action(_towards([cube[0], cube[1], max(cube[2] + 0.06, min(tcp[2], 0.1))], tcp), OPEN)


EXPERTS: dict[str, Expert] = {
    "LiftPegUpright-v1": Expert(("peg",), lift_peg_upright),
    "PickCube-v1": Expert(("cube", "goal_site"), pick_cube),
    "PullCube-v1": Expert(("obj",), pull_cube),
    "PushCube-v1": Expert(("obj",), push_cube),
    "RollBall-v1": Expert(("ball", "goal_region"), roll_ball),
    "StackCube-v1": Expert(("cubeA", "cubeB"), stack_cube),
}
