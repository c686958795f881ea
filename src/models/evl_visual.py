"""The video half of InternVideo's tower: a CLIP whose frames are read by one token that looks at the whole video.

Every frame goes through CLIP's image blocks alone. A global token attends to all tokens of all frames after
each of the last blocks; together with the mean of the frames' class tokens it is the video.

Shape suffixes: B videos, T frames, C channels, H height, W width, N encoded frames of all videos, P tokens of a
frame (class token first), S tokens of a video, M width of the tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from src.models.temporal import masked_mean, quick_gelu


@dataclass(frozen=True)
class FrameLayout:
    """Places (B, T) of the frames that are encoded; the others hold nothing.

    Attributes:
        mask_BT: bool, True where a frame is encoded.
        places_N: int64, their positions in the flattened mask; None where they are all. Found once, since the device
            has to be waited for.
    """

    mask_BT: Tensor
    places_N: Tensor | None

    @classmethod
    def of(cls, mask_BT: Tensor) -> FrameLayout:
        places_N = mask_BT.flatten().nonzero()[:, 0]
        return cls(mask_BT, None if len(places_N) == mask_BT.numel() else places_N)

    @classmethod
    def everywhere(cls, mask_BT: Tensor) -> FrameLayout:
        """Of a mask of this shape, whatever it says."""
        return cls(torch.ones_like(mask_BT), None)

    @property
    def full(self) -> bool:
        """Whether every place holds a frame."""
        return self.places_N is None

    def select(self, x_BT: Tensor) -> Tensor:
        """(B, T, …) to (N, …)."""
        flat = x_BT.flatten(0, 1)
        return flat if self.places_N is None else flat.index_select(0, self.places_N)

    def spread(self, x_N: Tensor) -> Tensor:
        """(N, …) to (B, T, …), exact zeros where nothing is."""
        if self.places_N is not None:
            x_N = x_N.new_zeros(self.mask_BT.numel(), *x_N.shape[1:]).index_copy(0, self.places_N, x_N)
        return x_N.unflatten(0, self.mask_BT.shape)


class _CrossAttention(nn.Module):
    """Queries attend to other tokens; parameter names as in `nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query_B1M: Tensor, tokens_BSM: Tensor, mask_BS: Tensor | None) -> Tensor:
        width = query_B1M.shape[-1]
        q = F.linear(query_B1M, self.in_proj_weight[:width], self.in_proj_bias[:width])
        k, v = F.linear(tokens_BSM, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        mask = None if mask_BS is None else mask_BS[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)
        nn.init.xavier_uniform_(self.c_fc.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(quick_gelu(self.c_fc(x)))


class GlobalDecoder(nn.Module):
    """One step of the global token: attention to all tokens of the video, then an MLP.

    It starts as the identity, so that the tower starts as CLIP's mean over frames.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = _CrossAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = _Mlp(width)
        self.ln_2 = nn.LayerNorm(width)
        self.ln_3 = nn.LayerNorm(width)
        for layer in (self.attn.out_proj, self.mlp.c_proj):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, token_B1M: Tensor, tokens_BSM: Tensor, mask_BS: Tensor | None) -> Tensor:
        token_B1M = token_B1M + self.attn(self.ln_1(token_B1M), self.ln_3(tokens_BSM), mask_BS)
        return token_B1M + self.mlp(self.ln_2(token_B1M))


class GlobalTransformer(nn.Module):
    """CLIP's image blocks and the decoder of the global token.

    Args:
        blocks: open_clip's, used as they are.
        width: M.
        heads: of the decoder.
        grid: patches of a frame, rows and columns.
        readers: the blocks after which the global token reads, ascending.
    """

    def __init__(
        self, blocks: Sequence[Any], *, width: int, heads: int, grid: tuple[int, int], readers: Sequence[int]
    ) -> None:
        super().__init__()
        self.grid = grid
        self.readers = tuple(readers)
        self.temporal_cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.balance = nn.Parameter(torch.zeros(width))
        self.resblocks = nn.ModuleList(blocks)
        self.dpe = nn.ModuleList(nn.Conv3d(width, width, 3, padding=1, groups=width) for _ in self.readers)
        self.dec = nn.ModuleList(GlobalDecoder(width, heads) for _ in self.readers)
        for conv in self.dpe:
            assert isinstance(conv, nn.Conv3d)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, x_NPM: Tensor, layout: FrameLayout, decode: bool) -> tuple[Tensor | None, Tensor]:
        """The video (B, M), None unless `decode`, and the last class token of every frame (B, T, M).

        Source: InternVideo clip_evl/evl_utils/evl_module.py @ 3965eef.
        """
        token_B1M = self.temporal_cls_token.expand(len(layout.mask_BT), -1, -1)
        for index, block in enumerate(self.resblocks):
            x_NPM = self.run_block(block, x_NPM, layout)
            if decode and index in self.readers:
                step = self.readers.index(index)
                token_B1M = self.dec[step](token_B1M, *self._keys(step, x_NPM, layout))
        frames_BTM = layout.spread(x_NPM[:, 0])
        if not decode:
            return None, frames_BTM
        share_M = torch.sigmoid(self.balance)
        return torch.lerp(*_same_dtype(token_B1M[:, 0], masked_mean(frames_BTM, layout.mask_BT), share_M)), frames_BTM

    def run_block(self, block: nn.Module, x_NPM: Tensor, layout: FrameLayout) -> Tensor:
        """One block on every frame."""
        return block(x_NPM)

    def _keys(self, step: int, x_NPM: Tensor, layout: FrameLayout) -> tuple[Tensor, Tensor | None]:
        """All tokens (B, S, M) with their places in the video added to the patches, and which of them are valid."""
        x_BTPM = layout.spread(x_NPM)
        time, tokens = x_BTPM.shape[1:3]
        patches_BTHWM = x_BTPM[:, :, 1:].unflatten(2, self.grid)
        place_BTHWM = self.dpe[step](patches_BTHWM.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        x_BTPM = torch.cat([x_BTPM[:, :, :1], (patches_BTHWM + place_BTHWM).flatten(2, 3)], dim=2)
        if layout.full:
            return x_BTPM.flatten(1, 2), None
        # A video without any valid frame looks at zeros, for a softmax over nothing is not a number.
        mask_BT = layout.mask_BT | ~layout.mask_BT.any(1, keepdim=True)
        return x_BTPM.flatten(1, 2), mask_BT[:, :, None].expand(-1, time, tokens).flatten(1)


def _same_dtype(*tensors: Tensor) -> list[Tensor]:
    """Under autocast the parts of one sum come in different precisions."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


class EvlVisual(nn.Module):
    """The video half: made of open_clip's image tower, whose parameters it takes over.

    Args:
        visual: open_clip's image tower.
        readers: see `GlobalTransformer`.
    """

    frames_a_step = 1
    """Frames that one step in time of the transformer stands for."""

    def __init__(self, visual: VisionTransformer, readers: Sequence[int]) -> None:
        super().__init__()
        self.image_size = visual.image_size
        self.conv1 = self.stem(visual.conv1)
        self.class_embedding = visual.class_embedding
        self.positional_embedding = visual.positional_embedding
        self.ln_pre = visual.ln_pre
        blocks = list(visual.transformer.resblocks)
        self.transformer = self.make_transformer(
            blocks,
            width=visual.conv1.out_channels,
            heads=blocks[0].attn.num_heads,
            grid=visual.grid_size,
            readers=readers,
        )

    make_transformer: type[GlobalTransformer] = GlobalTransformer

    def stem(self, conv1: nn.Conv2d) -> nn.Conv3d:
        """Embeds each frame alone, with the published shape (M, 3, 1, p, p)."""
        height, width = conv1.kernel_size
        conv = nn.Conv3d(3, conv1.out_channels, (1, height, width), (1, height, width), bias=False)
        with torch.no_grad():
            conv.weight.copy_(conv1.weight[:, :, None])
        return conv

    def patches(self, pixels_BTCHW: Tensor, layout: FrameLayout) -> Tensor:
        """(N, P−1, M), before positions."""
        weight = self.conv1.weight
        pixels_NCHW = layout.select(pixels_BTCHW).to(weight.dtype)
        return F.conv2d(pixels_NCHW, weight[:, :, 0], stride=weight.shape[-2:]).flatten(2).transpose(1, 2)

    def forward(self, pixels_BTCHW: Tensor, layout: FrameLayout, decode: bool) -> tuple[Tensor | None, Tensor]:
        """See `GlobalTransformer.forward`."""
        x_NPM = self.patches(pixels_BTCHW, layout)
        class_N1M = self.class_embedding.to(x_NPM.dtype).expand(len(x_NPM), 1, -1)
        x_NPM = torch.cat([class_N1M, x_NPM], dim=1) + self.positional_embedding.to(x_NPM.dtype)
        return self.transformer(self.ln_pre(x_NPM), layout, decode)
