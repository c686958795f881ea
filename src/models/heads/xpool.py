"""X-Pool: the caption attends to the frames, so that a video has another vector for every caption.

Shape suffixes: B items, N captions, V videos, T frames, D joint dimension, H attention heads, E = D/H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.models.heads.base import Head, HeadHost, TextTokens, VideoTokens
from src.models.heads.order import Order, frame_order
from src.models.heads.tiling import Parts, tiled


class XPoolHead(Head):
    """Cosine of the sentence and the frames that it pools by attention.

    All matrices start as the identity, so that training starts near the mean of the frames.

    Args:
        host: the model.
        attention_heads: H; 1 as published.
        order: layer that puts the frames in relation first, none as published; see `frame_order`.
        temporal_layers: of order seqTransf; see `frame_order`.
        dropout: on the feed-forward branch, in training only.

    Raises:
        UserError: the joint dimension is no multiple of `attention_heads`.

    Source: layer6ai-labs/xpool modules/transformer.py; arXiv 2203.15086, section 3.3.
    Deviates: padded frames are masked (X-Pool's loader has none); a video without a valid frame is the zero vector
        before the output projection.
    """

    pairwise = True

    def __init__(
        self,
        host: HeadHost,
        *,
        attention_heads: int = 1,
        dropout: float = 0.3,
        order: Order = "none",
        temporal_layers: int = 4,
    ) -> None:
        super().__init__()
        width = host.width
        if attention_heads < 1 or width % attention_heads:
            raise UserError(
                f"model.head.attention_heads={attention_heads} does not divide the joint dimension {width} of "
                f"{host.tower.arch}; choose a divisor of it"
            )
        self.attention_heads = attention_heads
        self.norm_in = nn.LayerNorm(width)
        self.norm_pooled = nn.LayerNorm(width)
        self.norm_out = nn.LayerNorm(width)
        self.query, self.key, self.value, self.mixed, self.feed_forward = (identity(width) for _ in range(5))
        self.dropout = nn.Dropout(dropout)
        self.order = frame_order(order, host, temporal_layers)

    def text_parts(self, text: TextTokens) -> dict[str, Tensor]:
        """Part "text": sentence vectors (B, D), not normalised."""
        return {"text": text.sentence_BD}

    def video_parts(self, video: VideoTokens) -> dict[str, Tensor]:
        """Frames (B, T, D), not normalised, and bool "frames_mask" (B, T)."""
        return {"frames": self.order(video.ordered_BTD, video.mask_BT), "frames_mask": video.mask_BT}

    def similarity(self, text: TextEmbedding, video: VideoEmbedding, logit_scale: Tensor) -> Tensor:
        sentences_ND, frames_VTD = text.parts["text"], video.parts["frames"]
        normed_VTD = self.norm_in(frames_VTD)
        texts = {"text": F.normalize(sentences_ND, dim=-1), "query": self.query(self.norm_in(sentences_ND))}
        videos = {"key": self.key(normed_VTD), "value": self.value(normed_VTD), "mask": video.parts["frames_mask"]}
        return logit_scale.exp() * tiled(self.score, texts, videos, self.pair_elements(frames_VTD))

    def pair_elements(self, frames_VTD: Tensor) -> int:
        """Numbers that `score` holds for one pair: results of D channels, and the attention."""
        time, width = frames_VTD.shape[1:]
        return 6 * width + 3 * self.attention_heads * time

    def score(self, text: Parts, video: Parts) -> Tensor:
        """Cosines (N, V) from queries, keys and values."""
        pooled_VND = self.pool(text["query"], video["key"], video["value"], video["mask"])
        return torch.einsum("vnd,nd->nv", F.normalize(pooled_VND, dim=-1), text["text"])

    def pool(self, query_ND: Tensor, key_VTD: Tensor, value_VTD: Tensor, mask_VT: Tensor) -> Tensor:
        """Vectors (V, N, D) of every video in the view of every caption."""
        heads = self.attention_heads
        query_HNE = query_ND.unflatten(-1, (heads, -1)).transpose(0, 1)
        key_VHET = key_VTD.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1)
        logits_VHNT = query_HNE / query_HNE.shape[-1] ** 0.5 @ key_VHET
        mask_V11T = mask_VT[:, None, None]
        attention_VHNT = torch.softmax(logits_VHNT.masked_fill(~mask_V11T, torch.finfo(logits_VHNT.dtype).min), dim=-1)
        attention_VHNT = attention_VHNT.masked_fill(~mask_V11T, 0.0)
        # The output projection is linear: of the frames of each head it costs V·H·T·D², of the pooled ones N·V·D².
        value_VTHE, mixed_DHE = value_VTD.unflatten(-1, (heads, -1)), self.mixed.weight.unflatten(-1, (heads, -1))
        value_VHTD = torch.einsum("vthe,dhe->vhtd", value_VTHE, mixed_DHE)
        mixed_VND = attention_VHNT.transpose(1, 2).flatten(2) @ value_VHTD.flatten(1, 2)
        pooled_VND = self.norm_pooled(mixed_VND + self.mixed.bias)
        return self.norm_out(pooled_VND + self.dropout(self.feed_forward(pooled_VND)))


def identity(width: int) -> nn.Linear:
    """A linear layer that starts as the identity."""
    layer = nn.Linear(width, width)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
