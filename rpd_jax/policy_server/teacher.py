"""A policy behind openpi's WebSocket as a teacher: implements `rpd_jax.teachers.Teacher`."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rpd_jax.action_convention import ACTION_DIM, check_action_dim, choose_gripper
from rpd_jax.errors import UserError
from rpd_jax.policy_server.answers import first_actions, no_such_key
from rpd_jax.policy_server.connections import Batch
from rpd_jax.policy_server.observation import ObservationMap
from rpd_jax.policy_server.openpi import OpenPi
from rpd_jax.policy_server.seeding import FRAME, KEY, SAMPLES, SEEDED, STEPS
from rpd_jax.policy_server.served import Asked, ServedTeacher, Servers
from rpd_jax.robot_state import told_state


class PolicyServerTeacher(ServedTeacher):
    """Labels frames with the first action of the chunk that a policy server answers, one frame a request.

    The gripper is turned into the environment's (+1 = open), and all is clipped to [-1, 1]. The protocol knows no seed:
    a policy that samples draws new noise whenever it is asked, and `key` has no effect on it. Only `rpd_jax.serve`, and
    what else says `rpd/seeded` in its metadata, is told the key and the number of the frame, and gives the actions that
    the teacher behind it would give here.

    Attributes:
        horizon: actions of a chunk, if all servers say so; else None.
        worthwhile_batch: what keeps all connections busy.

    Args:
        servers: at ws://host:port or wss://host:port.
        observation: what a request holds.
        action_key: of the answer's actions, [A] or [horizon, A].
        gripper: what the gripper's number means, see `action_convention.choose_gripper`; "auto" only where the servers
            say that they give the environment's.

    Raises:
        UserError: no servers, or none that can be a teacher.
    """

    def __init__(
        self, servers: Servers, observation: ObservationMap, *, action_key: str = "actions", gripper: str = "auto"
    ):
        connections = servers.connect(OpenPi(servers.api_key), "ws://127.0.0.1:8000")
        super().__init__(connections, observation.told)
        self._observation, self._action_key = observation, action_key
        self.worthwhile_batch = servers.connections * len(servers.addresses)
        try:
            seeded = [address for address, metadata in connections.metadata.items() if metadata.get(SEEDED) == 1]
            self._seeded = len(seeded) == len(connections.metadata)
            if seeded and gripper not in ("auto", "signed"):
                raise UserError(
                    f"{seeded[0]} gives the environment's actions, as its {SEEDED} says, and teacher.gripper="
                    f"{gripper!r} would turn the gripper: set teacher.gripper='signed'."
                )
            horizons = [metadata.get("action_horizon") for metadata in connections.metadata.values()]
            known = all(type(horizon) is int and horizon > 0 for horizon in horizons)
            self.horizon: int | None = min(horizons) if known else None
            for address, metadata in connections.metadata.items():
                dims = metadata.get("action_dim", ACTION_DIM)
                if type(dims) is not int:
                    raise UserError(
                        f"{address} says that its actions have {str(dims)[:40]!r} numbers, which is no whole number: "
                        "mend that server's metadata."
                    )
                check_action_dim(dims, address)
            if self._seeded and gripper == "auto":
                self._gripper, note = "signed", "gripper from -1 (closed) to 1 (open), as the server says"
            else:
                self._gripper, note = choose_gripper(gripper, {}, f"what {servers.names} says of itself")
        except BaseException:
            self.close()
            raise
        servers.say(f"Policy server: {note}.")

    def _requests(self, asked: Asked, actions: np.ndarray) -> Batch:
        """As many for each frame as there are samples, one for seeded servers."""
        words, frames = np.asarray(jax.random.key_data(asked.key)), len(asked.frames)
        together = asked.num_samples if self._seeded else 1

        def message_of(index: int) -> dict:
            frame = index % frames
            message = self._observation.observation(asked.frames[frame], asked.instruction, asked.told[frame])
            if self._seeded:
                number = asked.first_frame + frame
                message |= {KEY: words, FRAME: number, SAMPLES: asked.num_samples, STEPS: asked.steps}
            return message

        def take(index: int, answer: Any, address: str) -> None:
            sample, frame = divmod(index, frames)
            actions[sample : sample + together, frame] = self._actions(answer, together, asked.steps, address)

        return Batch(message_of, take, asked.num_samples // together * frames)

    def _actions(self, answer: Any, samples: int, steps: int, address: str) -> np.ndarray:
        """The first `steps` actions of each chunk of an answer, float32 [samples, steps, 7]."""
        if not isinstance(answer, dict) or self._action_key not in answer:
            raise no_such_key(self._action_key, answer, address)
        chunk = np.asarray(answer[self._action_key])
        wanted = "[samples, horizon, 7]" if self._seeded else "[horizon, 7] or [7]"
        if chunk.dtype.kind not in "fiu" or not self._fits(chunk.shape, samples):
            raise UserError(
                f"{address} answers actions of {chunk.dtype} {list(chunk.shape)}; a teacher's are numbers of the shape "
                f"{wanted} (pd_ee_delta_pose: translation, rotation, gripper): serve a policy that gives those."
            )
        chunks = chunk.reshape(samples, -1, ACTION_DIM)
        return first_actions(chunks, steps, address)

    def _fits(self, shape: tuple[int, ...], samples: int) -> bool:
        leading = shape[:-1]
        right = len(leading) == 2 and leading[0] == samples if self._seeded else len(leading) in (0, 1)
        return right and shape[-1:] == (ACTION_DIM,) and 0 not in leading


def load(config: ConfigDict) -> PolicyServerTeacher:
    """The teacher `openpi` of `rpd_jax.teachers`: reads `config.teacher` and `config.env.task`."""
    settings = config.teacher
    names = settings.observation
    told = told_state(settings.state, config.env.task)
    observation = ObservationMap(
        names.image, names.prompt, tuple(settings.resize), settings.letterbox, names.state, told
    )
    servers = Servers.from_config(settings)
    return PolicyServerTeacher(servers, observation, action_key=settings.action_key, gripper=settings.gripper)
