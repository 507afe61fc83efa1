"""A LeRobot policy from frames to actions, on one device."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from openvla_bridge.checkpoint_files import Report, fetch_files
from openvla_bridge.errors import BridgeError
from openvla_bridge.lerobot.backbone import check_transformers, find_backbones, leave_hub
from openvla_bridge.lerobot.checkpoint import ACTION, STATE, WEIGHTS, Checkpoint, read_checkpoint
from openvla_bridge.lerobot.loading import load_policy, told_of
from openvla_bridge.lerobot.noise import RowNoise
from openvla_bridge.lerobot.torchvision_operators import import_torchvision
from openvla_bridge.request import Known, Request

_SEEDS = 1 << 23  # a float32 in [0, 1) has so many
_ANY_SIDE = 64  # px of a first frame, for policies that take frames of any size


class LeRobotPolicy:
    """Labels batches of frames with what `predict_action_chunk` gives, pre- and postprocessor applied.

    Attributes:
        device: where the policy is.
        horizon: actions of a chunk.

    Args:
        policy: LeRobot's, on its device.
        preprocess, postprocess: its processors.
        checkpoint: what it says of itself.
        autocast: compute in bfloat16 where torch's autocast does.
    """

    def __init__(
        self,
        policy: Any,
        preprocess: Callable[[dict], dict],
        postprocess: Callable[[torch.Tensor], torch.Tensor],
        checkpoint: Checkpoint,
        device: str,
        autocast: bool = False,
    ):
        self._policy, self._preprocess, self._postprocess = policy, preprocess, postprocess
        self._checkpoint, self.device, self._autocast = checkpoint, torch.device(device), autocast
        self.horizon = 1
        self.horizon = self._try()

    @classmethod
    def load(
        cls,
        checkpoint: str,
        device: str,
        precision: str = "float32",
        report: Report = lambda text: None,
        on_known: Callable[[Known], None] = lambda known: None,
        image: str = "",
    ) -> "LeRobotPolicy":
        """Loads what LeRobot's `save_pretrained` wrote; everything small is checked before weights are fetched and
        LeRobot is imported.

        Args:
            checkpoint: a folder, or hf://owner/name.
            device: as torch names it.
            precision: "float32" is the precision that the checkpoint names; "bfloat16" is torch's autocast, as with
                LeRobot's use_amp.
            report: is told what is being done.
            on_known: is told what the checkpoint says, before the weights.
            image: the policy's name of the image that frames are, where it sees several.

        Raises:
            BridgeError: the checkpoint cannot be a teacher.
            ImportError: LeRobot, or what this policy needs, is not installed.
        """
        found = read_checkpoint(checkpoint, report, image)
        on_known(found.known)
        check_transformers(found)
        find_backbones(found, report)
        import_torchvision()
        fetch_files(checkpoint, found.folder, [WEIGHTS], report)
        leave_hub()
        report("importing lerobot")
        report(f"reading the weights of {found.folder}")
        with told_of(found):
            policy, preprocess, postprocess = load_policy(found, device)
            return cls(policy, preprocess, postprocess, found, device, precision == "bfloat16")

    def label(self, request: Request) -> tuple[np.ndarray, int]:
        """See `request.Policy`; there are no tokens to count."""
        count, samples = len(request.frames), []
        uniforms = request.uniforms if request.uniforms is not None else np.zeros((request.samples, count, 2))
        batch = self._batch(request)
        for numbers in uniforms:
            noise = RowNoise([int(first * _SEEDS) * _SEEDS + int(second * _SEEDS) for first, second in numbers[:, :2]])
            samples.append(self._chunks(batch, count, noise))
            if not noise.used:
                break  # all samples are the same
        actions = np.stack(samples)[:, :, : request.steps]
        actions = np.broadcast_to(actions, (request.samples, *actions.shape[1:])).copy()
        scale, shift = request.gripper
        actions[..., -1] = scale * actions[..., -1] + shift
        return np.clip(actions, -1.0, 1.0), 0

    def _try(self) -> int:
        """Labels a black frame; returns the actions of its chunk, and raises BridgeError if they cannot be labels."""
        height, width = (side or _ANY_SIDE for side in self._checkpoint.known.image_size)
        state = np.zeros((1, self._checkpoint.known.state_dim), np.float32)
        request = Request(np.zeros((1, height, width, 3), np.uint8), state, "")
        before = _global_generators(self.device)
        chunk = self._chunks(self._batch(request), 1, RowNoise([0]))
        if not all(map(torch.equal, before, _global_generators(self.device))):
            raise BridgeError(
                f"The {self._checkpoint.kind} policy draws random numbers in a way that cannot be tied to a frame, so "
                "that its labels would not follow from the seed."
            )
        return chunk.shape[1]

    def _batch(self, request: Request) -> dict[str, Any]:
        """What the policy takes: frames float32 [b, 3, H, W] in [0, 1], states [b, D] and the task, preprocessed."""
        frames = torch.as_tensor(request.frames).to(self.device)
        batch: dict[str, Any] = {
            self._checkpoint.image: frames.permute(0, 3, 1, 2).contiguous().float() / 255.0,
            "task": [request.instruction] * len(request.frames),
        }
        if self._checkpoint.known.state_dim:
            batch[STATE] = torch.as_tensor(request.state).to(self.device)
        return self._preprocess(batch)

    @torch.no_grad()
    def _chunks(self, batch: dict[str, Any], count: int, noise: RowNoise) -> np.ndarray:
        """Returns the chunks float32 [b, horizon, 7] of a preprocessed batch of b frames, postprocessed."""
        amp = torch.autocast(self.device.type, torch.bfloat16) if self._autocast else contextlib.nullcontext()
        with noise, amp:
            chunk = self._policy.predict_action_chunk(self._with_queues(batch))
        if chunk.ndim != 3 or len(chunk) != count:
            raise BridgeError(f"The policy predicts {list(chunk.shape)}; chunks of {count} frames must come.")
        actions = self._postprocess(chunk.float().flatten(0, 1)).float().cpu().numpy()
        dims = self._checkpoint.known.action_dim
        if actions.shape != (count * chunk.shape[1], dims):
            raise BridgeError(
                f"The policy and its postprocessor give actions {list(actions.shape[1:])}; config.json says {dims} "
                "numbers."
            )
        if not np.isfinite(actions).all():
            raise BridgeError(
                "The policy's actions are not finite: the checkpoint is broken, or needs teacher.precision='float32'."
            )
        return actions.reshape(count, -1, dims)

    def _with_queues(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Some policies look at the last observations of a queue: it is filled as in an episode's first step."""
        from lerobot.policies.utils import populate_queues
        from lerobot.utils.constants import OBS_IMAGES

        self._policy.reset()
        queues = getattr(self._policy, "_queues", None) or {}
        batch = {name: value for name, value in batch.items() if name != ACTION}
        if OBS_IMAGES in queues:
            images = [batch[key] for key in self._policy.config.image_features]
            batch[OBS_IMAGES] = torch.stack(images, dim=-4)
            self._policy._queues = populate_queues(queues, batch)
        return batch


def _global_generators(device: torch.device) -> list[torch.Tensor]:
    states = [torch.random.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states
