"""OpenVLA as a teacher: implements `rpd_jax.teachers.Teacher` on workers in processes of their own."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from openvla_bridge.request import Model, Request
from openvla_bridge.team import WorkerTeam
from openvla_bridge.uniforms import frame_uniforms
from rpd_jax.action_convention import ACTION_DIM
from rpd_jax.errors import UserError
from rpd_jax.teachers import Teacher, check_frames, print_to_stderr


class OpenVLATeacher(Teacher):
    """Labels frames with the actions of an OpenVLA checkpoint, on one worker per device.

    Actions are un-normalised with the checkpoint's statistics, the gripper is turned into the environment's (+1 = open)
    and all is clipped to [-1, 1]. The actions of frame i depend on that frame, `instruction`, `key` and i only, up to
    the rounding of differently sized batches.

    Attributes:
        worthwhile_batch: what keeps all workers busy with batches of `batch_size`.
        team: the workers.

    Args:
        checkpoint: a folder in OpenVLA's published layout, or hf://owner/name.
        devices: one worker for each, as torch names them; "auto" is the GPU where there is one, else the CPU.
        python: the interpreter of the workers' environment; this one if empty.
        precision: "float32" or "bfloat16".
        dataset: whose statistics un-normalise (`unnorm_key`); may be empty if the checkpoint has those of one.
        gripper: what the gripper's number means, see `action_convention.choose_gripper`.
        temperature: of sampled tokens; 0 takes the most likely ones.
        batch_size: frames that go through the model at a time.
        start_timeout: seconds without news from a starting worker until it is given up.
        request_timeout: seconds until a request of `batch_size` frames is given up.
        say: is told the workers' progress.

    Raises:
        UserError: anything that keeps the workers from starting.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        devices: Sequence[str] = ("auto",),
        python: str = "",
        precision: str = "float32",
        dataset: str = "",
        gripper: str = "auto",
        temperature: float = 0.0,
        batch_size: int = 32,
        start_timeout: float = 1800.0,
        request_timeout: float = 600.0,
        say: Callable[[str], None] = print_to_stderr,
    ):
        if not temperature >= 0.0:
            raise UserError(f"teacher.temperature={temperature} must not be negative; 0 takes the most likely action.")
        self._temperature, self._say = temperature, say
        self._told_of_other_tokens = False
        self.team = WorkerTeam(
            Model("OpenVLA", "openvla", checkpoint, precision, {"unnorm_key": dataset or None}),
            devices=devices,
            python=python,
            gripper=gripper,
            batch_size=batch_size,
            start_timeout=start_timeout,
            request_timeout=request_timeout,
            say=say,
        )
        self.worthwhile_batch = self.team.worthwhile_batch

    def begin(
        self, rgb: jax.Array, instruction: str, key: jax.Array, num_samples: int = 1, first_frame: int = 0
    ) -> Callable[[], jax.Array]:
        """Returns once the workers have what they can take; see `rpd_jax.teachers.Teacher`.

        What they cannot take yet is sent when another batch is begun or waited for.

        Args:
            rgb: uint8 [B, H, W, 3].
            instruction: the sentence that all frames share.
            key: random key of the samples.
            num_samples: S; they differ only if the temperature is above 0.
            first_frame: number of the first frame.

        Returns:
            a function that waits for the actions: float32 [S, B, 7] in [-1, 1].

        Raises:
            UserError: a worker failed; all of them were ended then.
        """
        check_frames(rgb)
        samples = num_samples if self._temperature else 1
        uniforms = None
        if self._temperature:
            uniforms = np.asarray(frame_uniforms(key, first_frame, len(rgb), num_samples, ACTION_DIM))
        frames = np.asarray(rgb)
        request = Request(
            frames,
            np.empty((len(frames), 0), np.float32),
            instruction,
            samples,
            uniforms=uniforms,
            temperature=self._temperature,
        )
        finish = self.team.begin(request, lambda other, count: self._warn(other, samples * count * ACTION_DIM))

        def actions() -> jax.Array:
            found = jnp.asarray(finish()[:, :, 0])
            return jnp.broadcast_to(found, (num_samples, *found.shape[1:]))

        return actions

    def close(self) -> None:
        """Ends the workers."""
        self.team.close()

    def _warn(self, other: int, tokens: int) -> None:
        if other and not self._told_of_other_tokens:
            self._told_of_other_tokens = True
            self._say(
                f"OpenVLA: {other} of {tokens} predicted tokens are no action tokens; they count as the nearest bin. "
                "The checkpoint may not be trained for this instruction or these images."
            )


def load(config: ConfigDict) -> OpenVLATeacher:
    """The teacher `openvla` of `rpd_jax.teachers`: reads `config.teacher`."""
    settings = config.teacher
    return OpenVLATeacher(
        settings.checkpoint,
        devices=tuple(settings.devices),
        python=settings.python,
        precision=settings.precision,
        dataset=settings.dataset,
        gripper=settings.get("gripper") or "auto",
        temperature=settings.temperature,
        batch_size=settings.batch_size,
        start_timeout=settings.start_timeout,
        request_timeout=settings.request_timeout,
    )
