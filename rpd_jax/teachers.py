"""What a teacher is, and how one is found by name."""

import importlib.resources
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import jax
from ml_collections import ConfigDict

from rpd_jax.errors import UserError

EMBEDDED_TEACHER = "octo-nano"


class Teacher(Protocol):
    """A vision-language-action model that labels camera frames.

    Attributes:
        worthwhile_batch: frames, at least so many of which should be looked at together.
    """

    worthwhile_batch: int

    def act(
        self, rgb: jax.Array, instruction: str, key: jax.Array, num_samples: int = 1, first_frame: int = 0
    ) -> jax.Array:
        """Returns actions for frames; deterministic given `key`.

        Args:
            rgb: uint8 [B, H, W, 3] frames of the human camera, on the device.
            instruction: the sentence that all B frames share.
            key: JAX random key.
            num_samples: actions drawn per frame, S.
            first_frame: number of the first frame; the samples of frame i follow from `key` and `first_frame` + i, so
                that parts of a batch get the same ones as the whole.

        Returns:
            float32 [S, B, 7] in the environment's convention: translation, rotation and gripper in [-1, 1].
        """

    def begin(
        self, rgb: jax.Array, instruction: str, key: jax.Array, num_samples: int = 1, first_frame: int = 0
    ) -> Callable[[], jax.Array]:
        """Like `act`, but returns as soon as the work has begun: a function that waits for the actions."""

    def close(self) -> None:
        """Releases processes and memory; further calls of `act` are errors."""


def load_teacher(config: ConfigDict) -> Teacher:
    """Loads the teacher that `config.teacher` names.

    Args:
        config: the resolved training config; reads `teacher`.

    Raises:
        UserError: unknown name, or a checkpoint that is missing or broken.
    """
    if config.teacher.name == "octo":
        from octo_teacher.teacher import OctoTeacher

        return OctoTeacher.load(
            find_checkpoint(config.teacher.checkpoint),
            dataset=config.teacher.get("dataset") or None,
            precision=config.teacher.get("precision") or "float32",
        )
    if config.teacher.name == "openvla":
        from openvla_bridge.client import OpenVLATeacher

        return OpenVLATeacher(
            config.teacher.checkpoint,
            devices=tuple(config.teacher.devices),
            python=config.teacher.python,
            precision=config.teacher.precision,
            dataset=config.teacher.dataset,
            temperature=config.teacher.temperature,
            batch_size=config.teacher.batch_size,
            start_timeout=config.teacher.start_timeout,
            request_timeout=config.teacher.request_timeout,
        )
    raise UserError(f"teacher.name={config.teacher.name!r} is not a teacher: allowed are 'octo' and 'openvla'.")


def find_checkpoint(name: str) -> str:
    """Returns where a checkpoint is: `name` itself if it is a folder or hub address, else the embedded one so called.

    Raises:
        UserError: there is neither.
    """
    if name.startswith("hf://") or Path(name).is_dir():
        return name
    embedded = Path(str(importlib.resources.files("octo_teacher"))) / "pretrained"
    if (embedded / name / "config.json").is_file():
        return str(embedded / name)
    names = sorted(path.parent.name for path in embedded.glob("*/config.json"))
    raise UserError(
        f"teacher.checkpoint={name!r} is not a folder: give a checkpoint's folder, hf://owner/name, "
        f"or one of the embedded teachers ({', '.join(names)})."
    )
