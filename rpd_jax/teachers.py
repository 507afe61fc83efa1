"""What a teacher is, and how one is found by name. Imports no teacher."""

import sys
from collections.abc import Callable
from typing import Any, Protocol

from jaxtyping import Array, Float32, Key, UInt8
from ml_collections import ConfigDict

from rpd_jax import registry
from rpd_jax.errors import UserError

GROUP = "rpd_jax.teachers"


class Teacher(Protocol):
    """A vision-language-action model that labels camera frames.

    Of `act` and `begin` a class that inherits from this one needs to have one: each is made of the other.

    Attributes:
        worthwhile_batch: frames, at least so many of which should be looked at together.

    A teacher that looks at the simulator's state says so by an attribute `sees_state = True`: `act` and `begin` are
    then given `state` float32 [B, D] too, by that name. One that looks at nothing else has `sees_frames = False`
    besides, and is given None for the frames where nobody else looks at them.

    One that predicts several actions at a time says how many by an attribute `horizon` (None: it does not know before
    it is asked). `act` and `begin` then take `steps`, and give the first so many actions of each chunk, float32
    [S, B, steps, 7].
    """

    worthwhile_batch: int

    def act(
        self,
        rgb: UInt8[Array, "B H W 3"],
        instruction: str,
        key: Key[Array, ""],
        num_samples: int = 1,
        first_frame: int = 0,
        **others: Any,
    ) -> Float32[Array, "{num_samples} B 7"]:
        """Returns actions for frames; deterministic given `key`.

        Args:
            rgb: frames of the human camera, on the device.
            instruction: the sentence that all B frames share.
            key: JAX random key.
            num_samples: actions drawn per frame, S.
            first_frame: number of the first frame; the samples of frame i follow from `key` and `first_frame` + i, so
                that parts of a batch get the same ones as the whole.
            others: `state` and `steps`, where the teacher takes them.

        Returns:
            S actions for each frame, in the environment's convention: translation, rotation and gripper in [-1, 1].
        """
        return self.begin(rgb, instruction, key, num_samples, first_frame, **others)()

    def begin(
        self,
        rgb: UInt8[Array, "B H W 3"],
        instruction: str,
        key: Key[Array, ""],
        num_samples: int = 1,
        first_frame: int = 0,
        **others: Any,
    ) -> Callable[[], Float32[Array, "{num_samples} B 7"]]:
        """Like `act`, but returns as soon as the work has begun: a function that waits for the actions."""
        actions = self.act(rgb, instruction, key, num_samples, first_frame, **others)
        return lambda: actions  # which JAX computes in the background

    def close(self) -> None:
        """Releases processes and memory; further calls of `act` are errors."""


def sees_frames(teacher: Teacher) -> bool:
    """True if it must be shown frames."""
    return getattr(teacher, "sees_frames", True)


def sees_state(teacher: Teacher) -> bool:
    """True if it must be told the simulator's state."""
    return getattr(teacher, "sees_state", False)


def look(teacher: Teacher, state: Array | None) -> dict[str, Array]:
    """The arguments of `act` and `begin` that only some teachers take: the state, for those that see it."""
    return {"state": state} if sees_state(teacher) else {}


def print_to_stderr(text: str) -> None:
    """Tells the user, where a teacher is not told whom to tell."""
    print(text, file=sys.stderr, flush=True)


def check_frames(rgb: Array) -> None:
    """Raises UserError unless these are camera frames: uint8 [B, H, W, 3]."""
    if rgb.ndim != 4 or rgb.shape[-1] != 3 or rgb.dtype != "uint8":
        raise UserError(f"Frames must be uint8 [B, H, W, 3]; {rgb.dtype} {list(rgb.shape)} was given.")


def check_horizon(teacher: Teacher, steps: int, setting: str) -> None:
    """Raises UserError if a teacher's chunks are known to have fewer than `steps` actions, as `setting` wants them."""
    horizon = getattr(teacher, "horizon", 1)
    if horizon is not None and steps > horizon:
        raise UserError(f"{setting} asks for more actions than this teacher predicts at once: give {horizon} at most.")


def load_teacher(config: ConfigDict) -> Teacher:
    """Loads the teacher that `config.teacher` names.

    Teachers are entry points of the group `rpd_jax.teachers`: functions of the resolved training config that return a
    `Teacher`.

    Args:
        config: the resolved training config; reads `teacher`.

    Raises:
        UserError: unknown name, a package that offers no function, or a checkpoint that is missing or broken.
    """
    return registry.load(GROUP, config.teacher.name, Callable)(config)


def teacher_names() -> tuple[str, ...]:
    """The names that `config.teacher.name` may have; raises UserError if there are none."""
    names = registry.names(GROUP)
    if not names:
        raise UserError("No installed package offers a teacher, so this project is not installed: run `make setup`.")
    return names
