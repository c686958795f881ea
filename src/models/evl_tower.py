"""InternVideo's video tower: a CLIP whose frames are read by one token that looks at the whole video.

Every frame goes through CLIP's image blocks alone. A global token attends to all tokens of all frames after
each of the last blocks; together with the mean of the frames' class tokens it is the video.

Shape suffixes: B videos, T frames, C channels, H height, W width, N encoded frames of all videos, P tokens of a
frame (class token first), S tokens of a video, M width of the tower, L tokens of a caption, D joint dimension.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer, text_global_pool
from torch import Tensor, nn

from src.errors import UserError
from src.models.clip_tower import ClipTower, build_from_tag, normalise_frames, wrong_activation
from src.models.evl_weights import fitting_tensors, knows_video, load_tower, merged
from src.models.temporal import masked_mean, quick_gelu
from src.models.weights import ARCHIVE_SCALARS, check_fit, load_strictly, read_state_dict

log = logging.getLogger(__name__)

Padding = Literal["masked", "upstream"]
TextTokenSpace = Literal["projected", "upstream"]

DECODER_LAYERS = 4
FRAMES_AT_ONCE = 64
"""Frames that evaluation encodes together: 16,448 tokens and about 1 GB of activations with ViT-L/14 at 224 px."""


@dataclass(frozen=True)
class FrameLayout:
    """Places (B, T) of the frames that are encoded; the others hold nothing.

    Attributes:
        mask_BT: bool, True where a frame is encoded.
        full: whether that is everywhere.
    """

    mask_BT: Tensor
    full: bool

    @classmethod
    def of(cls, mask_BT: Tensor) -> FrameLayout:
        return cls(mask_BT, full=bool(mask_BT.all()))

    def select(self, x_BT: Tensor) -> Tensor:
        """(B, T, …) to (N, …)."""
        return x_BT.flatten(0, 1) if self.full else x_BT[self.mask_BT]

    def spread(self, x_N: Tensor) -> Tensor:
        """(N, …) to (B, T, …), exact zeros where nothing is."""
        if self.full:
            return x_N.unflatten(0, self.mask_BT.shape)
        places = x_N.new_zeros(*self.mask_BT.shape, *x_N.shape[1:])
        places[self.mask_BT] = x_N
        return places


@dataclass(frozen=True)
class VideoFeatures:
    """What a video tower gives, float32 or float64 at the end of the tower's own arithmetic, not normalised.

    Attributes:
        pooled_BD: the video; zeros for a video without a valid frame. None where the decoder was not asked.
        frames_BTD: class token of every frame; T is halved by the fusion tower.
        mask_BT: bool, the frames that are valid.
    """

    pooled_BD: Tensor | None
    frames_BTD: Tensor
    mask_BT: Tensor


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
        self, blocks: Sequence[nn.Module], *, width: int, heads: int, grid: tuple[int, int], readers: Sequence[int]
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
            assert isinstance(conv, nn.Conv3d) and conv.bias is not None
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


class EvlClip(nn.Module):
    """Both halves under the published names; the caption half is open_clip's own."""

    attn_mask: Tensor | None

    def __init__(self, clip: open_clip.CLIP, visual: EvlVisual) -> None:
        super().__init__()
        self.visual = visual
        self.visual_ln_post = clip.visual.ln_post
        self.visual_proj = clip.visual.proj
        self.transformer = clip.transformer
        self.token_embedding = clip.token_embedding
        self.positional_embedding = clip.positional_embedding
        self.ln_final = clip.ln_final
        self.text_projection = clip.text_projection
        self.text_pool_type, self.text_eos_id = clip.text_pool_type, clip.text_eos_id
        self.register_buffer("attn_mask", clip.attn_mask, persistent=False)
        self.logit_scale = clip.logit_scale
        # Of masked language modelling in pre-training: carried along for the checkpoints, read by nothing.
        width = clip.token_embedding.embedding_dim
        self.text_mask_embedding = nn.Parameter(torch.zeros(1, 1, width), requires_grad=False)


