"""A policy behind openpi's WebSocket as a teacher: implements `rpd_jax.teachers.Teacher`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rpd_jax.action_convention import ACTION_DIM, check_action_dim, choose_gripper
from rpd_jax.errors import UserError
from rpd_jax.policy_server.answers import first_actions, labels, no_such_key
from rpd_jax.policy_server.api_key import read_api_key
from rpd_jax.policy_server.connections import Batch, Connections
from rpd_jax.policy_server.observation import ObservationMap
from rpd_jax.policy_server.openpi import OpenPi
from rpd_jax.policy_server.seeding import FRAME, KEY, SAMPLES, SEEDED, STEPS
from rpd_jax.robot_state import told_state
from rpd_jax.teachers import check_frames, print_to_stderr


class PolicyServerTeacher:
    """Labels frames with the first action of the chunk that a policy server answers, one frame a request.

    The gripper is turned into the environment's (+1 = open), and all is clipped to [-1, 1]. The protocol knows no seed:
    a policy that samples draws new noise whenever it is asked, and `key` has no effect on it. Only `rpd_jax.serve`, and
    what else says `rpd/seeded` in its metadata, is told the key and the number of the frame, and gives the actions that
    the teacher behind it would give here.

    Attributes:
        horizon: actions of a chunk, if all servers say so; else None.
        worthwhile_batch: what keeps all connections busy.
        sees_state: whether the policy is told the robot's state besides.

    Args:
        addresses: of the servers, ws://host:port or wss://host:port; all are to serve the same policy.
        observation: what a request holds.
        action_key: of the answer's actions, [A] or [horizon, A].
        gripper: what the gripper's number means, see `action_convention.choose_gripper`; "auto" only where the servers
            say that they give the environment's.
        connections: to each address.
        api_key: sent to all of them, or None.
        start_timeout: seconds that a server is waited for.
        request_timeout: seconds until a frame is asked again elsewhere.
        say: is told what is waited for.

    Raises:
        UserError: no servers, or none that can be a teacher.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        observation: ObservationMap,
        *,
        action_key: str = "actions",
        gripper: str = "auto",
        connections: int = 4,
        api_key: str | None = None,
        start_timeout: float = 1800.0,
        request_timeout: float = 600.0,
        say: Callable[[str], None] = print_to_stderr,
    ):
        if not addresses:
            raise UserError("teacher.address='' names no policy server: give one, such as ws://127.0.0.1:8000.")
        self._observation, self._action_key = observation, action_key
        self.worthwhile_batch, self.sees_state = connections * len(addresses), observation.told.size != 0
        self._connections = Connections(
            addresses,
            OpenPi(api_key),
            each=connections,
            start_timeout=start_timeout,
            request_timeout=request_timeout,
            say=say,
        )
        try:
            self._seeded = all(metadata.get(SEEDED) == 1 for metadata in self._connections.metadata.values())
            horizons = [metadata.get("action_horizon") for metadata in self._connections.metadata.values()]
            known = all(type(horizon) is int and horizon > 0 for horizon in horizons)
            self.horizon: int | None = min(horizons) if known else None
            for address, metadata in self._connections.metadata.items():
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
                self._gripper, note = choose_gripper(gripper, {}, f"what {' and '.join(addresses)} says of itself")
        except BaseException:
            self.close()
            raise
        say(f"Policy server: {note}.")

    def act(
        self,
        rgb: jax.Array,
        instruction: str,
        key: jax.Array,
        num_samples: int = 1,
        first_frame: int = 0,
        steps: int | None = None,
        state: jax.Array | None = None,
    ) -> jax.Array:
        """Returns actions for frames; see `rpd_jax.teachers.Teacher`.

        Args:
            rgb: uint8 [B, H, W, 3].
            instruction: the sentence that all frames share.
            key: random key of the samples; counts for seeded servers only.
            num_samples: S; so many requests for each frame, one for seeded servers.
            first_frame: number of the first frame.
            steps: how many actions of each chunk; None: the first one, without an axis for them.
            state: float32 [B, D], the simulator's; needed if `sees_state`.

        Returns:
            float32 [S, B, 7] in [-1, 1], or [S, B, steps, 7].

        Raises:
            UserError: a server failed, was lost for too long, or answered what cannot be a label.
        """
        return self.begin(rgb, instruction, key, num_samples, first_frame, steps, state)()

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
        """Like `act`, but returns at once; see `rpd_jax.teachers.Teacher`."""
        check_frames(rgb)
        frames, words = np.asarray(rgb), np.asarray(jax.random.key_data(key))
        told = self._observation.told.of(state, len(frames))
        actions = np.empty((num_samples, len(frames), steps or 1, ACTION_DIM), np.float32)
        together = num_samples if self._seeded else 1

        def message_of(index: int) -> dict:
            frame = index % len(frames)
            message = self._observation.observation(frames[frame], instruction, told[frame])
            if self._seeded:
                message |= {KEY: words, FRAME: first_frame + frame, SAMPLES: num_samples, STEPS: steps or 1}
            return message

        def take(index: int, answer: Any, address: str) -> None:
            sample, frame = divmod(index, len(frames))
            actions[sample : sample + together, frame] = self._actions(answer, together, steps or 1, address)

        batch = Batch(message_of, take, num_samples // together * len(frames))
        self._connections.ask(batch)

        def finish() -> jax.Array:
            batch.done.result()
            return labels(actions, steps, self._gripper)

        return finish

    def close(self) -> None:
        """Closes the connections."""
        self._connections.close()

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
    return PolicyServerTeacher(
        [address.strip() for address in settings.address.split(",") if address.strip()],
        ObservationMap(names.image, names.prompt, tuple(settings.resize), settings.letterbox, names.state, told),
        action_key=settings.action_key,
        gripper=settings.gripper,
        connections=settings.connections,
        api_key=read_api_key(settings.api_key_file, "teacher.api_key_file"),
        start_timeout=settings.start_timeout,
        request_timeout=settings.request_timeout,
    )
