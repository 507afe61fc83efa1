"""ManiSkill's Panda for one environment on the CPU: the same numbers, bit for bit, in less time.

Half of a step in which nothing is drawn goes into a hundred calls of PyTorch on tensors of three or four numbers
(`PDEEPoseController.set_action`). The arithmetic here is ManiSkill's in the same order, in float32 scalars;
where the last bits are the library's own, as in a product of matrices or a square root, the library is asked.
"""

import functools

import mani_skill
import numpy as np
import sapien
import torch
from mani_skill.agents.base_agent import BaseAgent
from mani_skill.agents.controllers import PDEEPoseController
from mani_skill.agents.robots import Panda
from mani_skill.utils.structs import Actor

_Quaternion = tuple[np.float32, np.float32, np.float32, np.float32]  # the real part first
_Vector = tuple[np.float32, np.float32, np.float32]

# Of ManiSkill, that do what is done here; others are left alone.
_VERSIONS = ("3.0.1",)
_ZERO, _ONE = np.float32(0), np.float32(1)


class QuickPoseController(PDEEPoseController):
    """`PDEEPoseController` as `pd_ee_delta_pose` configures it, with one environment on the CPU."""

    def set_action(self, action: torch.Tensor) -> None:
        """Aims the joints at the pose that an action, float32 [1, 6] in [-1, 1], asks for."""
        self._step = 0
        self._start_qpos = self.qpos
        move, turn = self._scaled(action[0])
        base, hand = self.root_link._objs[0].entity_pose, self.ee_link._objs[0].entity_pose
        (x, y, z), rotation = _seen_from(base.p, tuple(base.q), tuple(hand.p), tuple(hand.q))
        position = (x + move[0], y + move[1], z + move[2])
        rotation = _product(_standard(_quaternion(_matrix(turn))), rotation)
        kinematics, articulation = self.kinematics, self.articulation._objs[0]
        joints, found, _ = kinematics.pmodel.compute_inverse_kinematics(
            kinematics.end_link_idx,
            sapien.Pose(np.array(position), np.array(_standard(rotation))),
            initial_qpos=articulation.qpos[kinematics.pmodel_active_joint_indices.numpy()],
            active_qmask=kinematics.qmask,
            max_iterations=100,
        )
        self._target_qpos = self._start_qpos
        if found:
            controlled = joints[kinematics.pmodel_controlled_joint_indices.numpy()].astype(np.float32)
            self._target_qpos = torch.from_numpy(controlled[None])
        for joint, target in zip(self.joints, self._target_qpos[0].numpy(), strict=True):
            joint._objs[0].drive_target = target[None]

    def _scaled(self, action: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Metres and radians that an action asks for, float32 [3] each."""
        half, low = np.float32(0.5), self.action_space_low.numpy()[:3]
        high = self.action_space_high.numpy()[:3]
        values = action.numpy()
        move = half * (high + low) + half * (high - low) * np.clip(values[:3], np.float32(-1), _ONE)
        norm = torch.linalg.norm(action[None, 3:], axis=1).numpy()
        turn = values[3:] * (_ONE / norm) if norm[0] > 1 else values[3:]
        return move, turn * np.float32(self.config.rot_lower)


def make_quick(agent: BaseAgent) -> None:
    """Takes the quicker ways for the agent of a simulation on the CPU with one environment, if it is known to us."""
    if not isinstance(agent, Panda) or mani_skill.__version__ not in _VERSIONS:
        return
    for controller in getattr(agent.controller, "controllers", {}).values():
        config = controller.config
        if type(controller) is PDEEPoseController and (
            config.frame == "root_translation:root_aligned_body_rotation"
            and config.use_delta
            and config.normalize_action
            and not (config.use_target or config.interpolate)
        ):
            controller.__class__ = QuickPoseController
    if type(agent).is_grasping is Panda.is_grasping:
        agent.is_grasping = functools.partial(_is_grasping, agent)


def _is_grasping(agent: Panda, object: Actor, min_force: float = 0.5, max_angle: float = 85) -> torch.Tensor:
    """`Panda.is_grasping`, which looks at angles even where a finger touches nothing; bool [1]."""
    for finger in (agent.finger1_link, agent.finger2_link):
        force = agent.scene.get_pairwise_contact_forces(finger, object)
        if not torch.linalg.norm(force, axis=1)[0] >= min_force:
            return torch.zeros(1, dtype=torch.bool)
    return Panda.is_grasping(agent, object, min_force, max_angle)


def _seen_from(
    base_position: np.ndarray, base_rotation: _Quaternion, position: _Vector, rotation: _Quaternion
) -> tuple[_Vector, _Quaternion]:
    """A pose in the frame of another."""
    inverse = _conjugate(base_rotation)
    x, y, z = _turned(inverse, tuple(-base_position))
    dx, dy, dz = _turned(inverse, position)
    return (x + dx, y + dy, z + dz), _standard(_product(inverse, rotation))


def _conjugate(q: _Quaternion) -> _Quaternion:
    return q[0], -q[1], -q[2], -q[3]


def _standard(q: _Quaternion) -> _Quaternion:
    return (-q[0], -q[1], -q[2], -q[3]) if q[0] < 0 else q


def _product(a: _Quaternion, b: _Quaternion) -> _Quaternion:
    aw, ax, ay, az = a
    bw, bx, by, bz = b
    return (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )


def _turned(q: _Quaternion, point: _Vector) -> _Vector:
    return _product(_product(q, (_ZERO, *point)), _conjugate(q))[1:]


def _matrix(angles: np.ndarray) -> np.ndarray:
    """The rotation about x, then about the new y and z, float32 [9]."""
    angles = torch.from_numpy(angles)
    (cx, cy, cz), (sx, sy, sz) = torch.cos(angles).numpy(), torch.sin(angles).numpy()
    axes = np.array(
        [
            [_ONE, _ZERO, _ZERO, _ZERO, cx, -sx, _ZERO, sx, cx],
            [cy, _ZERO, sy, _ZERO, _ONE, _ZERO, -sy, _ZERO, cy],
            [cz, -sz, _ZERO, sz, cz, _ZERO, _ZERO, _ZERO, _ONE],
        ]
    )
    x, y, z = torch.from_numpy(axes.reshape(3, 1, 3, 3))
    return torch.matmul(torch.matmul(x, y), z).numpy().ravel()


def _quaternion(matrix: np.ndarray) -> _Quaternion:
    """Of a rotation matrix; the best conditioned of four ways."""
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = matrix
    squares = np.array(
        [
            _ONE + m00 + m11 + m22,
            _ONE + m00 - m11 - m22,
            _ONE - m00 + m11 - m22,
            _ONE - m00 - m11 + m22,
        ]
    )
    # PyTorch's square root is not always the nearest number, and may depend on how many there are.
    positive = squares > 0
    roots = np.zeros_like(squares)
    roots[positive] = torch.sqrt(torch.from_numpy(squares[positive])).numpy()
    best = int(np.argmax(roots))
    root = roots[best]
    square = root * root
    numerators = (
        (square, m21 - m12, m02 - m20, m10 - m01),
        (m21 - m12, square, m10 + m01, m02 + m20),
        (m02 - m20, m10 + m01, square, m12 + m21),
        (m10 - m01, m20 + m02, m21 + m12, square),
    )[best]
    divisor = np.float32(2) * max(root, np.float32(0.1))
    return tuple(numerator / divisor for numerator in numerators)
