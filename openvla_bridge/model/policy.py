"""OpenVLA from frames to actions, on one device."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from openvla_bridge.checkpoint_files import Report
from openvla_bridge.errors import BridgeError
from openvla_bridge.model.actions import bin_centers, choose_statistics, tokens_to_bins
from openvla_bridge.model.checkpoint import DTYPES, fetch_weights, find_folder, load_model
from openvla_bridge.model.model_config import BACKBONES, ModelConfig, read_config
from openvla_bridge.model.openvla import OpenVLAModel
from openvla_bridge.model.preprocess import ImageSettings, Preprocessor, read_image_settings
from openvla_bridge.model.text import FileTokenizer, PromptTokenizer, build_prompt, with_empty_token
from openvla_bridge.request import Known, Request


class OpenVLAPolicy:
    """Predicts actions for batches of frames.

    Attributes:
        horizon: actions of a chunk: OpenVLA predicts one at a time.

    Args:
        model: on its device.
        image_settings: of the checkpoint.
        tokenizer: of the checkpoint.
        unnorm_key: whose statistics un-normalise; may be left out if the checkpoint has one data set.

    Raises:
        BridgeError: statistics cannot be chosen, or the image size is not the model's.
    """

    horizon = 1

    def __init__(
        self,
        model: OpenVLAModel,
        image_settings: ImageSettings,
        tokenizer: PromptTokenizer,
        unnorm_key: str | None = None,
    ):
        config = model.config
        _check_image_size(config, image_settings)
        self.model = model
        self.statistics = choose_statistics(config.norm_stats, unnorm_key)
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.preprocess = Preprocessor(image_settings, self.device)
        self._tokenizer = tokenizer
        self._prompts: dict[str, list[int]] = {}
        self._centers = bin_centers(config.num_bins)

    @classmethod
    def load(
        cls,
        checkpoint: str,
        device: str,
        precision: str = "float32",
        report: Report = lambda text: None,
        on_known: Callable[[Known], None] = lambda known: None,
        unnorm_key: str | None = None,
    ) -> "OpenVLAPolicy":
        """Loads a checkpoint folder or hf://owner/name; everything small is checked before weights are fetched or read.

        Args:
            report: is told what is being done.
            on_known: is told what the checkpoint says, before the weights.
        """
        if precision not in DTYPES:
            raise BridgeError(f"precision={precision!r} is not known: known are {', '.join(DTYPES)}.")
        folder = find_folder(checkpoint, report)
        config, settings = read_config(folder), read_image_settings(folder)
        _check_image_size(config, settings)
        statistics = choose_statistics(config.norm_stats, unnorm_key, str(folder / config.norm_source))
        on_known(Known(statistics.action_dim, dict(statistics.gripper)))
        tokenizer = FileTokenizer(folder, config.bos_id)
        fetch_weights(checkpoint, folder, report)
        model = load_model(folder, device, precision, report)
        return cls(model, settings, tokenizer, unnorm_key)

    @property
    def action_dim(self) -> int:
        return self.statistics.action_dim

    def label(self, request: Request) -> tuple[np.ndarray, int]:
        """See `request.Policy`; K is 1."""
        tokens = self.predict_tokens(
            request.frames,
            request.instruction,
            num_samples=request.samples,
            temperature=request.temperature,
            uniforms=request.uniforms,
        )
        return self.environment_actions(tokens, request.gripper)[:, :, None], self.count_other(tokens)

    @torch.inference_mode()
    def predict_tokens(
        self,
        images: np.ndarray | torch.Tensor,
        instructions: str | Sequence[str],
        *,
        num_samples: int = 1,
        temperature: float = 0.0,
        uniforms: np.ndarray | None = None,
    ) -> np.ndarray:
        """Returns the action tokens of a batch of frames.

        Args:
            images: uint8 [B, H, W, 3].
            instructions: one for all frames, or B of them.
            num_samples: S; at temperature 0 all samples are equal.
            temperature: of the sampled tokens; 0 takes the most likely ones.
            uniforms: float32 [S, B, A] in [0, 1), the samples' random numbers; not needed at temperature 0.

        Returns:
            int64 [S, B, A].

        Raises:
            BridgeError: the model's logits are not finite, or a prompt is too long.
        """
        pixels = self.preprocess(torch.as_tensor(images)).to(self.dtype)
        ids, lengths = self.encode(instructions)
        samples = 1 if temperature == 0.0 else num_samples
        room = (self.action_dim - 1) * samples
        patches = self.model.embed_images(pixels)
        prefill = self.model.prefill(patches, ids, lengths, room)
        generated = self.model.generate(
            prefill,
            self.action_dim,
            num_samples=num_samples,
            temperature=temperature,
            uniforms=None if uniforms is None else torch.as_tensor(uniforms, device=self.device),
            equal_lengths=len(lengths) == 1,
        )
        if not generated.finite:
            raise BridgeError(
                "The model's logits are not finite: the checkpoint is broken, or teacher.precision='float32' is needed."
            )
        return generated.tokens.cpu().numpy()

    def unnormalize(self, tokens: np.ndarray) -> np.ndarray:
        """Returns the un-normalised actions float64 of tokens of any shape, as the published `predict_action` does."""
        config = self.model.config
        bins = tokens_to_bins(tokens, config.action_vocab_size, config.num_bins)
        return self.statistics.unnormalize(self._centers[bins])

    def environment_actions(self, tokens: np.ndarray, gripper: tuple[float, float] | None = None) -> np.ndarray:
        """Returns the actions float64 of tokens of any shape in the environment's convention, in [-1, 1].

        `gripper` as for `ActionStatistics.to_environment`.
        """
        return self.statistics.to_environment(self.unnormalize(tokens), gripper)

    def count_other(self, tokens: np.ndarray) -> int:
        """Counts the tokens that are no action tokens: of a model that was trained for actions, none."""
        config = self.model.config
        first = config.action_vocab_size - config.num_bins
        return int(((tokens >= config.action_vocab_size) | (tokens < first)).sum())

    def encode(self, instructions: str | Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns ids int64 [P, L], padded on the right, and their lengths [P]; P is 1 if all are equal."""
        texts = [instructions] if isinstance(instructions, str) else list(instructions)
        texts = texts[:1] if len(set(texts)) == 1 else texts
        rows = [self._prompt_ids(text) for text in texts]
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=self.device)
        return ids, torch.tensor([len(row) for row in rows], device=self.device)

    def _prompt_ids(self, instruction: str) -> list[int]:
        if instruction not in self._prompts:
            ids = with_empty_token(self._tokenizer.encode(build_prompt(instruction)))
            config = self.model.config
            if max(ids) >= config.text["vocab_size"]:
                raise BridgeError(
                    f"tokenizer.json gives the id {max(ids)}; config.json has a vocabulary of "
                    f"{config.text['vocab_size']}: they are not of one checkpoint."
                )
            room = config.text["max_position_embeddings"] - config.backbones[0].num_patches - self.action_dim
            if len(ids) > room:
                raise BridgeError(f"The instruction has {len(ids)} tokens; the model has room for {room}.")
            self._prompts[instruction] = ids
        return self._prompts[instruction]


def _check_image_size(config: ModelConfig, settings: ImageSettings) -> None:
    if any(backbone.image_size != settings.size for backbone in config.backbones):
        raise BridgeError("preprocessor_config.json and config.json ask for different image sizes.")


def default_image_settings() -> ImageSettings:
    """The image settings of openvla/openvla-7b."""
    size = next(iter(BACKBONES.values())).image_size
    return ImageSettings(size, "resize-naive", ((0.485, 0.456, 0.406), (0.5,) * 3), ((0.229, 0.224, 0.225), (0.5,) * 3))
