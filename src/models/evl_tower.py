"""InternVideo's towers for captions and videos, from architectures and weights of CLIP.

Shape suffixes: B items, T frames, C channels, H height, W width, M width of the image tower, L tokens, D joint
dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer, text_global_pool
from torch import Tensor, nn

from src.errors import UserError
from src.models.clip_tower import ClipTower, build_from_tag, normalise_frames, wrong_activation
from src.models.evl_visual import EvlVisual, FrameLayout
from src.models.evl_weights import fitting_tensors, knows_video, load_tower, merge_into
from src.models.weights import ARCHIVE_SCALARS, check_fit, read_state_dict

Padding = Literal["masked", "upstream"]
TextTokenSpace = Literal["projected", "upstream"]

DECODER_LAYERS = 4
FRAMES_AT_ONCE = 64
"""Frames that evaluation encodes together: 16,448 tokens and about 1 GB of activations with ViT-L/14 at 224 px."""


@dataclass(frozen=True)
class VideoFeatures:
    """What a video tower gives, not normalised, in the precision that it computes in.

    Attributes:
        pooled_BD: the video; zeros for a video without a valid frame. None where the decoder was not asked.
        frames_BTD: class token of every frame; T is halved by the fusion tower.
        mask_BT: bool, the frames that are valid.
    """

    pooled_BD: Tensor | None
    frames_BTD: Tensor
    mask_BT: Tensor


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
        is_internvideo = state is not None and knows_video(state)
        if state is not None:
            self._load(state, str(pretrained))
            del state  # gigabytes, which the merging below would come on top of
        if merge_clip is not None:
            self._merge(merge_clip, merge_weight, pretrained, is_internvideo)

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
                f"model.text_tokens=upstream compares tokens of width {self.text_width} with frames of width "
                f"{self.embed_dim} in {self.arch}; set model.text_tokens=projected"
            )

    def _load(self, state: dict[str, Tensor], source: str) -> None:
        trained_with_quick_gelu = knows_video(state) or any(name in state for name in ARCHIVE_SCALARS)
        if trained_with_quick_gelu and not self.config.get("quick_gelu", False):
            raise wrong_activation(self.arch, source)
        load_tower(self.clip, state, source)

    def _merge(self, other: str, weight: float, pretrained: str | None, is_internvideo: bool) -> None:
        if pretrained is None:  # an empty model, or one whose checkpoint is loaded next and holds merged weights
            return
        if not is_internvideo:
            raise UserError(
                f"model.merge_clip={other} interpolates InternVideo's weights with CLIP's, but model.pretrained="
                f"{pretrained} holds CLIP's; give a file of InternVideo's or set model.merge_clip=null"
            )
        if not 0 <= weight <= 1:
            raise UserError(f"model.merge_weight={weight}, expected a share of CLIP from 0 to 1")
        is_file = Path(other).is_file()
        tags = open_clip.list_pretrained_tags_by_model(self.arch)
        if not is_file and other not in tags:
            raise UserError(
                f"model.merge_clip={other} is neither a file nor a tag of {self.arch} "
                f"(tags: {', '.join(tags) or 'none'}); give a file, one of the tags, or null"
            )
        state = read_state_dict(other) if is_file else build_from_tag(self.arch, other, self.config).state_dict()
        merge_into(self.clip, state, weight, other)

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
        layout = FrameLayout.of(valid_BT) if self.padding == "masked" else FrameLayout.everywhere(valid_BT)
        if not layout.full:
            pixels = pixels.masked_fill(~mask_BT[..., None, None, None], 0.0)
        video_BM, frames_BTM = self.clip.visual(pixels, layout, decode)
        pooled_BD = None if video_BM is None else self._project_video(video_BM)
        if pooled_BD is not None and not layout.full:
            pooled_BD = pooled_BD * valid_BT.any(1, keepdim=True)
        return VideoFeatures(pooled_BD, self._project_video(frames_BTM), valid_BT)

    def _project_video(self, x: Tensor) -> Tensor:
        return self.clip.visual_ln_post(x) @ self.clip.visual_proj
