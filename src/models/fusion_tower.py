"""InternVideo's other video tower: neighbouring frames also exchange information inside the image blocks.

A stem over three frames halves their number; every block mixes each patch with the same patch of the
neighbouring steps, twice, by a narrow convolution over time. The global token reads as in `evl_visual`.
No released model uses it.

Shape suffixes: as in `evl_visual`; K width of the convolution over time; one of the T steps stands for two frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from src.models.evl_tower import EvlTower
from src.models.evl_visual import EvlVisual, FrameLayout, GlobalTransformer

REDUCTION = 1.5
STEM_FRAMES = 3


class LocalMixer(nn.Module):
    """A residual of each patch from the same patch in the neighbouring steps; zero at the start.

    Args:
        width: M.

    Source: InternVideo clip_evl/evl_utils/evl_module_uniformer_diff_conv_balance.py Local_MHRA @ 3965eef.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = int(width // REDUCTION)
        self.pos_embed = nn.Sequential(
            nn.BatchNorm3d(width),
            nn.Conv3d(width, narrow, 1),
            nn.Conv3d(narrow, narrow, (3, 1, 1), padding=(1, 0, 0), groups=narrow),
            nn.Conv3d(narrow, width, 1),
        )
        for parameter in self.pos_embed[3].parameters():
            nn.init.zeros_(parameter)

    def forward(self, patches_NPM: Tensor, layout: FrameLayout) -> Tensor:
        """(N, P−1, M) to the same. Statistics are of the encoded frames only, and padding counts as the border."""
        norm, inwards, over_time, outwards = self.pos_embed
        narrow_NKP = inwards(norm(patches_NPM.transpose(1, 2)[:, :, None, :, None]))[:, :, 0, :, 0]
        narrow_BKTP = layout.spread(narrow_NKP).transpose(1, 2)
        mixed_BTKP = over_time(narrow_BKTP[..., None])[..., 0].transpose(1, 2)
        mixed_NKP = layout.select(mixed_BTKP)
        return patches_NPM + outwards(mixed_NKP[:, :, None, :, None])[:, :, 0, :, 0].transpose(1, 2)


class FusionBlock(nn.Module):
    """An image block with a mixer before its attention and one before its MLP; both leave the class token alone.

    Args:
        block: open_clip's, whose layers it takes over.
        width: M.
    """

    def __init__(self, block: ResidualAttentionBlock, width: int) -> None:
        super().__init__()
        self.lmhra1 = LocalMixer(width)
        self.lmhra2 = LocalMixer(width)
        self.attn = block.attn
        self.ln_1 = block.ln_1
        self.mlp = block.mlp
        self.ln_2 = block.ln_2

    def forward(self, x_NPM: Tensor, layout: FrameLayout) -> Tensor:
        x_NPM = self._mix(self.lmhra1, x_NPM, layout)
        z_NPM = self.ln_1(x_NPM)
        x_NPM = x_NPM + self.attn(z_NPM, z_NPM, z_NPM, need_weights=False)[0]
        x_NPM = self._mix(self.lmhra2, x_NPM, layout)
        return x_NPM + self.mlp(self.ln_2(x_NPM))

    @staticmethod
    def _mix(mixer: nn.Module, x_NPM: Tensor, layout: FrameLayout) -> Tensor:
        mixed = mixer(x_NPM[:, 1:], layout)
        return torch.cat([x_NPM[:, :1].to(mixed.dtype), mixed], dim=1)


class FusionTransformer(GlobalTransformer):
    """`GlobalTransformer` over `FusionBlock`s."""

    def __init__(
        self, blocks: Sequence[Any], *, width: int, heads: int, grid: tuple[int, int], readers: Sequence[int]
    ) -> None:
        mixing = [FusionBlock(block, width) for block in blocks]
        super().__init__(mixing, width=width, heads=heads, grid=grid, readers=readers)

    def run_block(self, block: nn.Module, x_NPM: Tensor, layout: FrameLayout) -> Tensor:
        return block(x_NPM, layout)


class FusionVisual(EvlVisual):
    """Steps of two frames: the stem sees a frame, the one before and the one after."""

    frames_a_step = 2
    make_transformer = FusionTransformer

    def stem(self, conv1: nn.Conv2d) -> nn.Conv3d:
        """Starts as CLIP's patches of the middle frame."""
        height, width = conv1.kernel_size
        kernel, stride = (STEM_FRAMES, height, width), (self.frames_a_step, height, width)
        conv = nn.Conv3d(3, conv1.out_channels, kernel, stride, (STEM_FRAMES // 2, 0, 0), bias=False)
        with torch.no_grad():
            conv.weight.zero_()
            conv.weight[:, :, STEM_FRAMES // 2] = conv1.weight
        return conv

    def patches(self, pixels_BTCHW: Tensor, layout: FrameLayout) -> Tensor:
        embedded_BMTHW = self.conv1(pixels_BTCHW.to(self.conv1.weight.dtype).transpose(1, 2))
        return layout.select(embedded_BMTHW.transpose(1, 2)).flatten(2).transpose(1, 2)


class FusionTower(EvlTower):
    """`EvlTower` with `FusionBlock`s; weights of CLIP start it as the same function of every other frame.

    Source: OpenGVLab/InternVideo modules/clip_evl/evl_utils @ 3965eef.
    """

    visual_class = FusionVisual
