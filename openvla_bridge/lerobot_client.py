"""A LeRobot policy as a teacher: implements `rpd_jax.teachers.Teacher` on workers in processes of their own."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from openvla_bridge.request import Known, Request
from openvla_bridge.team import Model, WorkerTeam, print_to_stderr
from openvla_bridge.uniforms import frame_uniforms
from rpd_jax.action_convention import ACTION_DIM
from rpd_jax.errors import UserError
from rpd_jax.robot_state import told_state
from rpd_jax.teachers import Teacher, check_frames


class LeRobotTeacher(Teacher):
    """Labels frames with the actions of a LeRobot policy, on one worker per device.

    The policy's own processors normalise, the gripper is turned into the environment's (+1 = open), and all is clipped
    to [-1, 1]. The actions of frame i depend on that frame, its state, `instruction`, `key` and i only, up to the
    rounding of differently sized batches.

    Attributes:
        horizon: actions of a chunk.
        sees_state: whether the policy is told the robot's state besides.
        team: the workers.
        worthwhile_batch: what keeps all workers busy with batches of `batch_size`.

    Args:
        checkpoint: a folder that LeRobot's `save_pretrained` wrote, policy and processors, or hf://owner/name.
        state: what fills observation.state, where the policy has it: see `rpd_jax.robot_state.told_state`.
        task: `env.task`, whose states are shown.
        image: the policy's name of the image that frames are, "observation.images.front"; it matters where the policy
            sees several.
        image_size: height and width in pixels of the frames that it will be shown; None: it is compared with the
            policy's when they come.
        devices: one worker for each, as torch names them; "auto" is the GPU where there is one, else the CPU.
        python: the interpreter of the workers' environment; this one if empty.
        precision: "float32": the policy's own; "bfloat16": torch's autocast.
        gripper: what the gripper's number means, see `action_convention.choose_gripper`.
        batch_size: frames that go through the model at a time.
        start_timeout: seconds without news from a starting worker until it is given up.
        request_timeout: seconds until a request of `batch_size` frames is given up.
        say: is told the workers' progress.

    Raises:
        UserError: anything that keeps the workers from starting, and a policy that cannot be a teacher here.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        state: str = "none",
        task: str = "",
        image: str = "",
        image_size: int | None = None,
        devices: Sequence[str] = ("auto",),
        python: str = "",
        precision: str = "float32",
        gripper: str = "auto",
        batch_size: int = 32,
        start_timeout: float = 1800.0,
        request_timeout: float = 600.0,
        say: Callable[[str], None] = print_to_stderr,
    ):
        self._checkpoint, self._told = checkpoint, told_state(state, task)

        def check(known: Known) -> None:
            self._check_state(known.state_dim)
            if image_size is not None:
                self._check_size(known, (image_size, image_size))

        self.team = WorkerTeam(
            Model("LeRobot", "lerobot", checkpoint, precision, {"image": image}),
            devices=devices,
            python=python,
            gripper=gripper,
            batch_size=batch_size,
            start_timeout=start_timeout,
            request_timeout=request_timeout,
            check=check,
            say=say,
        )
        self.worthwhile_batch, self.horizon = self.team.worthwhile_batch, self.team.horizon
        self.sees_state = self.team.known.state_dim > 0

    def begin(
        self,
        rgb: jax.Array,
        instruction: str,
        key: jax.Array,
        num_samples: int = 1,
        first_frame: int = 0,
        steps: int | None = None,
        state: jax.Array | None = None,
    ) -> Callable[[], jax.Array]:
        """Returns once the workers have what they can take; see `rpd_jax.teachers.Teacher`.

        Args:
            rgb: uint8 [B, H, W, 3].
            instruction: the sentence that all frames share.
            key: random key of the samples.
            num_samples: S; they differ only if the policy draws random numbers.
            first_frame: number of the first frame.
            steps: how many actions of each chunk; None: the first one, without an axis for them.
            state: float32 [B, D], the simulator's; needed if `sees_state`.

        Returns:
            a function that waits for the actions: float32 [S, B, 7] in [-1, 1], or [S, B, steps, 7].

        Raises:
            UserError: a worker failed, and all of them were ended then; or frames, states or chunks that do not fit.
        """
        check_frames(rgb)
        self._check_size(self.team.known, rgb.shape[1:3])
        if steps is not None and steps > self.horizon:
            raise UserError(f"{self._checkpoint} predicts {self.horizon} actions at a time, and {steps} are wanted.")
        request = Request(
            np.asarray(rgb),
            self._state_of(state, len(rgb)),
            instruction,
            num_samples,
            steps or 1,
            np.asarray(frame_uniforms(key, first_frame, len(rgb), num_samples, ACTION_DIM)),
        )
        finish = self.team.begin(request)
        return lambda: jnp.asarray(finish() if steps else finish()[:, :, 0])

    def close(self) -> None:
        """Ends the workers."""
        self.team.close()

    def _check_state(self, wanted: int) -> None:
        given = self._told.size
        if wanted == 0 or given is None or wanted == given:
            return
        what = f"is {given} numbers" if given else "gives it none"
        raise UserError(
            f"{self._checkpoint} takes an observation.state of {wanted} numbers, and teacher.state={self._told.kind!r} "
            f"{what}: set teacher.state to what it was trained with (joints: 9, seven joints and two fingers; pose: 9, "
            "the gripper's pose and two fingers; simulator: the whole state of the task), or give a policy that sees "
            "the image only."
        )

    def _check_size(self, known: Known, drawn: Sequence[int]) -> None:
        height, width = known.image_size
        if (height, width) in ((0, 0), tuple(drawn)):
            return
        mend = f"set env.image_size={height}" if height == width else "frames are square, so it cannot be a teacher"
        raise UserError(
            f"{self._checkpoint} takes images of {height} x {width} pixels; the frames have {drawn[0]} x {drawn[1]}: "
            f"{mend}."
        )

    def _state_of(self, state: jax.Array | None, frames: int) -> np.ndarray:
        """What the policy is told of a state, float32 [B, its D]."""
        wanted = self.team.known.state_dim
        if not wanted:
            return np.empty((frames, 0), np.float32)
        if state is None:
            raise UserError(f"{self._checkpoint} looks at the state: give it one beside the frames.")
        told = self._told.of(state, frames)
        if told.shape[1] != wanted:
            raise UserError(
                f"{self._checkpoint} takes an observation.state of {wanted} numbers; teacher.state={self._told.kind!r} "
                f"of this task has {told.shape[1]}."
            )
        return told


def load(config: ConfigDict) -> LeRobotTeacher:
    """The teacher `lerobot` of `rpd_jax.teachers`: reads `config.teacher`, and task and image size of `config.env`."""
    settings = config.teacher
    return LeRobotTeacher(
        settings.checkpoint,
        state=settings.state,
        task=config.env.task,
        image=settings.observation.image,
        image_size=config.env.image_size,
        devices=tuple(settings.devices),
        python=settings.python,
        precision=settings.precision,
        gripper=settings.gripper,
        batch_size=settings.batch_size,
        start_timeout=settings.start_timeout,
        request_timeout=settings.request_timeout,
    )