class EvlTower(ClipTower):
    """InternVideo's towers by the name of the CLIP architecture that they extend.

    Args:
        arch: an open_clip architecture with a plain ViT, such as `ViT-L-14-quickgelu`, or `videotext-tiny`.
        pretrained: None; a tag or a file of CLIP's weights, to which the fresh decoder is added; or a file of
            InternVideo's, pre-trained or fine-tuned. Files are told apart by their tensors.
        decoder_layers: the global token reads after so many of the last blocks; None: 4, or all of fewer blocks.
        padding: "masked" encodes valid frames only; "upstream" also the zeros behind them, as the released code.
        text_tokens: `encode_text_tokens` gives "projected" tokens, or "upstream" the text tower's own.
        merge_clip: a tag or a file of CLIP's weights to interpolate InternVideo's with.
        merge_weight: share of CLIP in them.

    Raises:
        UserError: as `ClipTower`; an architecture whose image tower is no plain ViT; weights that do not fit.

    Source: OpenGVLab/InternVideo InternVideo1/Downstream/Video-Text-Retrieval modules/clip_evl @ 3965eef,
        the "only global" tower of all released models.
    Deviates: captions may be shorter than 77 ids (upstream fails); a causal text tower gives the same for them.
        Padding is masked by default.
    """

    visual_class: type[EvlVisual] = EvlVisual

    def __init__(
        self,
        arch: str,
        pretrained: str | None = None,
        *,
        decoder_layers: int | None = None,
        padding: Padding = "masked",
        text_tokens: TextTokenSpace = "projected",
        merge_clip: str | None = None,
        merge_weight: float = 0.5,
    ) -> None:
        state = read_state_dict(pretrained) if pretrained is not None and Path(pretrained).is_file() else None
        super().__init__(arch, pretrained if state is None else None)
        self.padding: Padding = padding
        self.text_tokens: TextTokenSpace = text_tokens
        self._check(decoder_layers)
        layers = len(self.clip.visual.transformer.resblocks)
        count = min(DECODER_LAYERS, layers) if decoder_layers is None else decoder_layers
        self.clip = EvlClip(self.clip, self.visual_class(self.clip.visual, range(layers - count, layers)))
        if state is not None:
            self._load(state, str(pretrained))
        if merge_clip is not None:
            self._merge(merge_clip, merge_weight, pretrained, state is not None and knows_video(state))

    def _check(self, decoder_layers: int | None) -> None:
        visual = self.clip.visual
        plain = self.is_plain and type(visual) is VisionTransformer and visual.attn_pool is None
        plain = plain and visual.pool_type == "tok" and visual.proj is not None
        if not plain or not all(type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks):
            raise UserError(
                f"InternVideo extends a plain CLIP ViT, found model.arch={self.arch}; "
                "use ViT-L-14-quickgelu or ViT-B-16-quickgelu"
            )
        layers = len(visual.transformer.resblocks)
        if decoder_layers is not None and not 1 <= decoder_layers <= layers:
            raise UserError(f"model.decoder_layers={decoder_layers}, expected 1 to {layers}, the blocks of {self.arch}")
        if self.text_tokens == "upstream" and self.text_width != self.embed_dim:
            raise UserError(
                f"model.text_tokens=upstream compares tokens of width {self.text_width} with frames of {self.embed_dim} "
                f"dimensions in {self.arch}; set model.text_tokens=projected"
            )

    def _load(self, state: dict[str, Tensor], source: str) -> None:
        trained_with_quick_gelu = knows_video(state) or any(name in state for name in ARCHIVE_SCALARS)
        if trained_with_quick_gelu and not self.config.get("quick_gelu", False):
            raise wrong_activation(self.arch, source)
        load_tower(self.clip, state, source)

    def _merge(self, other: str, weight: float, pretrained: str | None, is_internvideo: bool) -> None:
        if pretrained is None:  # an empty model, or one whose checkpoint is loaded next
            log.info("model.merge_clip=%s is not read: there is no model.pretrained to merge it into", other)
            return
        if not is_internvideo:
            raise UserError(
                f"model.merge_clip={other} interpolates InternVideo's weights with CLIP's, but model.pretrained="
                f"{pretrained} holds CLIP's; give a file of InternVideo's or set model.merge_clip=null"
            )
        if not 0 <= weight <= 1:
            raise UserError(f"model.merge_weight={weight}, expected a share of CLIP from 0 to 1")
        is_file = Path(other).is_file()
        state = read_state_dict(other) if is_file else build_from_tag(self.arch, other, self.config).state_dict()
        load_strictly(self.clip, merged(self.clip.state_dict(), state, weight), other)

    def check_file(self, state: Mapping[str, Tensor], source: str) -> None:
        """Compare the tensors of a published file, of any layout, with the tower's."""
        check_fit(self.clip, fitting_tensors(self.clip, state, source), source)

    def encode_text_tokens(self, tokens_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Sentence vectors (B, D), and token vectors (B, L, D): projected, or ln_final's output as upstream."""
        if self.text_tokens == "projected":
            return super().encode_text_tokens(tokens_BL)
        states_BLD = self._text_states(tokens_BL)
        pool = self.clip.text_pool_type
        sentence = text_global_pool(states_BLD, tokens_BL, pool, eos_token_id=self.clip.text_eos_id)
        return self._project_text(sentence), states_BLD

    def encode_frames(self, frames_BTCHW: Tensor, mask_BT: Tensor) -> Tensor:
        """Frame vectors (B, T, D), not normalised: the last class token of each, projected."""
        return self.encode_video(frames_BTCHW, mask_BT, decode=False).frames_BTD

    def encode_video(self, frames_BTCHW: Tensor, mask_BT: Tensor, decode: bool = True) -> VideoFeatures:
        """Encode videos; without gradients a few at a time, so that memory does not grow with the batch.

        Args:
            frames_BTCHW: uint8 RGB, or float frames that are already normalised.
            mask_BT: bool, True on valid frames; T may differ between calls.
            decode: whether the global token is wanted.
        """
        self.check_size(frames_BTCHW)
        if torch.is_grad_enabled():
            return self._encode(frames_BTCHW, mask_BT, decode)
        videos = max(1, FRAMES_AT_ONCE // max(1, frames_BTCHW.shape[1]))
        batches = zip(frames_BTCHW.split(videos), mask_BT.split(videos), strict=True)
        pieces = [self._encode(frames, mask, decode) for frames, mask in batches]
        return VideoFeatures(
            torch.cat([piece.pooled_BD for piece in pieces if piece.pooled_BD is not None]) if decode else None,
            torch.cat([piece.frames_BTD for piece in pieces]),
            torch.cat([piece.mask_BT for piece in pieces]),
        )

    def _encode(self, frames_BTCHW: Tensor, mask_BT: Tensor, decode: bool) -> VideoFeatures:
        pixels = normalise_frames(frames_BTCHW, self.mean, self.std, mask_BT)
        valid_BT = mask_BT[:, :: self.clip.visual.frames_a_step]
        layout = FrameLayout.of(valid_BT if self.padding == "masked" else torch.ones_like(valid_BT))
        if not layout.full:
            pixels = pixels.masked_fill(~mask_BT[..., None, None, None], 0.0)
        video_BM, frames_BTM = self.clip.visual(pixels, layout, decode)
        pooled_BD = None if video_BM is None else self._project_video(video_BM)
        if pooled_BD is not None and not layout.full:
            pooled_BD = pooled_BD * valid_BT.any(1, keepdim=True)
        return VideoFeatures(pooled_BD, self._project_video(frames_BTM), valid_BT)

    def _project_video(self, x: Tensor) -> Tensor:
        return self.clip.visual_ln_post(x) @ self.clip.visual_proj
