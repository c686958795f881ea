"""Experts of a video side by side, against the caption's vector: the baseline of Collaborative Experts.

Shape suffixes: T captions, V videos, D dimension of the comparison.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.batch import InputSpec, TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.losses.max_margin import MaxMarginLoss
from src.models.base import RetrievalModule
from src.models.expert_pooling import TEXT, CaptionPooling, ExpertPooling
from src.models.gating import GatedEmbedding


class ConcatExperts(RetrievalModule):
    """Inner product of all pooled experts side by side and the pooled caption, the shorter one filled up with zeros.

    Args:
        experts: see `CollaborativeExperts`, as all that are not listed here.
        text: likewise.
        vlad_clusters: likewise.
        max_tokens: likewise.
        text_ghost_clusters: likewise.
        mix: one gated embedding on each side (of the sum of the experts' dimensions) instead of zeros.
        upstream_bug: where the caption's vector is the longer one, videos are all zeros, so that every score is 0: the
            published numbers of MSR-VTT.
        margin: of the loss.
        fix_norm: see `MaxMarginLoss`.
        gather: see `RetrievalModule`.

    Source: albanie/collaborative-experts model/model.py (concat_experts, concat_mix_experts) @ 7eb3b9d.
    Deviates: upstream_bug=false.
    """

    def __init__(
        self,
        *,
        experts: dict[str, dict[str, Any]],
        text: dict[str, Any],
        vlad_clusters: dict[str, int],
        max_tokens: dict[str, int],
        text_ghost_clusters: int = 0,
        mix: bool = False,
        upstream_bug: bool = False,
        margin: float = 0.2,
        fix_norm: bool = True,
        gather: Literal["exact", "upstream"] = "exact",
    ) -> None:
        super().__init__(gather=gather)
        self.pooling = ExpertPooling(experts, vlad_clusters, max_tokens)
        self.text_pooling = CaptionPooling(
            text,
            "vlad",
            clusters=vlad_clusters.get(TEXT, 0),
            ghost_clusters=text_ghost_clusters,
            max_tokens=max_tokens.get(TEXT),
        )
        video_dim, text_dim = sum(self.pooling.output_dims), self.text_pooling.output_dim
        # Published counts include these weights of the experts, which nothing uses.
        self.mixture = nn.Linear(text_dim, len(self.pooling.specs))
        self._ddp_params_and_buffers_to_ignore = ["mixture.weight", "mixture.bias"]
        dim = sum(spec.dim for spec in self.pooling.specs) if mix else max(video_dim, text_dim)
        self.zero_videos = upstream_bug and not mix and text_dim > video_dim
        self.dim = dim
        self.video_gates = nn.ModuleList([GatedEmbedding(video_dim, dim)] if mix else [])
        self.text_gates = nn.ModuleList([GatedEmbedding(text_dim, dim)] if mix else [])
        self.max_margin = MaxMarginLoss(margin, fix_norm, gather)

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec(None, experts=self.pooling.specs, text_features=(self.text_pooling.spec,))

    def encode_text(self, batch: TextBatch) -> TextEmbedding:
        """Part "experts" (T, D)."""
        text_TD = _resized(self.text_pooling(batch), self.text_gates, self.dim)
        return TextEmbedding(ids=batch.ids, parts={"experts": text_TD}, video_ids=batch.video_ids)

    def encode_video(self, batch: VideoBatch) -> VideoEmbedding:
        """Part "experts" (V, D)."""
        pooled, _ = self.pooling(batch)
        video_VD = _resized(torch.cat(pooled, 1), self.video_gates, self.dim)
        if self.zero_videos:
            video_VD = video_VD * 0.0
        return VideoEmbedding(ids=batch.ids, parts={"experts": video_VD})

    def similarity(self, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        return text.parts["experts"] @ video.parts["experts"].T

    def loss(self, text: TextEmbedding, video: VideoEmbedding) -> dict[str, Tensor]:
        return {"loss": self.max_margin(self.similarity, text, video)}


def _resized(x: Tensor, gates: nn.ModuleList, dim: int) -> Tensor:
    for gate in gates:
        x = gate(x)
    return F.pad(x, (0, dim - x.shape[1]))
