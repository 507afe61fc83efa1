"""What a worker is asked, and what it knows of its model: the same for every kind of model."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Model:
    """Which model the workers load.

    Attributes:
        name: for messages, "OpenVLA".
        kind: as `protocol` names it, "openvla".
        checkpoint: a folder, or hf://owner/name.
        precision: "float32" or "bfloat16".
        options: what the kind's `load` takes besides.
    """

    name: str
    kind: str
    checkpoint: str
    precision: str
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Request:
    """Frames to label.

    Attributes:
        frames: uint8 [b, H, W, 3].
        state: float32 [b, D]; D is 0 for models that see frames only.
        instruction: the sentence that all frames share.
        samples: S, actions drawn of each frame.
        steps: K, actions of each chunk.
        uniforms: float32 [S, b, 7] in [0, 1), the samples' random numbers, or None.
        temperature: of sampled tokens, for models of tokens.
        gripper: scale and shift of the actions' last number.
    """

    frames: np.ndarray
    state: np.ndarray
    instruction: str
    samples: int = 1
    steps: int = 1
    uniforms: np.ndarray | None = None
    temperature: float = 0.0
    gripper: tuple[float, float] = (1.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Known:
    """What a checkpoint says before its weights are read.

    Attributes:
        action_dim: numbers of an action.
        gripper: statistics of the actions' last number by their names.
        image_size: height and width of the frames that it takes; (0, 0) if any will do.
        state_dim: numbers of the state that it is to be told; 0: it sees frames only.
    """

    action_dim: int
    gripper: dict[str, float]
    image_size: tuple[int, int] = (0, 0)
    state_dim: int = 0


class Policy(Protocol):
    """A model on its device.

    Attributes:
        device: the `torch.device` that it is on.
        horizon: actions of a chunk.
    """

    horizon: int

    def label(self, request: Request) -> tuple[np.ndarray, int]:
        """Returns the actions [S, b, K, A] in the environment's convention, in [-1, 1], and how many predicted tokens
        are no action tokens.

        Raises:
            BridgeError: the model does not give what can be an action.
        """


# Loads a model: checkpoint, device, precision, what reports progress, what is told of the checkpoint before its weights
# are read, and the model's own options by name.
Load = Callable[..., Policy]
