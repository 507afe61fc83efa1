"""A policy behind GR00T's ZeroMQ as a teacher: implements `rpd_jax.teachers.Teacher`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rpd_jax.action_convention import ACTION_DIM, choose_gripper
from rpd_jax.errors import UserError
from rpd_jax.policy_server.answers import first_actions, no_such_key
from rpd_jax.policy_server.connections import Batch
from rpd_jax.policy_server.groot_observation import GrootMap, state_parts
from rpd_jax.policy_server.served import Asked, ServedTeacher, Servers
from rpd_jax.robot_state import told_state


class GrootTeacher(ServedTeacher):
    """Labels frames with the first action of the chunk that a policy server answers, `batch_size` frames a request.

    The gripper is turned into the environment's (+1 = open), and all is clipped to [-1, 1]. The protocol knows no seed:
    a policy that samples draws new noise whenever it is asked, and `key` has no effect on it.

    Attributes:
        horizon: actions of a chunk, if all servers say so; else None.
        worthwhile_batch: what keeps all servers busy with batches of `batch_size`.

    Args:
        servers: at tcp://host:port.
        observation: what a request holds.
        action_keys: names of the answer's actions [B, horizon, d], which have seven numbers one after the other.
        gripper: what the gripper's number means, see `action_convention.choose_gripper`; "auto" is refused.
        batch_size: frames of a request.

    Raises:
        UserError: no servers, or none that can be a teacher.
    """

    def __init__(
        self,
        servers: Servers,
        observation: GrootMap,
        *,
        action_keys: Sequence[str],
        gripper: str = "auto",
        batch_size: int = 32,
    ):
        from rpd_jax.policy_server.groot import Groot  # pyzmq is an extra

        convention, note = choose_gripper(gripper, {}, f"what {servers.names} says of itself")
        super().__init__(servers.connect(Groot(servers.api_key), "tcp://127.0.0.1:5555"), observation.told)
        self._observation, self._action_keys, self._batch_size = observation, tuple(action_keys), batch_size
        self._gripper, self.worthwhile_batch = convention, batch_size * len(servers.addresses)
        try:
            horizons = [self._checked(*said) for said in self._connections.metadata.items()]
        except BaseException:
            self.close()
            raise
        self.horizon: int | None = None if None in horizons else min(horizons)
        servers.say(f"Policy server: {note}.")

    def _requests(self, asked: Asked, actions: np.ndarray) -> Batch:
        """As many for each `batch_size` frames as there are samples."""
        frames = len(asked.frames)
        parts = -(-frames // self._batch_size)

        def rows_of(index: int) -> tuple[int, slice]:
            sample, part = divmod(index, parts)
            return sample, slice(part * self._batch_size, min((part + 1) * self._batch_size, frames))

        def message(index: int) -> dict:
            _, rows = rows_of(index)
            return self._observation.observation(asked.frames[rows], asked.instruction, asked.told[rows])

        def take(index: int, answer: Any, address: str) -> None:
            sample, rows = rows_of(index)
            actions[sample, rows] = self._actions(answer, rows.stop - rows.start, asked.steps, address)

        return Batch(message, take, asked.num_samples * parts)

    def _checked(self, address: str, modalities: dict) -> int | None:
        """The actions of a chunk of a server whose policy sees and gives what it should, as far as it says that."""
        self._observation.check(modalities, address)
        if "action" not in modalities:
            return None
        there = modalities["action"].names
        missing = [key for key in self._action_keys if key not in there]
        if missing:
            raise UserError(
                f"The policy of {address} gives the actions {', '.join(there)[:200] or 'nothing'}, and {missing[0]!r} "
                "is none of them: set teacher.action_key to the names of translation, rotation and gripper, in order."
            )
        return modalities["action"].moments

    def _actions(self, answer: Any, frames: int, steps: int, address: str) -> np.ndarray:
        """The first `steps` actions of each frame's chunk of an answer, float32 [B, steps, 7]."""
        answer = answer[0] if isinstance(answer, list) and answer else answer  # behind it stands what else there is
        for key in self._action_keys:
            if not isinstance(answer, dict) or key not in answer:
                raise no_such_key(key, answer, address)
        parts = [answer[key] for key in self._action_keys]
        fit = all(isinstance(part, np.ndarray) and part.dtype.kind in "fiu" for part in parts)
        fit = fit and all(part.ndim == 3 and len(part) == frames for part in parts)
        fit = fit and len({part.shape[1] for part in parts}) == 1 and parts[0].shape[1] > 0
        if not fit or sum(part.shape[2] for part in parts) != ACTION_DIM:
            found = ", ".join(
                f"{part.dtype} {list(part.shape)}" if isinstance(part, np.ndarray) else type(part).__name__
                for part in parts
            )
            raise UserError(
                f"{address} answers actions of {found}; a teacher's are numbers of the shape [{frames}, horizon, 7], "
                "all names of teacher.action_key together (pd_ee_delta_pose: translation, rotation, gripper): serve a "
                "policy that gives those."
            )
        return first_actions(np.concatenate(parts, axis=2), steps, address)


def load(config: ConfigDict) -> GrootTeacher:
    """The teacher `groot` of `rpd_jax.teachers`: reads `config.teacher` and `config.env.task`."""
    settings = config.teacher
    names, told = settings.observation, told_state(settings.state, config.env.task)
    observation = GrootMap(
        names.image.removeprefix("video."),
        tuple(name.strip().removeprefix("language.") for name in names.prompt.split(",") if name.strip()),
        state_parts(names.state, told),
        told,
        tuple(settings.resize),
        settings.letterbox,
    )
    return GrootTeacher(
        Servers.from_config(settings),
        observation,
        action_keys=[key.strip().removeprefix("action.") for key in settings.action_key.split(",")],
        gripper=settings.gripper,
        batch_size=settings.batch_size,
    )
