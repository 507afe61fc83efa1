"""The published code's way with our model, to compare with: frame by frame, prepared by Pillow."""

import numpy as np
import torch

from openvla_bridge.model.policy import OpenVLAPolicy
from openvla_bridge.model.preprocess import ImageSettings


def pil_preprocess(settings: ImageSettings, image: np.ndarray) -> torch.Tensor:
    """The published image processor's way for one image uint8 [H, W, 3]: Pillow and floats, once per backbone.

    Returns:
        float32 [1, 6, size, size].
    """
    from PIL import Image

    parts = []
    for mean, std in zip(settings.means, settings.stds, strict=True):
        resized = Image.fromarray(image).resize((settings.size, settings.size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous().float().div(255.0)
        parts.append(pixels.sub_(torch.tensor(mean)[:, None, None]).div_(torch.tensor(std)[:, None, None]))
    return torch.cat(parts)[None]


@torch.inference_mode()
def predict_with_pil(policy: OpenVLAPolicy, image: np.ndarray, instruction: str) -> np.ndarray:
    """Tokens int64 [A] of one image uint8 [H, W, 3]: Pillow's pixels, our model."""
    pixels = pil_preprocess(policy.preprocess.settings, image).to(policy.device, policy.dtype)
    ids, lengths = policy.encode(instruction)
    prefill = policy.model.prefill(policy.model.embed_images(pixels), ids, lengths, policy.action_dim - 1)
    return policy.model.generate(prefill, policy.action_dim, equal_lengths=True).tokens[0, 0].cpu().numpy()


@torch.inference_mode()
def predict_as_published(policy: OpenVLAPolicy, image: np.ndarray, instruction: str) -> np.ndarray:
    """Tokens int64 [A] of one image uint8 [H, W, 3], as the published `predict_action` finds them.

    Its language model computes logits at every position of image and prompt, although the last one's are all that is
    read, and keeps keys and values by concatenation (prismatic/extern/hf/modeling_prismatic.py).
    """
    pixels = pil_preprocess(policy.preprocess.settings, image).to(policy.device, policy.dtype)
    llama = policy.model.language_model
    ids, _ = policy.encode(instruction)
    words = llama.model.embed_tokens(ids)
    sequence = torch.cat([words[:, :1], policy.model.embed_images(pixels), words[:, 1:]], dim=1)
    output = llama(inputs_embeds=sequence, use_cache=True)
    tokens = [output.logits[:, -1:].argmax(-1)]
    while len(tokens) < policy.action_dim:
        output = llama(input_ids=tokens[-1], past_key_values=output.past_key_values, use_cache=True)
        tokens.append(output.logits[:, -1:].argmax(-1))
    return torch.cat(tokens, dim=1)[0].cpu().numpy()
