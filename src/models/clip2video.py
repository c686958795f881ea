"""CLIP2Video: CLIP on frames, differences between frames, and shared centres for words and frames.

Shape suffixes: B items, T frames, S = 2T−1 frames and differences, X tokens of one modality, L words,
K centres, D joint dimension.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.batch import FrameSampling, TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.errors import UserError
from src.models.clip_retrieval import ClipRetrievalModule, frame_spec, full_precision
from src.models.freeze import FreezeRule
from src.models.temporal import MaskLayout, TemporalTransformer, init_small, interleave, pool_frames

Difference = Literal["raw", "mlp", "attention"]
AlignmentTokens = Literal["frames", "temporal", "difference"]

CENTRE_STD = 1 / 8


class DifferenceTokens(NamedTuple):
    """Frames and differences in turn: v₀ d₀ v₁ d₁ … vₜ, before positions and types are added."""

    tokens_BSD: Tensor
    position_SD: Tensor
    type_SD: Tensor
    mask_BS: Tensor


class DifferenceBlock(nn.Module):
    """Temporal Difference Block: inserts the change between neighbouring frames as tokens of their own.

    Args:
        width: D.
        heads: attention heads of the "attention" projection.
        enabled: without it only the parameters that upstream's checkpoints always hold exist, untrained.
        difference: "raw" keeps vᵢ₊₁−vᵢ; "mlp" and "attention" squash it to (−1, 1) after a projection.
        mask_layout: see `key_mask`.

    Source: CLIP2Video modules/modeling.py @ e941318, temporal_difference_block. The figure of the paper
        gives three different positions to frame, difference, frame; the code, followed here, gives frame i
        and difference i the same one, and the difference after the last valid frame is not masked.
    """

    def __init__(self, width: int, heads: int, enabled: bool, difference: Difference, mask_layout: MaskLayout) -> None:
        super().__init__()
        self.difference = difference
        self.norm = nn.LayerNorm(width)
        if difference == "attention":
            self.attention = TemporalTransformer(width, 1, heads, mask_layout)
        elif difference == "mlp":
            self.projection = nn.Parameter(torch.randn(width, width) * CENTRE_STD)
        if enabled:
            self.kind = nn.Embedding(2, width)
            self.kind.apply(init_small)
            self.norm.requires_grad_(difference != "raw")
        else:
            self.requires_grad_(False)

    def forward(self, frames_BTD: Tensor, mask_BT: Tensor, position: nn.Embedding) -> DifferenceTokens:
        time = frames_BTD.shape[1]
        change_BTD = frames_BTD[:, 1:] - frames_BTD[:, :-1]
        if self.difference == "attention":
            change_BTD = self.attention(change_BTD + position.weight[1:time], mask_BT[:, 1:])
        elif self.difference == "mlp":
            change_BTD = change_BTD @ self.projection
        if self.difference != "raw":
            change_BTD = 2 * torch.sigmoid(self.norm(change_BTD)) - 1
        steps_S = torch.arange(2 * time - 1, device=frames_BTD.device) // 2
        is_frame_S = (torch.arange(2 * time - 1, device=frames_BTD.device) % 2 == 0).long()
        return DifferenceTokens(
            tokens_BSD=interleave(frames_BTD, change_BTD),
            position_SD=position(steps_S),
            type_SD=self.kind(is_frame_S),
            mask_BS=mask_BT[:, steps_S],
        )


class AlignmentBlock(nn.Module):
    """Temporal Alignment Block: words and frames are described by their residuals to shared centres.

    Args:
        width: D.
        num_centers: K.
        transformer: makes extra temporal tokens from every second frame; None when frames suffice.

    Source: CLIP2Video modules/modeling.py @ e941318, temporal_alignment_block (a NetVLAD whose clusters
        are averaged, not concatenated).
    """

    def __init__(self, width: int, num_centers: int, transformer: TemporalTransformer | None) -> None:
        super().__init__()
        self.assignment = nn.Parameter(torch.randn(num_centers, width) * CENTRE_STD)
        self.residual = nn.Parameter(torch.randn(num_centers, width) * CENTRE_STD)
        self.transformer = transformer

    def forward(self, x_BXD: Tensor, mask_BX: Tensor) -> Tensor:
        """Normalised vectors (B, D) of a set of tokens; the zero vector for an empty set."""
        weights_BXK = torch.softmax(x_BXD @ self.assignment.T, dim=-1) * mask_BX[..., None]
        # Σₙ aₙₖ (xₙ − mₖ) without the (B, X, K, D) tensor.
        residual_BKD = weights_BXK.transpose(1, 2) @ x_BXD - weights_BXK.sum(1)[..., None] * self.residual
        return F.normalize(F.normalize(residual_BKD, dim=-1).mean(1), dim=-1)


class Clip2Video(ClipRetrievalModule):
    """CLIP2Video (arXiv 2106.11097).

    Args:
        arch: open_clip architecture name, or `videotext-tiny`.
        pretrained: null (random), a tag such as `openai`, or a local weight file.
        header: "seqTransf" models the order of frames by a transformer, "meanP" averages them
            (upstream flag `sim_type`).
        difference_block: insert differences between frames (upstream `temporal_type=TDB`); needs seqTransf.
        difference: how a difference becomes a token (upstream `temporal_proj`: "raw" is '', "mlp" is
            sigmoid_mlp, "attention" is sigmoid_selfA). Only read with a difference block.
        alignment_block: add the branch that aligns words with frames (upstream `center_type=TAB`).
        alignment_tokens: what stands for the video in it (upstream `center_proj`): "frames" is ''; "temporal" (TAB)
            adds tokens of every second frame; "difference" (TAB_TDB) adds them after a difference block.
            Only read with an alignment block.
        num_centers: shared centres K (upstream `centerK`; 7 published for VATEX).
        global_weight: weight of the global branch in loss and score, the rest goes to the aligned
            branch (upstream `center_weight`).
        num_frames: frames per video (upstream `max_frames`).
        max_words: tokens per caption (upstream `max_words`).
        temporal_layers: blocks of the temporal transformer (upstream `cross_num_hidden_layers`).
        head_dim: width of one attention head in it; null takes the text tower's.
        mask_layout: "per_video", or "upstream" for the released code, whose heads see the padding of
            other videos of the batch.
        sampling: rule that picks the frames; see `src.data.sampling`.
        framerate: frames per second or stride of that rule (upstream `feature_framerate`).
        frame_position: which frames of a long list survive, 0 head, 1 tail, 2 uniform.
        freeze_layers: −1 trains all of CLIP; n ≥ 0 see `freeze_clip`.
        freeze_rule: see `freeze_clip`.
        gather: "exact" gradients over processes or "upstream", 1/W of them.
        same_video_positives: leave other captions of the same video out of the negatives.

    Raises:
        UserError: options that contradict each other.

    Source: CryhanFang/CLIP2Video @ e941318 (the training script is unpublished; loss as in its model file).
    Deviates: a video without a valid frame gets the zero vector, not NaN; masks are never changed in place.
    """

    def __init__(
        self,
        *,
        arch: str,
        pretrained: str | None = None,
        header: Literal["meanP", "seqTransf"] = "seqTransf",
        difference_block: bool = True,
        difference: Difference = "attention",
        alignment_block: bool = True,
        alignment_tokens: AlignmentTokens = "difference",
        num_centers: int = 5,
        global_weight: float = 0.5,
        num_frames: int = 12,
        max_words: int = 32,
        temporal_layers: int = 4,
        head_dim: int | None = None,
        mask_layout: MaskLayout = "per_video",
        sampling: FrameSampling = "uniform",
        framerate: int = 1,
        frame_position: Literal[0, 1, 2] = 2,
        freeze_layers: int = -1,
        freeze_rule: FreezeRule = "intended",
        gather: Literal["exact", "upstream"] = "exact",
        same_video_positives: bool = False,
    ) -> None:
        super().__init__(
            arch=arch,
            pretrained=pretrained,
            linear_patch="2d",
            frames=frame_spec(num_frames, sampling, framerate, frame_position),
            max_words=max_words,
            head_dim=head_dim,
            freeze_layers=freeze_layers,
            freeze_rule=freeze_rule,
            gather=gather,
            same_video_positives=same_video_positives,
        )
        self.header = header
        self.difference_block = difference_block
        self.alignment_tokens = alignment_tokens
        self.global_weight = global_weight
        uses_difference = alignment_block and alignment_tokens == "difference"
        self._check_options(alignment_block, uses_difference, num_centers)
        self._add_temporal(temporal_layers, difference, mask_layout)
        self.alignment: AlignmentBlock | None = None
        if alignment_block:
            self.alignment = self._make_alignment(num_centers, mask_layout)

    def _check_options(self, alignment_block: bool, uses_difference: bool, num_centers: int) -> None:
        extra = alignment_block and self.alignment_tokens != "frames"
        needed = 3 if uses_difference else 2
        if self.header == "meanP" and self.difference_block:
            raise UserError("model.difference_block=true needs model.header=seqTransf, found meanP; change one of them")
        if self.header == "meanP" and extra:
            raise UserError(
                f"model.alignment_tokens={self.alignment_tokens} needs model.header=seqTransf, found meanP; "
                "set model.alignment_tokens=frames or model.header=seqTransf"
            )
        if uses_difference and not self.difference_block:
            raise UserError(
                "model.alignment_tokens=difference needs model.difference_block=true, found false; "
                "set model.alignment_tokens=temporal or model.difference_block=true"
            )
        if self.difference_block and self.frames.num_frames < needed:
            raise UserError(f"model.num_frames={self.frames.num_frames}, the difference block needs at least {needed}")
        if not 0 <= self.global_weight <= 1:
            raise UserError(f"model.global_weight={self.global_weight}, expected 0 to 1")
        if num_centers < 1:
            raise UserError(f"model.num_centers={num_centers}, expected at least 1")

    def _add_temporal(self, layers: int, difference: Difference, mask_layout: MaskLayout) -> None:
        width = self.tower.embed_dim
        self.difference = DifferenceBlock(width, self.heads, self.difference_block, difference, mask_layout)
        if self.header == "meanP":
            return
        self.position = self.position_table(self.frames.num_frames)
        self.temporal = TemporalTransformer(width, layers, self.heads, mask_layout)
        types = [self.difference.kind] if self.difference_block else []
        attention = [self.difference.attention] if difference == "attention" else []
        self.start_from_text_tower([self.position, *types], [self.temporal, *attention])
        if difference == "mlp" and self.tower.is_plain and self.tower.clip.visual.proj.shape[0] >= width:
            with torch.no_grad():
                self.difference.projection.copy_(self.tower.clip.visual.proj[:width])

    def _make_alignment(self, num_centers: int, mask_layout: MaskLayout) -> AlignmentBlock:
        transformer = None
        if self.alignment_tokens != "frames":
            transformer = TemporalTransformer(self.tower.embed_dim, 1, self.heads, mask_layout)
            self.start_from_text_tower([], [transformer])
        return AlignmentBlock(self.tower.embed_dim, num_centers, transformer)

    def encode_text(self, batch: TextBatch) -> TextEmbedding:
        """Normalised vectors (B, D): part "global", and "aligned" with the alignment block."""
        if self.alignment is None:
            parts = {"global": F.normalize(full_precision(self.tower.encode_text(batch.tokens_BL)), dim=-1)}
            return TextEmbedding(ids=batch.ids, parts=parts, video_ids=batch.video_ids)
        text_BD, tokens_BLD = self.tower.encode_text_tokens(batch.tokens_BL)
        with self.exact_arithmetic():
            words_mask_BL = batch.mask_BL.clone()
            words_mask_BL[:, 0] = False  # the start token says nothing
            parts = {
                "global": F.normalize(full_precision(text_BD), dim=-1),
                "aligned": self.alignment(full_precision(tokens_BLD), words_mask_BL),
            }
        return TextEmbedding(ids=batch.ids, parts=parts, video_ids=batch.video_ids)

    def encode_video(self, batch: VideoBatch) -> VideoEmbedding:
        """Normalised vectors (B, D): part "global", and "aligned" with the alignment block."""
        frames_BTD, mask_BT = self.encode_frames(batch)
        with self.exact_arithmetic():
            parts = {"global": pool_frames(self.order_frames(frames_BTD, mask_BT), mask_BT)}
            if self.alignment is not None:
                parts["aligned"] = self.alignment(*self.alignment_input(frames_BTD, mask_BT))
        return VideoEmbedding(ids=batch.ids, parts=parts)

    def order_frames(self, frames_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Frame vectors (B, T, D) that know of each other, with a residual; unchanged for meanP."""
        if self.header == "meanP":
            return frames_BTD
        return self._mix(frames_BTD, mask_BT, self.temporal, self.difference_block)

    def alignment_input(self, frames_BTD: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, X, D) and bool mask (B, X) that stand for the video in the alignment block."""
        if self.alignment is None or self.alignment.transformer is None:
            return frames_BTD, mask_BT
        slow_BTD, slow_mask_BT = frames_BTD[:, 0::2], mask_BT[:, 0::2]
        with_difference = self.alignment_tokens == "difference"
        extra_BTD = self._mix(slow_BTD, slow_mask_BT, self.alignment.transformer, with_difference)
        return torch.cat([frames_BTD, extra_BTD], dim=1), torch.cat([mask_BT, slow_mask_BT], dim=1)

    def _mix(
        self, frames_BTD: Tensor, mask_BT: Tensor, transformer: TemporalTransformer, with_difference: bool
    ) -> Tensor:
        """Transformer over frames, or over frames and differences, plus the frames themselves."""
        if not with_difference:
            positions_TD = self.position.weight[: frames_BTD.shape[1]]
            return transformer(frames_BTD + positions_TD, mask_BT) + frames_BTD
        z = self.difference(frames_BTD, mask_BT, self.position)
        mixed_BSD = transformer(z.tokens_BSD + z.position_SD + z.type_SD, z.mask_BS)
        return mixed_BSD[:, 0::2] + frames_BTD

    def score_global(self, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        """Scores (N, V) of the global branch."""
        return self.scaled_products(text.parts["global"], video.parts["global"])

    def score_aligned(self, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        """Scores (N, V) of the aligned branch."""
        return self.scaled_products(text.parts["aligned"], video.parts["aligned"])

    def similarity(self, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        """Weighted mean of both branches; the global one alone without alignment block."""
        if self.alignment is None:
            return self.score_global(text, video)
        weight = self.global_weight
        return weight * self.score_global(text, video) + (1 - weight) * self.score_aligned(text, video)

    def loss(self, text: TextEmbedding, video: VideoEmbedding) -> dict[str, Tensor]:
        """Weighted sum of two separate losses, not the loss of the weighted score."""
        if self.alignment is None:
            return {"loss": self.contrastive(self.score_global, text, video)}
        branches = {"global": self.score_global, "aligned": self.score_aligned}
        losses = self.contrastive.each(branches, text, video)
        total = self.global_weight * losses["global"] + (1 - self.global_weight) * losses["aligned"]
        return {"loss": total, **losses}
