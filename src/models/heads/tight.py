"""A joint transformer that reads the caption and the frames of every pair.

Shape suffixes: B items, T frames, D joint dimension, N captions, V videos, P (caption, video) pairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.losses.infonce import SymmetricInfoNCE
from src.models.heads.base import Head, HeadHost, TextTokens, VideoTokens
from src.models.heads.tiling import Parts, tiled
from src.models.temporal import init_small, quick_gelu

_VECTORS_PER_TOKEN = 8
"""Of width D, in one block of the transformer at its peak: the token, its 4 D hidden units, query, key and value."""


class TightTransfHead(Head):
    """Logit of a transformer over [caption, frame 1 … frame T], for one pair after the other.

    Args:
        host: the model.
        temporal_layers: blocks of the transformer (upstream `cross_num_hidden_layers`).
        dropout: after adding positions.

    Source: CLIP4Clip modules/modeling.py _cross_similarity and module_cross.py @ 508ffa3 (flag `sim_header`
        tightTransf); as there, `gather: upstream` takes the loss over the local batch only.
    """

    pairwise = True

    def __init__(self, host: HeadHost, temporal_layers: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        if temporal_layers < 1:
            raise UserError(f"model.head.temporal_layers={temporal_layers}, expected at least 1")
        self.transformer = host.temporal_transformer(temporal_layers)
        self.position = host.position_table(host.num_frames + 1)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(host.width, eps=1e-12)
        self.dense = nn.Linear(host.width, host.width)
        self.score = nn.Linear(host.width, 1)
        self.dense.apply(init_small)
        self.score.apply(init_small)
        host.start_from_text_tower([self.position], [self.transformer])
        host.tower.freeze_logit_scale()  # the transformer gives logits directly

    def text_parts(self, text: TextTokens) -> dict[str, Tensor]:
        """Part "text": sentences (B, D)."""
        return {"text": text.sentence_BD}

    def video_parts(self, video: VideoTokens) -> dict[str, Tensor]:
        """Parts "frames" (B, T, D) and "frames_mask" (B, T)."""
        return {"frames": video.ordered_BTD, "frames_mask": video.mask_BT}

    def similarity(self, text: TextEmbedding, video: VideoEmbedding, logit_scale: Tensor) -> Tensor:
        tokens, width = video.parts["frames"].shape[1] + 1, video.parts["frames"].shape[2]
        kept_blocks = len(self.transformer.resblocks) if torch.is_grad_enabled() else 1
        return tiled(self._tile, text.parts, video.parts, tokens * width * _VECTORS_PER_TOKEN * kept_blocks)

    def _tile(self, text: Parts, video: Parts) -> Tensor:
        """Logits (N, V); the caption takes position 0."""
        text_ND, frames_VTD, mask_VT = text["text"], video["frames"], video["frames_mask"]
        n, (v, t, d) = len(text_ND), frames_VTD.shape
        text_NV1D = text_ND[:, None, None].expand(n, v, 1, d)
        tokens_PTD = torch.cat([text_NV1D, frames_VTD.expand(n, v, t, d)], dim=2).reshape(n * v, t + 1, d)
        mask_PT = F.pad(mask_VT, (1, 0), value=True).expand(n, v, t + 1).reshape(n * v, t + 1)
        tokens_PTD = self.dropout(tokens_PTD + self.position.weight[: t + 1])
        pooled_PD = self.norm(self.transformer(tokens_PTD, mask_PT)[:, 0])
        return self.score(quick_gelu(self.dense(pooled_PD))).view(n, v)

    def loss(
        self, contrastive: SymmetricInfoNCE, text: TextEmbedding, video: VideoEmbedding, logit_scale: Tensor
    ) -> dict[str, Tensor]:
        if contrastive.gather == "upstream":
            return {"loss": contrastive.local(lambda t, v: self.similarity(t, v, logit_scale), text, video)}
        return super().loss(contrastive, text, video, logit_scale)
