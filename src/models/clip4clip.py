"""CLIP4Clip: CLIP on frames with four ways to compare a caption with a sequence of frame vectors.

Shape suffixes: B items, T frames, D joint dimension, N captions, V videos, P (caption, video) pairs.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from src.batch import FrameSampling, TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.models.clip_retrieval import ClipRetrievalModule, frame_spec, full_precision
from src.models.freeze import FreezeRule
from src.models.temporal import MaskLayout, TemporalTransformer, init_small, pool_frames, quick_gelu

Header = Literal["meanP", "seqLSTM", "seqTransf", "tightTransf"]

PAIRS_AT_ONCE = 2048
"""Pairs that the cross transformer scores in one go: about 0.4 GB of activations at 12 frames, 512-d."""


class CrossScorer(nn.Module):
    """Joint transformer over [caption, frame 1 … frame T] that scores one (caption, video) pair.

    Args:
        position: position table; the caption takes row 0.
        transformer: joint transformer.
        dropout: after adding positions; the only dropout of the model.

    Source: CLIP4Clip modules/modeling.py _cross_similarity and module_cross.py @ 508ffa3.
    """

    def __init__(self, position: nn.Embedding, transformer: TemporalTransformer, dropout: float) -> None:
        super().__init__()
        width = position.embedding_dim
        self.position = position
        self.transformer = transformer
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dense = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)
        self.dense.apply(init_small)
        self.score.apply(init_small)

    def forward(self, text_ND: Tensor, frames_VTD: Tensor, mask_VT: Tensor) -> Tensor:
        """Logits (N, V), computed in blocks of captions so that memory stays bounded."""
        rows = max(1, PAIRS_AT_ONCE // max(1, len(frames_VTD)))
        blocks = []
        for block_ND in text_ND.split(rows):
            if torch.is_grad_enabled() and len(text_ND) > rows:
                # Only one block's activations at a time, recomputed in the backward pass.
                blocks.append(checkpoint(self._block, block_ND, frames_VTD, mask_VT, use_reentrant=False))
            else:
                blocks.append(self._block(block_ND, frames_VTD, mask_VT))
        return torch.cat(blocks)

    def _block(self, text_ND: Tensor, frames_VTD: Tensor, mask_VT: Tensor) -> Tensor:
        n, (v, t, d) = len(text_ND), frames_VTD.shape
        text_NV1D = text_ND[:, None, None].expand(n, v, 1, d)
        tokens_PTD = torch.cat([text_NV1D, frames_VTD.expand(n, v, t, d)], dim=2).reshape(n * v, t + 1, d)
        mask_PT = F.pad(mask_VT, (1, 0), value=True).expand(n, v, t + 1).reshape(n * v, t + 1)
        tokens_PTD = self.dropout(tokens_PTD + self.position.weight[: t + 1])
        pooled_PD = self.norm(self.transformer(tokens_PTD, mask_PT)[:, 0])
        return self.score(quick_gelu(self.dense(pooled_PD))).view(n, v)


class Clip4Clip(ClipRetrievalModule):
    """CLIP4Clip (arXiv 2104.08860).

    Args:
        arch: open_clip architecture name, or `videotext-tiny`.
        pretrained: null (random), a tag such as `openai`, or a local weight file.
        header: how frames become a score (upstream flag `sim_header`): "meanP" averages them; "seqLSTM" and
            "seqTransf" model their order first; "tightTransf" runs a joint transformer on every pair.
        linear_patch: "2d", or "3d" for patches over three neighbouring frames.
        num_frames: frames per video (upstream `max_frames`).
        max_words: tokens per caption (upstream `max_words`).
        temporal_layers: blocks of the seqTransf or tightTransf transformer (upstream `cross_num_hidden_layers`).
        head_dim: width of one attention head in it; null takes the text tower's.
        mask_layout: "per_video", or "upstream" for the mask order of the code before July 2021.
        dropout: in tightTransf only.
        sampling: rule that picks the frames; see `src.data.sampling`.
        framerate: frames per second or stride of that rule (upstream `feature_framerate`).
        frame_position: which frames of a long list survive, 0 head, 1 tail, 2 uniform (upstream `slice_framepos`).
        freeze_layers: −1 trains all of CLIP; n ≥ 0 see `freeze_clip` (upstream `freeze_layer_num`).
        freeze_rule: "upstream" freezes nothing with 3-d patches, as the released code does.
        gather: "exact" gradients over processes or "upstream", 1/W of them; tightTransf then uses the
            local batch only, as upstream does.
        same_video_positives: leave other captions of the same video out of the negatives.

    Source: ArrowLuo/CLIP4Clip @ 508ffa3.
    Deviates: a video without a valid frame gets the zero vector, not NaN; the LSTM's output does not
        depend on the longest video of the batch (its padded steps are masked in the mean anyway).
    """

    def __init__(
        self,
        *,
        arch: str,
        pretrained: str | None = None,
        header: Header = "meanP",
        linear_patch: Literal["2d", "3d"] = "2d",
        num_frames: int = 12,
        max_words: int = 32,
        temporal_layers: int = 4,
        head_dim: int | None = None,
        mask_layout: MaskLayout = "per_video",
        dropout: float = 0.1,
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
            linear_patch=linear_patch,
            frames=frame_spec(num_frames, sampling, framerate, frame_position),
            max_words=max_words,
            head_dim=head_dim,
            freeze_layers=freeze_layers,
            freeze_rule=freeze_rule,
            gather=gather,
            same_video_positives=same_video_positives,
        )
        width = self.tower.embed_dim
        self.header = header
        self.similarity_is_pairwise = header == "tightTransf"
        if header == "seqLSTM":
            # The table is part of upstream's checkpoints although nothing reads it.
            self.position = self.position_table(num_frames).requires_grad_(False)
            self.lstm = nn.LSTM(width, width, batch_first=True)
            self.start_from_text_tower([self.position], [])
        elif header == "seqTransf":
            self.position = self.position_table(num_frames)
            self.temporal = TemporalTransformer(width, temporal_layers, self.heads, mask_layout)
            self.start_from_text_tower([self.position], [self.temporal])
        elif header == "tightTransf":
            transformer = TemporalTransformer(width, temporal_layers, self.heads, mask_layout)
            self.cross = CrossScorer(self.position_table(num_frames + 1), transformer, dropout)
            self.start_from_text_tower([self.cross.position], [transformer])
            self.tower.logit_scale.requires_grad_(False)  # the joint transformer gives logits directly

    def encode_text(self, batch: TextBatch) -> TextEmbedding:
        """Part "text": sentence vectors (B, D), normalised except for tightTransf."""
        text_BD = full_precision(self.tower.encode_text(batch.tokens_BL))
        if not self.similarity_is_pairwise:
            text_BD = F.normalize(text_BD, dim=-1)
        return TextEmbedding(ids=batch.ids, parts={"text": text_BD}, video_ids=batch.video_ids)

    def encode_video(self, batch: VideoBatch) -> VideoEmbedding:
        """Part "video": normalised vectors (B, D); tightTransf: "frames" (B, T, D) and "frames_mask" (B, T)."""
        frames_BTD, mask_BT = self.encode_frames(batch)
        if self.similarity_is_pairwise:
            return VideoEmbedding(ids=batch.ids, parts={"frames": frames_BTD, "frames_mask": mask_BT})
        with self.exact_arithmetic():
            video_BD = pool_frames(self.order_frames(frames_BTD, mask_BT), mask_BT)
        return VideoEmbedding(ids=batch.ids, parts={"video": video_BD})

    def order_frames(self, frames_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Frame vectors (B, T, D) that know of each other, with a residual; unchanged for meanP."""
        if self.header == "seqLSTM":
            # Unidirectional: a valid step never sees the padding behind it, so no packing is needed.
            return self.lstm(frames_BTD)[0] * mask_BT[..., None] + frames_BTD
        if self.header == "seqTransf":
            positions_TD = self.position.weight[: frames_BTD.shape[1]]
            return self.temporal(frames_BTD + positions_TD, mask_BT) + frames_BTD
        return frames_BTD

    def similarity(self, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        """exp(logit_scale)·cosine, or the joint transformer's logits (tightTransf)."""
        if self.similarity_is_pairwise:
            return self.cross(text.parts["text"], video.parts["frames"], video.parts["frames_mask"])
        return self.scaled_products(text.parts["text"], video.parts["video"])

    def loss(self, text: TextEmbedding, video: VideoEmbedding) -> dict[str, Tensor]:
        if self.similarity_is_pairwise and self.contrastive.gather == "upstream":
            return {"loss": self.contrastive.local(self.similarity, text, video)}
        return super().loss(text, video)
