"""What CLIP4Clip and CLIP2Video put on top of frame vectors: temporal transformer, masked pooling.

Shape suffixes: B videos, T tokens in time, D width, H heads.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MaskLayout = Literal["per_video", "upstream"]

# Added to the logits of padded keys. Finite, so that a video without any valid frame gives the plain
# average over its keys instead of 0/0.
MASKED = -1e6
LAYER_NORM_EPS = 1e-12


def quick_gelu(x: Tensor) -> Tensor:
    """x·sigmoid(1.702 x), the activation of OpenAI's CLIP."""
    return x * torch.sigmoid(1.702 * x)


def key_mask(mask_BT: Tensor, heads: int, layout: MaskLayout) -> Tensor:
    """Additive mask (B, H or 1, 1, T) on the keys.

    Args:
        mask_BT: bool, True on valid tokens.
        heads: number of attention heads.
        layout: "per_video" masks every head of a video with the video's own mask. "upstream" reproduces
            the released CLIP2Video code, which tiles the masks in the wrong order, so that heads see
            the padding of other videos in the batch; results then depend on the batch.

    Source: CLIP2Video modules/modeling.py @ e941318 (`repeat`); mended in CLIP4Clip by `repeat_interleave`.
    """
    additive_BT = torch.where(mask_BT, 0.0, MASKED)
    if layout == "per_video":
        return additive_BT[:, None, None, :]
    batch = len(mask_BT)
    source_BH = torch.arange(batch * heads, device=mask_BT.device).view(batch, heads) % max(batch, 1)
    return additive_BT[source_BH][:, :, None, :]


class _Attention(nn.Module):
    """Multi-head self-attention; parameter names as in `nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x_BTD: Tensor, mask_BH1T: Tensor) -> Tensor:
        packed = F.linear(x_BTD, self.in_proj_weight, self.in_proj_bias)
        batch, time, width = x_BTD.shape
        q, k, v = packed.view(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BH1T.to(q.dtype))
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, time, width))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(quick_gelu(self.c_fc(x)))


class _Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = _Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = _Mlp(width)

    def forward(self, x_BTD: Tensor, mask_BH1T: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attn(self.ln_1(x_BTD), mask_BH1T)
        return x_BTD + self.mlp(self.ln_2(x_BTD))


class TemporalTransformer(nn.Module):
    """Pre-norm transformer over time with padded keys masked.

    Args:
        width: token width D.
        layers: number of blocks.
        heads: attention heads; divides `width`.
        mask_layout: see `key_mask`.

    Source: CLIP4Clip modules/module_cross.py @ 508ffa3 (layer norm with eps 1e-12, additive mask).
    """

    def __init__(self, width: int, layers: int, heads: int, mask_layout: MaskLayout = "per_video") -> None:
        super().__init__()
        self.heads = heads
        self.mask_layout: MaskLayout = mask_layout
        self.resblocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.apply(init_small)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Return tokens of the same shape; `mask_BT` bool is read, never changed."""
        mask_BH1T = key_mask(mask_BT, self.heads, self.mask_layout)
        for block in self.resblocks:
            x_BTD = block(x_BTD, mask_BH1T)
        return x_BTD


def init_small(module: nn.Module) -> None:
    """Linear and embedding weights N(0, 0.02), linear biases 0.

    Source: CLIP4Clip modules/until_module.py init_weights @ 508ffa3.
    """
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def masked_mean(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over valid tokens (B, D); 0 where a video has none."""
    weights_BT1 = mask_BT.to(x_BTD.dtype)[..., None]
    return (x_BTD * weights_BT1).sum(1) / weights_BT1.sum(1).clamp_min(1)


def pool_frames(x_BTD: Tensor, mask_BT: Tensor, normalise: bool = True) -> Tensor:
    """Normalised video vectors (B, D): the mean of the valid frames, 0 without any.

    Args:
        x_BTD: frame vectors.
        mask_BT: bool, True on valid frames.
        normalise: give every frame the same length before the mean.
    """
    if normalise:
        x_BTD = F.normalize(x_BTD, dim=-1)
    return F.normalize(masked_mean(x_BTD, mask_BT), dim=-1)


def interleave(even_BTD: Tensor, odd_BSD: Tensor) -> Tensor:
    """even₀ odd₀ even₁ odd₁ … evenₜ along dimension 1; `odd` is one shorter."""
    joined = even_BTD.new_empty(len(even_BTD), even_BTD.shape[1] + odd_BSD.shape[1], *even_BTD.shape[2:])
    joined[:, 0::2] = even_BTD
    joined[:, 1::2] = odd_BSD
    return joined
