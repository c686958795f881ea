"""CLIP2Video: CLIP on frames, and a transformer over these and the differences between them.

Shape suffixes: B items, T frames, S = 2T−1 frames and differences, X further tokens, D joint dimension.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from src.batch import FrameSampling, VideoBatch
from src.errors import UserError
from src.models.clip_retrieval import ClipRetrievalModule, LossName, frame_spec
from src.models.clip_tower import ClipTower
from src.models.freeze import FreezeRule, freeze_clip
from src.models.heads.base import HeadFactory, VideoTokens, head_class
from src.models.heads.tab import CENTRE_STD, TabHead
from src.models.temporal import MaskLayout, TemporalTransformer, init_small, interleave

Difference = Literal["raw", "mlp", "attention"]
AlignmentTokens = Literal["frames", "temporal", "difference"]


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


class Clip2Video(ClipRetrievalModule):
    """CLIP2Video (arXiv 2106.11097).

    Args:
        arch: open_clip architecture name, or `videotext-tiny`.
        pretrained: null (random), a tag such as `openai`, or a local weight file.
        head: how a caption is compared with what the layers over frames give, one of conf/model/head; published:
            tab (upstream `center_type=TAB`), or without it meanP.
        temporal_block: a transformer over the frames (upstream `sim_type`: seqTransf has it, meanP has none).
        difference_block: it also reads the differences between frames (upstream `temporal_type=TDB`).
        difference: how a difference becomes a token (upstream `temporal_proj`: "raw" is '', "mlp" is
            sigmoid_mlp, "attention" is sigmoid_selfA). Only read with a difference block.
        alignment_tokens: what stands for the video in the alignment of head tab (upstream `center_proj`): "frames" is
            ''; "temporal" (TAB) adds tokens of every second frame; "difference" (TAB_TDB) adds them after a
            difference block. Other heads do not read it.
        num_frames: frames per video (upstream `max_frames`).
        max_words: tokens per caption (upstream `max_words`).
        temporal_layers: blocks of the temporal transformer (upstream `cross_num_hidden_layers`).
        head_dim: width of one attention head of transformers over frames; null takes the text tower's.
        mask_layout: of these, "per_video", or "upstream" for the released code, whose heads see the padding of
            other videos of the batch.
        sampling: rule that picks the frames; see `src.data.sampling`.
        framerate: frames per second or stride of that rule (upstream `feature_framerate`).
        frame_position: which frames of a long list survive, 0 head, 1 tail, 2 uniform.
        freeze_layers: −1 trains all of CLIP; n ≥ 0 see `freeze_clip`.
        freeze_rule: see `freeze_clip`.
        activation_checkpointing: see `src.models.tower_speed`.
        compile: see `src.models.tower_speed`.
        gather: "exact" gradients over processes or "upstream", 1/W of them.
        same_video_positives: leave other captions of the same video out of the negatives.
        loss: "infonce", or "dsl": scores are first multiplied by their softmax over the queries; see `DualSoftmaxLoss`.
        dsl_temperature: of that softmax; only read with "dsl".
        ocr: read the words in the picture too, of files that `dataset.ocr_dir` names; see `src.models.clip_ocr`.
        ocr_words: at most so many of a video, the best-scored ones; only read with `ocr`.

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
        head: HeadFactory = TabHead,
        temporal_block: bool = True,
        difference_block: bool = True,
        difference: Difference = "attention",
        alignment_tokens: AlignmentTokens = "difference",
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
        activation_checkpointing: bool = False,
        compile: bool = False,
        gather: Literal["exact", "upstream"] = "exact",
        same_video_positives: bool = False,
        loss: LossName = "infonce",
        dsl_temperature: float = 1000.0,
        ocr: bool = False,
        ocr_words: int = 200,
    ) -> None:
        tower = ClipTower(arch, pretrained)
        freeze_clip(tower, freeze_layers, freeze_rule)
        super().__init__(
            tower=tower,
            frames=frame_spec(num_frames, sampling, framerate, frame_position),
            max_words=max_words,
            head_dim=head_dim,
            mask_layout=mask_layout,
            gather=gather,
            same_video_positives=same_video_positives,
            loss=loss,
            dsl_temperature=dsl_temperature,
            ocr=ocr,
            ocr_words=ocr_words,
            activation_checkpointing=activation_checkpointing,
            compile=compile,
        )
        self.temporal_block = temporal_block
        self.difference_block = difference_block
        self.extra_tokens: AlignmentTokens = alignment_tokens if head_class(head).reads_extra else "frames"
        self._check_options()
        self._add_temporal(temporal_layers, difference)
        # Drawn before the head and listed after it, so that a seed means the weights and steps that it always meant.
        extra = self._make_extra()
        self.add_head(head)
        self.extra = extra

    def _check_options(self) -> None:
        uses_difference = self.extra_tokens == "difference"
        needed = 3 if uses_difference else 2
        if self.difference_block and not self.temporal_block:
            raise UserError(
                "model.difference_block=true needs model.temporal_block=true, found false; change one of them"
            )
        if self.extra_tokens != "frames" and not self.temporal_block:
            raise UserError(
                f"model.alignment_tokens={self.extra_tokens} needs model.temporal_block=true, found false; "
                "set model.alignment_tokens=frames or model.temporal_block=true"
            )
        if uses_difference and not self.difference_block:
            raise UserError(
                "model.alignment_tokens=difference needs model.difference_block=true, found false; "
                "set model.alignment_tokens=temporal or model.difference_block=true"
            )
        if self.difference_block and self.frames.num_frames < needed:
            raise UserError(f"model.num_frames={self.frames.num_frames}, the difference block needs at least {needed}")

    def _add_temporal(self, layers: int, difference: Difference) -> None:
        width, host = self.tower.embed_dim, self.host()
        self.difference = DifferenceBlock(
            width, self.attention_heads, self.difference_block, difference, self.mask_layout
        )
        if not self.temporal_block:
            return
        if layers < 1:
            raise UserError(f"model.temporal_layers={layers}, expected at least 1; model.temporal_block=false has none")
        self.position = host.position_table(self.frames.num_frames)
        self.temporal = host.temporal_transformer(layers)
        types = [self.difference.kind] if self.difference_block else []
        attention = [self.difference.attention] if difference == "attention" else []
        host.start_from_text_tower([self.position, *types], [self.temporal, *attention])
        if difference == "mlp" and self.tower.is_plain and self.tower.clip.visual.proj.shape[0] >= width:
            with torch.no_grad():
                self.difference.projection.copy_(self.tower.clip.visual.proj[:width])

    def _make_extra(self) -> TemporalTransformer | None:
        """What makes further tokens of every second frame."""
        if self.extra_tokens == "frames":
            return None
        host = self.host()
        transformer = host.temporal_transformer(1)
        host.start_from_text_tower([], [transformer])
        return transformer

    def video_tokens(self, batch: VideoBatch) -> VideoTokens:
        frames_BTD, mask_BT = self.encode_frames(batch)
        with self.exact_arithmetic():
            ordered_BTD = self.order_frames(frames_BTD, mask_BT)
            return VideoTokens(frames_BTD, mask_BT, ordered_BTD, *self.more_tokens(frames_BTD, mask_BT))

    def order_frames(self, frames_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Frame vectors (B, T, D) that know of each other, with a residual; unchanged without temporal block."""
        if not self.temporal_block:
            return frames_BTD
        return self._mix(frames_BTD, mask_BT, self.temporal, self.difference_block)

    def more_tokens(self, frames_BTD: Tensor, mask_BT: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Further tokens (B, X, D) of every second frame and their bool mask (B, X), or nothing."""
        if self.extra is None:
            return None, None
        slow_BXD, slow_mask_BX = frames_BTD[:, 0::2], mask_BT[:, 0::2]
        with_difference = self.extra_tokens == "difference"
        return self._mix(slow_BXD, slow_mask_BX, self.extra, with_difference), slow_mask_BX

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
