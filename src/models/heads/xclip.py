"""X-CLIP: sentence and words against video and frames, all four combinations.

Shape suffixes: B items, N captions, V videos, L words, T frames, X any of what is scored, D joint dimension.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.models.heads.base import Head, HeadHost, TextTokens, VideoTokens
from src.models.heads.order import Order, frame_order
from src.models.heads.tiling import Parts, tiled
from src.models.temporal import pool_frames


class XClipHead(Head):
    """Mean of four scores: sentence with video, words with video, sentence with frames, words with frames.

    Where a score has an axis of words or frames, these are added up with weights: softmax of the similarities at a low
    temperature, times a learned square matrix. The matrices start as the identity; their size is `model.max_words` or
    `model.num_frames`, so that a checkpoint fits these values only.

    Args:
        host: the model.
        order: layer that puts the frames in relation first; see `frame_order`.
        temporal_layers: of order seqTransf; see `frame_order`.
        padding: "masked" leaves padded words and frames out. "upstream" lets them take part in everything but the mean
            of the frames, as the released code does.
        temperature: of the softmax.

    Source: xuguohai/X-CLIP modules/modeling_xclip.py; arXiv 2207.07285, section 3.3.
    Deviates: `padding`.
    """

    reads_words = True
    pairwise = True

    def __init__(
        self,
        host: HeadHost,
        *,
        order: Order = "none",
        temporal_layers: int = 4,
        padding: Literal["masked", "upstream"] = "masked",
        temperature: float = 0.01,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"model.head.temperature={temperature}, expected more than 0")
        self.max_words, self.num_frames = host.max_words, host.num_frames
        self.order = frame_order(order, host, temporal_layers)
        self.reads_padding = padding == "upstream"
        self.temperature = temperature
        # Names as published.
        self.global_mat_weight, self.local_mat_weight = _eye(host.width), _eye(host.width)
        self.word_logit_weight, self.frame_logit_weight = _eye(host.max_words), _eye(host.num_frames)
        self.word_mat_weight, self.frame_mat_weight = _eye(host.max_words), _eye(host.num_frames)
        self.word_mat_weight2, self.frame_mat_weight2 = _eye(host.max_words), _eye(host.num_frames)

    def text_parts(self, text: TextTokens) -> dict[str, Tensor]:
        """Normalised "text" (B, D); "words" (B, L, D), 0 where they take no part; bool "words_mask" (B, L)."""
        if self.reads_padding:
            assert text.words_BLD is not None
            words_BLD, mask_BL = text.words_BLD, torch.ones_like(text.mask_BL)
        else:
            words_BLD, mask_BL = text.padded_words(self.max_words)
        words_BLD = F.normalize(words_BLD, dim=-1)
        return {"text": F.normalize(text.sentence_BD, dim=-1), "words": words_BLD, "words_mask": mask_BL}

    def video_parts(self, video: VideoTokens) -> dict[str, Tensor]:
        """Normalised "video" (B, D); "frames" (B, T, D), 0 where they take no part; bool "frames_mask" (B, T)."""
        frames_BTD, mask_BT = self.order(video.ordered_BTD, video.mask_BT), video.mask_BT
        if frames_BTD.shape[1] != self.num_frames:
            raise UserError(
                f"videos have {frames_BTD.shape[1]} frames, the matrices of the head are made for "
                f"model.num_frames={self.num_frames}; set it to the number of frames that the tower gives"
            )
        video_BD = pool_frames(frames_BTD, mask_BT)
        if self.reads_padding:
            mask_BT = torch.ones_like(mask_BT)
        frames_BTD = F.normalize(frames_BTD, dim=-1).masked_fill(~mask_BT[..., None], 0.0)
        return {"video": video_BD, "frames": frames_BTD, "frames_mask": mask_BT}

    def similarity(self, text: TextEmbedding, video: VideoEmbedding, logit_scale: Tensor) -> Tensor:
        texts = {
            **text.parts,
            "turned_text": text.parts["text"] @ self.global_mat_weight,
            "turned_words": text.parts["words"] @ self.local_mat_weight,
        }
        # The similarities of all words with all frames, their softmax and its product with a matrix.
        elements = 4 * self.max_words * self.num_frames
        return logit_scale.exp() * tiled(self.score, texts, video.parts, elements)

    def score(self, text: Parts, video: Parts) -> Tensor:
        """Mean (N, V) of the four scores."""
        words_NLD, frames_VTD = text["words"], video["frames"]
        sentence_video_NV = text["turned_text"] @ video["video"].T
        words_video_NLV = words_NLD @ video["video"].T
        sentence_frames_NVT = (text["text"] @ frames_VTD.flatten(0, 1).T).unflatten(1, frames_VTD.shape[:2])
        return (
            sentence_video_NV
            + self.add_words(words_video_NLV, text["words_mask"], self.word_logit_weight)
            + self.add_frames(sentence_frames_NVT, video["frames_mask"], self.frame_logit_weight)
            + self.score_words_frames(text, video)
        ) / 4

    def score_words_frames(self, text: Parts, video: Parts) -> Tensor:
        """Score (N, V) of words with frames: added up over words, then frames; and the other way round; the mean."""
        words_mask_NL, frames_mask_VT = text["words_mask"], video["frames_mask"]
        places = frames_mask_VT.shape
        s_NLX = text["turned_words"] @ video["frames"].flatten(0, 1).T  # X: the frames of all videos
        by_frame_NX = self.add_words(s_NLX, words_mask_NL, self.word_mat_weight)
        by_word_NLV = self.add_frames(s_NLX.unflatten(2, places), frames_mask_VT, self.frame_mat_weight)
        words_first_NV = self.add_frames(by_frame_NX.unflatten(1, places), frames_mask_VT, self.frame_mat_weight2)
        frames_first_NV = self.add_words(by_word_NLV, words_mask_NL, self.word_mat_weight2)
        return (words_first_NV + frames_first_NV) / 2

    def add_words(self, s_NLX: Tensor, mask_NL: Tensor, matrix_LL: Tensor) -> Tensor:
        """Σⱼ [softmax(s/temperature) W]ⱼ sⱼ over the words (N, X); words that take no part have similarity 0."""
        weights_NLX = torch.softmax(self.sharpened(s_NLX, mask_NL[..., None]), dim=1)
        return (matrix_LL.T @ weights_NLX * s_NLX).sum(1)

    def add_frames(self, s_NXT: Tensor, mask_XT: Tensor, matrix_TT: Tensor) -> Tensor:
        """The same over the frames (N, X)."""
        weights_NXT = torch.softmax(self.sharpened(s_NXT, mask_XT), dim=-1)
        return (weights_NXT @ matrix_TT * s_NXT).sum(-1)

    def sharpened(self, s: Tensor, mask: Tensor) -> Tensor:
        """What the softmax takes. Where nothing is valid its weights are equal, and all similarities 0."""
        return (s / self.temperature).masked_fill_(~mask, torch.finfo(s.dtype).min)


def _eye(size: int) -> nn.Parameter:
    return nn.Parameter(torch.eye(size))
