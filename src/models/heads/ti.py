"""Token interaction: every word meets every frame, and the best partner of each counts.

Shape suffixes: B items, N captions, V videos, L words, T frames, X words or frames, D joint dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from src.batch import TextEmbedding, VideoEmbedding
from src.models.heads.base import Head, HeadHost, TextTokens, VideoTokens
from src.models.heads.order import Order, frame_order
from src.models.heads.tiling import Parts, tiled


class TokenInteractionHead(Head):
    """½ (mean over words of the best frame's cosine + mean over frames of the best word's cosine).

    A masked word or frame has cosine 0 with everything, so that a pair of tokens with a negative one loses against
    padding. Captions are therefore always padded to the host's `max_words`.

    Args:
        host: the model.
        order: layer that puts the frames in relation first; see `frame_order`.
        temporal_layers: of order seqTransf; see `frame_order`.
        scale_evaluation: multiply by exp(logit_scale) outside training too. False: plain cosines there, as published,
            on which a dual softmax of temperature 1 does next to nothing.

    Source: InternVideo1 Downstream/Video-Text-Retrieval modules/modeling.py (flag `interaction` ti) @ 3965eef; DRL
        (arXiv 2203.07111), equations 4 and 5 without weights.
    Deviates: an empty caption or video scores 0, not NaN.
    """

    reads_words = True
    reads_sentence = False

    def __init__(
        self, host: HeadHost, *, order: Order = "none", temporal_layers: int = 4, scale_evaluation: bool = True
    ) -> None:
        super().__init__()
        self.order = frame_order(order, host, temporal_layers)
        self.max_words = host.max_words
        self.scale_evaluation = scale_evaluation

    def text_parts(self, text: TextTokens) -> dict[str, Tensor]:
        """Normalised "words" (B, L, D), 0 on padding; "word_weights" (B, L), of sum 1; bool "words_mask" (B, L)."""
        words_BLD, mask_BL = text.padded_words(self.max_words)
        weights_BL = self.weigh_words(words_BLD, mask_BL)
        return {"words": F.normalize(words_BLD, dim=-1), "word_weights": weights_BL, "words_mask": mask_BL}

    def video_parts(self, video: VideoTokens) -> dict[str, Tensor]:
        """Normalised "frames" (B, T, D), 0 on padding; "frame_weights" (B, T), of sum 1; bool "frames_mask" (B, T)."""
        mask_BT = video.mask_BT
        frames_BTD = self.order(video.ordered_BTD, mask_BT).masked_fill(~mask_BT[..., None], 0.0)
        weights_BT = self.weigh_frames(frames_BTD, mask_BT)
        return {"frames": F.normalize(frames_BTD, dim=-1), "frame_weights": weights_BT, "frames_mask": mask_BT}

    def weigh_words(self, words_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """How much each word counts: 0 on padding, sum 1."""
        return masked_softmax(words_BLD.new_zeros(mask_BL.shape), mask_BL)

    def weigh_frames(self, frames_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """How much each frame counts: 0 on padding, sum 1."""
        return masked_softmax(frames_BTD.new_zeros(mask_BT.shape), mask_BT)

    def similarity(self, text: TextEmbedding, video: VideoEmbedding, logit_scale: Tensor) -> Tensor:
        s_NV = tiled(interact, text.parts, video.parts, pair_elements(text.parts, video.parts))
        return logit_scale.exp() * s_NV if self.training or self.scale_evaluation else s_NV


def masked_softmax(x_BX: Tensor, mask_BX: Tensor) -> Tensor:
    """Softmax over the valid entries of the last dimension, 0 elsewhere; all 0 where no entry is valid."""
    weights_BX = torch.softmax(x_BX.masked_fill(~mask_BX, torch.finfo(x_BX.dtype).min), dim=-1)
    return weights_BX.masked_fill(~mask_BX, 0.0)


def pair_elements(text: Parts, video: Parts) -> int:
    """Numbers that `interact` holds for one pair."""
    length, time = text["words"].shape[1], video["frames"].shape[1]
    return length * time + 2 * (length + time)


def interact(text: Parts, video: Parts) -> Tensor:
    """Scores (N, V) of tokens that are normalised and 0 on padding."""
    words_NLD, frames_VTD = text["words"], video["frames"]
    (n, length, _), (v, time, _) = words_NLD.shape, frames_VTD.shape
    s_NLVT = (words_NLD.flatten(0, 1) @ frames_VTD.flatten(0, 1).T).view(n, length, v, time)
    # `max`, not `amax`: among equals one token takes the whole gradient, as published.
    by_word_NV = (s_NLVT.max(dim=3).values * text["word_weights"][:, :, None]).sum(1)
    by_frame_NV = (s_NLVT.max(dim=1).values * video["frame_weights"]).sum(2)
    return (by_word_NV + by_frame_NV) / 2
