"""Two branches: the mean of the frames against the sentence, and words against frames by centres that they share.

Shape suffixes: B items, T frames, L words, X tokens of one modality, K centres, D joint dimension.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.losses.infonce import SymmetricInfoNCE
from src.models.heads.base import Head, HeadHost, TextTokens, VideoTokens, scaled_cosines
from src.models.temporal import pool_frames

CENTRE_STD = 1 / 8


class TabHead(Head):
    """Temporal Alignment Block: words and frames are described by their residuals to shared centres.

    Args:
        host: the model.
        num_centers: shared centres K (upstream `centerK`; 7 published for VATEX).
        global_weight: weight of the global branch in loss and score, the rest goes to the aligned
            branch (upstream `center_weight`).

    Raises:
        UserError: an option out of its range.

    Source: CLIP2Video modules/modeling.py @ e941318, temporal_alignment_block (a NetVLAD whose clusters
        are averaged, not concatenated); flag `center_type` TAB.
    """

    reads_words = True
    reads_extra = True

    def __init__(self, host: HeadHost, num_centers: int = 5, global_weight: float = 0.5) -> None:
        super().__init__()
        if not 0 <= global_weight <= 1:
            raise UserError(f"model.head.global_weight={global_weight}, expected 0 to 1")
        if num_centers < 1:
            raise UserError(f"model.head.num_centers={num_centers}, expected at least 1")
        self.global_weight = global_weight
        self.assignment = nn.Parameter(torch.randn(num_centers, host.width) * CENTRE_STD)
        self.residual = nn.Parameter(torch.randn(num_centers, host.width) * CENTRE_STD)

    def text_parts(self, text: TextTokens) -> dict[str, Tensor]:
        """Parts "global" and "aligned": normalised vectors (B, D)."""
        assert text.words_BLD is not None
        words_mask_BL = text.mask_BL.clone()
        words_mask_BL[:, 0] = False  # the start token says nothing
        return {
            "global": F.normalize(text.sentence_BD, dim=-1),
            "aligned": self.describe(text.words_BLD, words_mask_BL),
        }

    def video_parts(self, video: VideoTokens) -> dict[str, Tensor]:
        """Parts "global" and "aligned": normalised vectors (B, D)."""
        return {
            "global": pool_frames(video.ordered_BTD, video.mask_BT),
            "aligned": self.describe(*tokens_to_align(video)),
        }

    def describe(self, x_BXD: Tensor, mask_BX: Tensor) -> Tensor:
        """Normalised vectors (B, D) of a set of tokens; the zero vector for an empty set."""
        weights_BXK = torch.softmax(x_BXD @ self.assignment.T, dim=-1) * mask_BX[..., None]
        # Σₙ aₙₖ (xₙ − mₖ) without the (B, X, K, D) tensor.
        residual_BKD = weights_BXK.transpose(1, 2) @ x_BXD - weights_BXK.sum(1)[..., None] * self.residual
        return F.normalize(F.normalize(residual_BKD, dim=-1).mean(1), dim=-1)

    def branch(self, name: str, text: TextEmbedding, video: VideoEmbedding, logit_scale: Tensor) -> Tensor:
        """Scores (N, V) of the branch "global" or "aligned"."""
        return scaled_cosines(text.parts[name], video.parts[name], logit_scale)

    def similarity(self, text: TextEmbedding, video: VideoEmbedding, logit_scale: Tensor) -> Tensor:
        """Weighted mean of both branches."""
        weight = self.global_weight
        together = self.branch("global", text, video, logit_scale)
        return weight * together + (1 - weight) * self.branch("aligned", text, video, logit_scale)

    def loss(
        self, contrastive: SymmetricInfoNCE, text: TextEmbedding, video: VideoEmbedding, logit_scale: Tensor
    ) -> dict[str, Tensor]:
        """Weighted sum of two separate losses, not the loss of the weighted score."""
        names = ("global", "aligned")
        branches = {name: partial(self.branch, name, logit_scale=logit_scale) for name in names}
        losses = contrastive.each(branches, text, video)
        total = self.global_weight * losses["global"] + (1 - self.global_weight) * losses["aligned"]
        return {"loss": total, **losses}


def tokens_to_align(video: VideoTokens) -> tuple[Tensor, Tensor]:
    """Frames, and the further tokens where the model has some: (B, X, D) and their bool mask (B, X)."""
    if video.extra_BXD is None or video.extra_mask_BX is None:
        return video.frames_BTD, video.mask_BT
    tokens_BXD = torch.cat([video.frames_BTD, video.extra_BXD], dim=1)
    return tokens_BXD, torch.cat([video.mask_BT, video.extra_mask_BX], dim=1)
