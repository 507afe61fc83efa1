"""The two vision transformers and the projector; parameters are named as in the published checkpoints.

The architectures are timm's `vit_large_patch14_reg4_dinov2` and `vit_so400m_patch14_siglip_224`. timm itself is not
used: it needs a torchvision that matches torch's build, which PyPI has for CUDA builds only.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from openvla_bridge.model.model_config import BackboneConfig

LAYER_NORM_EPS = 1e-6


class PatchEmbed(nn.Module):
    """Cuts images [B, 3, H, W] into patches and projects each: [B, P, width], row by row."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch, config.patch)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention over [B, T, width]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.proj(attended.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Two layers with the exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """Multiplies each channel by a learnt factor."""

    def __init__(self, width: int):
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale_factor


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = Attention(width, config.heads)
        self.ls1 = LayerScale(width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.ls2 = LayerScale(width) if config.layer_scale else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class AttentionPool(nn.Module):
    """The parameters of SigLIP's pooling head: in every checkpoint, used by none."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        width = config.width
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))


class VisionTransformer(nn.Module):
    """Patch features of the second-to-last block, without the final norm and without prefix tokens."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.prefix_tokens = config.prefix_tokens
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.registers, config.width)) if config.registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_patches, config.width))
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.attn_pool = AttentionPool(config) if config.attention_pool else None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns [B, P, width] for normalised images [B, 3, H, W]."""
        x = self.patch_embed(pixels) + self.pos_embed
        prefix = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        x = torch.cat([*prefix, x], dim=1) if prefix else x
        for block in self.blocks[:-1]:
            x = block(x)
        return x[:, self.prefix_tokens :]


class VisionBackbone(nn.Module):
    """DINOv2 and SigLIP side by side, each on its own normalisation of the image."""

    def __init__(self, configs: Sequence[BackboneConfig]):
        super().__init__()
        self.featurizer = VisionTransformer(configs[0])
        self.fused_featurizer = VisionTransformer(configs[1])

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns both features, [B, P, width] each, of pixels [B, 6, H, W]."""
        return self.featurizer(pixels[:, :3]), self.fused_featurizer(pixels[:, 3:])


class Projector(nn.Module):
    """From the concatenated features to the language model's embeddings: three layers, GELU between them."""

    def __init__(self, vision_width: int, text_width: int):
        super().__init__()
        self.fc1 = nn.Linear(vision_width, 4 * vision_width)
        self.fc2 = nn.Linear(4 * vision_width, text_width)
        self.fc3 = nn.Linear(text_width, text_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))
