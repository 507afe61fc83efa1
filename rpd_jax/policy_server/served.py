"""What the teachers behind policy servers have in common, whatever their protocol."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rpd_jax.action_convention import ACTION_DIM
from rpd_jax.errors import UserError
from rpd_jax.policy_server.answers import labels
from rpd_jax.policy_server.api_key import read_api_key
from rpd_jax.policy_server.connections import Batch, Connections
from rpd_jax.robot_state import ToldState
from rpd_jax.teachers import Teacher, check_frames, print_to_stderr


@dataclasses.dataclass(frozen=True)
class Servers:
    """Where the servers are and how they are spoken to.

    Attributes:
        addresses: all are to serve the same policy.
        connections: to each address.
        api_key: sent to all of them, or None.
        start_timeout: seconds that a server is waited for.
        request_timeout: seconds until a request is asked again elsewhere.
        say: is told what is waited for.
    """

    addresses: Sequence[str]
    connections: int = 4
    api_key: str | None = None
    start_timeout: float = 1800.0
    request_timeout: float = 600.0
    say: Callable[[str], None] = print_to_stderr

    @classmethod
    def from_config(cls, teacher: ConfigDict) -> "Servers":
        """Those of a resolved config's `teacher`; raises UserError if its API key cannot be read."""
        return cls(
            [address.strip() for address in teacher.address.split(",") if address.strip()],
            teacher.connections,
            read_api_key(teacher.api_key_file, "teacher.api_key_file"),
            teacher.start_timeout,
            teacher.request_timeout,
        )

    @property
    def names(self) -> str:
        """For sentences."""
        return " and ".join(self.addresses)

    def connect(self, protocol: Any, such_as: str) -> Connections:
        """Connects to all; raises UserError if there are none (with an example) or none that can be spoken to."""
        if not self.addresses:
            raise UserError(f"teacher.address='' names no policy server: give one, such as {such_as}.")
        return Connections(
            self.addresses,
            protocol,
            each=self.connections,
            start_timeout=self.start_timeout,
            request_timeout=self.request_timeout,
            say=self.say,
        )


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a teacher was asked.

    Attributes:
        frames: uint8 [B, H, W, 3].
        told: of the robot's state, float32 [B, d].
        instruction: the sentence that all frames share.
        key: random key of the samples.
        num_samples: S.
        first_frame: number of the first frame.
        steps: actions of each chunk.
    """

    frames: np.ndarray
    told: np.ndarray
    instruction: str
    key: jax.Array
    num_samples: int
    first_frame: int
    steps: int


class ServedTeacher(Teacher):
    """Turns frames into requests and answers into labels; how, the protocols' own teachers know.

    Attributes:
        sees_state: whether the policy is told the robot's state besides.
    """

    _gripper: str  # what its number means, of the protocol's own teacher

    def __init__(self, connections: Connections, told: ToldState):
        self.sees_state = told.size != 0
        self._connections, self._told = connections, told

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
        """Begins to ask; see `rpd_jax.teachers.Teacher`.

        Args:
            rgb: uint8 [B, H, W, 3].
            instruction: the sentence that all frames share.
            key: random key of the samples; counts only for servers that are told it.
            num_samples: S.
            first_frame: number of the first frame.
            steps: how many actions of each chunk; None: the first one, without an axis for them.
            state: float32 [B, D], the simulator's; needed if `sees_state`.

        Returns:
            a function that waits for the actions: float32 [S, B, 7] in [-1, 1], or [S, B, steps, 7]. It raises
            UserError if a server failed, was lost for too long, or answered what cannot be a label.
        """
        check_frames(rgb)
        frames = np.asarray(rgb)
        told = self._told.of(state, len(frames))
        actions = np.empty((num_samples, len(frames), steps or 1, ACTION_DIM), np.float32)
        asked = Asked(frames, told, instruction, key, num_samples, first_frame, steps or 1)
        batch = self._requests(asked, actions)
        self._connections.ask(batch)

        def finish() -> jax.Array:
            batch.done.result()
            return labels(actions, steps, self._gripper)

        return finish

    def close(self) -> None:
        """Closes the connections."""
        self._connections.close()

    def _requests(self, asked: Asked, actions: np.ndarray) -> Batch:
        """The requests for what was asked, and where their answers go: `actions`, float32 [S, B, steps, 7]."""
        raise NotImplementedError
