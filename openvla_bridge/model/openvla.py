"""OpenVLA in torch: batched, with logits only where they are read.

Every convention follows the published implementation (openvla/openvla, prismatic/extern/hf/modeling_prismatic.py), with
one departure: an action always has all its tokens, because the end-of-sequence token is never taken. The published one
would return ids of the prompt as an action.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import Cache

from openvla_bridge.model.cache import create_cache
from openvla_bridge.model.model_config import ModelConfig
from openvla_bridge.model.vision import Projector, VisionBackbone


@dataclasses.dataclass
class Prefill:
    """What the language model keeps of B images with their prompts.

    Attributes:
        logits: [B, vocabulary] at each row's last token.
        cache: keys and values of `padded_length` positions, with room for the answer.
        lengths: int64 [B], each row's own length: positions from there to `padded_length` are padding.
        padded_length: positions in the cache.
    """

    logits: torch.Tensor
    cache: Cache
    lengths: torch.Tensor
    padded_length: int


@dataclasses.dataclass
class Generated:
    """Tokens int64 [S, B, T], and whether every logit on the way was a finite number (bool [])."""

    tokens: torch.Tensor
    finite: torch.Tensor


class OpenVLAModel(nn.Module):
    """Vision backbones, projector and Llama; parameters are named as in the published checkpoints."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        text = dict(config.text)
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": text.pop("rope_theta")}
        llama = LlamaConfig(**text, attn_implementation="sdpa")
        self.vision_backbone = VisionBackbone(config.backbones)
        self.projector = Projector(sum(backbone.width for backbone in config.backbones), llama.hidden_size)
        self.language_model = LlamaForCausalLM(llama)

    def embed_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns patch embeddings [B, P, hidden] of pixels [B, 6, H, W]."""
        return self.projector(torch.cat(self.vision_backbone(pixels), dim=-1))

    def prefill(self, patches: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor, room: int) -> Prefill:
        """Runs images and prompts through the language model.

        Prompts are padded on the right: what comes after a token is invisible to it, so padding needs no mask here, and
        every row has the positions and the visibility of its unpadded run.

        Args:
            patches: [B, P, hidden].
            ids: int64 [B, L] or [1, L] for one prompt of all rows; the first token is BOS, after which patches go.
            lengths: int64 [B] or [1], ids of each row that are no padding.
            room: tokens that will follow.
        """
        batch, num_patches, _ = patches.shape
        embedded = self.language_model.model.embed_tokens(ids).expand(batch, -1, -1)
        sequence = torch.cat([embedded[:, :1], patches, embedded[:, 1:]], dim=1)
        cache = create_cache(self.language_model.config.num_hidden_layers, sequence.shape[1] + room)
        last = self._last_tokens(sequence, lengths + num_patches, cache)
        lengths = (lengths + num_patches).expand(batch)
        return Prefill(self.language_model.lm_head(last), cache, lengths, sequence.shape[1])

    def _last_tokens(self, sequence: torch.Tensor, lengths: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Fills the cache with a sequence [B, T, hidden]; returns the encoded last token of each row, [B, hidden].

        Of the last layer only that token is computed; the others' keys and values are all that decoding reads of them.
        """
        llama = self.language_model.model
        positions = torch.arange(sequence.shape[1], device=sequence.device)[None]
        cos, sin = llama.rotary_emb(sequence, position_ids=positions)
        hidden = sequence
        for layer in llama.layers[:-1]:
            hidden = layer(hidden, position_embeddings=(cos, sin), past_key_values=cache, use_cache=True)
        layer, attention = llama.layers[-1], llama.layers[-1].self_attn

        def heads(projection: nn.Linear, tokens: torch.Tensor) -> torch.Tensor:
            return projection(tokens).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

        normed = layer.input_layernorm(hidden)
        key = _rotate(heads(attention.k_proj, normed), cos[:, None], sin[:, None])
        key, value = cache.update(key, heads(attention.v_proj, normed), attention.layer_idx)
        rows = torch.arange(len(sequence), device=sequence.device), lengths - 1
        query = heads(attention.q_proj, normed[rows][:, None])
        query = _rotate(query, cos[0, rows[1], None, None], sin[0, rows[1], None, None])
        seen = F.scaled_dot_product_attention(
            query,
            key,
            value,
            None if len(lengths) == 1 else (positions < lengths[:, None])[:, None, None],
            scale=attention.scaling,
            enable_gqa=attention.num_key_value_groups > 1,
        )
        last = hidden[rows] + attention.o_proj(seen.flatten(1))
        return llama.norm(last + layer.mlp(layer.post_attention_layernorm(last)))

    def generate(
        self,
        prefill: Prefill,
        num_tokens: int,
        *,
        num_samples: int = 1,
        temperature: float = 0.0,
        uniforms: torch.Tensor | None = None,
        equal_lengths: bool = False,
    ) -> Generated:
        """Decodes `num_tokens` tokens per row and sample; greedy if the temperature is 0.

        The S samples of a row share its prefix: they are S queries on one cache, hidden from one another by the mask.

        Args:
            prefill: of B rows, with room for (num_tokens - 1) * S tokens.
            num_tokens: T.
            num_samples: S; greedy samples are equal, and computed once.
            temperature: divides the logits before sampling.
            uniforms: [S, B, T] in [0, 1): the random numbers of the samples; not needed if greedy.
            equal_lengths: promises that no row is padded.
        """
        greedy = temperature == 0.0
        samples = 1 if greedy else num_samples
        batch = len(prefill.lengths)
        device = prefill.lengths.device
        logits = prefill.logits[:, None].float().clone()
        visible = None
        if samples > 1 or not equal_lengths:
            visible = _visible(prefill, samples, num_tokens - 1)
        tokens, finite = [], torch.ones((), dtype=torch.bool, device=device)
        for step in range(num_tokens):
            logits[..., self.config.eos_id] = -torch.inf
            best, token = logits.max(-1)
            finite = finite & torch.isfinite(best).all()
            if not greedy:
                token = _sample((logits / temperature).expand(-1, samples, -1), uniforms[:, :, step].T)
            tokens.append(token)
            if step + 1 == num_tokens:
                break
            end = prefill.padded_length + (step + 1) * samples
            hidden = self.language_model.model(
                input_ids=token,
                attention_mask=None if visible is None else visible[..., :end],
                position_ids=(prefill.lengths[:, None] + step).expand(batch, samples),
                past_key_values=prefill.cache,
                use_cache=True,
            ).last_hidden_state
            logits = self.language_model.lm_head(hidden).float()
        stacked = torch.stack(tokens, dim=-1).transpose(0, 1)
        return Generated(stacked.expand(num_samples, -1, -1), finite)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions: turns the pairs (i, i + D/2) of x [..., D]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _visible(prefill: Prefill, samples: int, steps: int) -> torch.Tensor:
    """bool [B, 1, S, cache]: the row's own prefix, and the tokens of the same sample."""
    device = prefill.lengths.device
    prefix = torch.arange(prefill.padded_length, device=device) < prefill.lengths[:, None]
    own = torch.eye(samples, dtype=torch.bool, device=device).repeat(1, steps)
    batch = len(prefix)
    return torch.cat([prefix[:, None].expand(-1, samples, -1), own[None].expand(batch, -1, -1)], dim=-1)[:, None]


def _sample(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draws from softmax(logits), [..., V], by inverting the cumulative distribution at uniforms [...]."""
    cumulative = torch.softmax(logits, dim=-1).double().cumsum(-1)
    points = uniforms.double()[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, points.contiguous(), right=True)[..., 0].clamp_max(logits.shape[-1] - 1)
