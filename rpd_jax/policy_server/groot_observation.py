"""What a GR00T policy is shown of a batch of moments, under the names that the policy wants."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from rpd_jax.errors import UserError
from rpd_jax.policy_server.groot_wire import Modality
from rpd_jax.policy_server.observation import resized
from rpd_jax.robot_state import NOTHING, ToldState


@dataclasses.dataclass(frozen=True)
class GrootMap:
    """How an observation is laid out.

    Attributes:
        video: name of the frames.
        language: names of the instruction, under each of which it is sent.
        state: names of the state's parts with how many numbers each has, one after the other; None: all that there are.
        told: the numbers that are the state; none are sent if it is none.
        size: (height, width) of the frames that are sent; as they are rendered if empty.
        letterbox: frames keep their proportions and get black borders, instead of being stretched.
    """

    video: str
    language: tuple[str, ...]
    state: tuple[tuple[str, int | None], ...] = ()
    told: ToldState = NOTHING
    size: tuple[int, ...] = ()
    letterbox: bool = True

    def observation(self, frames: np.ndarray, instruction: str, told: np.ndarray) -> dict[str, dict]:
        """Returns the observation of frames uint8 [B, H, W, 3], and of what is told of their states, float32 [B, D]."""
        if self.size:
            frames = np.stack([resized(frame, *self.size, letterbox=self.letterbox) for frame in frames])
        state, begin = {}, 0
        for name, numbers in self.state:
            end = told.shape[1] if numbers is None else begin + numbers
            state[name], begin = told[:, None, begin:end], end
        return {
            "video": {self.video: frames[:, None]},
            "state": state,
            "language": {name: [[instruction]] * len(frames) for name in self.language},
        }

    def check(self, modalities: Mapping[str, Modality], address: str) -> None:
        """Raises UserError if a policy sees something else, as far as its server says what it sees."""
        names = {"video": (self.video,), "state": tuple(name for name, _ in self.state), "language": self.language}
        for kind, setting in (("video", "image"), ("state", "state"), ("language", "prompt")):
            if kind not in modalities:
                continue
            wanted, given = modalities[kind], names[kind]
            if set(wanted.names) != set(given):
                mend = " and teacher.state" if kind == "state" else ""
                raise UserError(
                    f"The policy of {address} sees the {kind} {_listed(wanted.names)}, and it would be shown "
                    f"{_listed(given)}: set teacher.observation.{setting}{mend}, or serve a policy that sees what "
                    "there is."
                )
            if wanted.names and wanted.moments != 1:
                raise UserError(
                    f"The policy of {address} sees {wanted.moments} moments of its {kind} at a time, and it would be "
                    "shown one: serve a policy that sees one."
                )


def state_parts(setting: str, told: ToldState) -> tuple[tuple[str, int | None], ...]:
    """Reads `teacher.observation.state`: one name, or several as name:numbers, separated by commas.

    Raises:
        UserError: they do not share out the numbers that are told.
    """
    if told.size == 0:
        return ()
    parts = []
    for part in setting.split(","):
        name, _, count = part.strip().removeprefix("state.").partition(":")
        parts.append((name, int(count) if count.isdecimal() and count.isascii() else None))
    counts = [count for _, count in parts]
    alone = len(parts) == 1 and ":" not in setting
    if not alone and (None in counts or told.size not in (None, sum(counts)) or len(dict(parts)) < len(parts)):
        numbers = "its numbers" if told.size is None else f"its {told.size} numbers"
        raise UserError(
            f"teacher.observation.state={setting!r} does not share out teacher.state={told.kind!r}: give one name, or "
            f"several with how many of {numbers} each has, such as arm:7,gripper:2."
        )
    return tuple(parts)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)[:200] or "nothing"
