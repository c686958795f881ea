"""The mean of the frames against the sentence: no weights of its own.

Shape suffixes: B items, T frames, D joint dimension.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from src.batch import TextEmbedding, VideoEmbedding
from src.models.heads.base import Head, HeadHost, TextTokens, VideoTokens, scaled_cosines
from src.models.temporal import pool_frames


class MeanHead(Head):
    """Cosine of the sentence and the mean of the frames.

    Args:
        host: the model.
        normalise_frames: give all frames the same length before the mean, as CLIP4Clip does; InternVideo's copy of
            it does not.

    Source: CLIP4Clip modules/modeling.py _loose_similarity @ 508ffa3 (flag `sim_header` meanP).
    Deviates: a video without a valid frame gets the zero vector, not NaN.
    """

    reads_frames = False

    def __init__(self, host: HeadHost, normalise_frames: bool = True) -> None:
        super().__init__()
        self.normalise_frames = normalise_frames

    def text_parts(self, text: TextTokens) -> dict[str, Tensor]:
        """Part "text": normalised sentences (B, D)."""
        return {"text": F.normalize(text.sentence_BD, dim=-1)}

    def video_parts(self, video: VideoTokens) -> dict[str, Tensor]:
        """Part "video": normalised vectors (B, D)."""
        if video.pooled_BD is not None and not self.reads_frames:
            return {"video": F.normalize(video.pooled_BD, dim=-1)}
        return {"video": pool_frames(self.in_order(video), video.mask_BT, self.normalise_frames)}

    def in_order(self, video: VideoTokens) -> Tensor:
        """The frame vectors (B, T, D) that are averaged."""
        return video.ordered_BTD

    def similarity(self, text: TextEmbedding, video: VideoEmbedding, logit_scale: Tensor) -> Tensor:
        return scaled_cosines(text.parts["text"], video.parts["video"], logit_scale)
