"""Weighted token interaction: as token interaction, with learned weights of words and frames.

Shape suffixes: B items, X words or frames, L words, T frames, D joint dimension.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.losses.gather import gather_embedding
from src.losses.infonce import SymmetricInfoNCE
from src.models.heads.base import HeadHost
from src.models.heads.cdcr import Tokens, decorrelation, draw
from src.models.heads.order import Order
from src.models.heads.ti import TokenInteractionHead, masked_softmax
from src.models.temporal import init_small


class WeightedTokenInteractionHead(TokenInteractionHead):
    """½ (Σ over words of weight · best frame's cosine + Σ over frames of weight · best word's cosine).

    The weights are a softmax over the tokens of an item, of a score that a small network gives to each token.

    Args:
        host: the model.
        arch: linear layers of that network (upstream `wti_arch`); between them D channels and ReLU.
        order: see `TokenInteractionHead`; DRL's is seqTransf.
        temporal_layers: see `TokenInteractionHead`.
        scale_evaluation: see `TokenInteractionHead`.
        cdcr: variant of the channel decorrelation that is added to the loss, 0 for none; see `decorrelation`.
        cdcr_lambda: its factor in the loss.
        cdcr_alpha1: see `decorrelation`: on_weight; DRL's scripts have 0.11 to 0.14 for it.
        cdcr_alpha2: see `decorrelation`: off_weight.

    Source: DRL (arXiv 2203.07111), section 3.3; InternVideo1 Downstream/Video-Text-Retrieval modules/modeling.py
        (flag `interaction` wti) @ 3965eef.
    Deviates: an empty caption or video scores 0, not NaN.
    """

    def __init__(
        self,
        host: HeadHost,
        *,
        arch: Literal[1, 2, 3] = 2,
        order: Order = "none",
        temporal_layers: int = 4,
        scale_evaluation: bool = True,
        cdcr: Literal[0, 1, 2, 3] = 0,
        cdcr_lambda: float = 0.001,
        cdcr_alpha1: float = 0.16,
        cdcr_alpha2: float = 0.0,
    ) -> None:
        super().__init__(host, order=order, temporal_layers=temporal_layers, scale_evaluation=scale_evaluation)
        if min(cdcr_lambda, cdcr_alpha1, cdcr_alpha2) < 0:
            raise UserError(
                f"model.head.cdcr_lambda={cdcr_lambda}, cdcr_alpha1={cdcr_alpha1}, cdcr_alpha2={cdcr_alpha2}, "
                "expected 0 or more each; use model.head.cdcr=0 to leave the term out"
            )
        self.cdcr = cdcr
        self.cdcr_lambda = cdcr_lambda
        self.cdcr_alphas = (cdcr_alpha1, cdcr_alpha2)
        self.word_score = token_score(host.width, arch)
        self.frame_score = token_score(host.width, arch)

    def weigh_words(self, words_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        return masked_softmax(self.word_score(words_BLD)[..., 0], mask_BL)

    def weigh_frames(self, frames_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        return masked_softmax(self.frame_score(frames_BTD)[..., 0], mask_BT)

    def loss(
        self, contrastive: SymmetricInfoNCE, text: TextEmbedding, video: VideoEmbedding, logit_scale: Tensor
    ) -> dict[str, Tensor]:
        """With `cdcr` also "contrastive" and "cdcr", whose weighted sum is "loss"."""
        losses = super().loss(contrastive, text, video, logit_scale)
        if self.cdcr == 0:
            return losses
        regulariser = self._decorrelation(contrastive, text, video)
        total = losses["loss"] + self.cdcr_lambda * regulariser
        return {"loss": total, "contrastive": losses["loss"], "cdcr": regulariser}

    def _decorrelation(self, contrastive: SymmetricInfoNCE, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        """Of the pairs of all processes, the same value on each."""
        words = {"x": text.parts["words"], "weights": text.parts["word_weights"], "mask": text.parts["words_mask"]}
        frames = {
            "x": video.parts["frames"],
            "weights": video.parts["frame_weights"],
            "mask": video.parts["frames_mask"],
        }
        if self.cdcr == 1:  # drawn where the items are, so that all processes see the same draw
            words["drawn"], frames["drawn"] = draw(words["mask"]), draw(frames["mask"])
        words = dict(gather_embedding(replace(text, parts=words), contrastive.gather).parts)
        frames = dict(gather_embedding(replace(video, parts=frames), contrastive.gather).parts)
        assert self.cdcr != 0
        return decorrelation(_tokens(words), _tokens(frames), self.cdcr, *self.cdcr_alphas)


def _tokens(parts: dict[str, Tensor]) -> Tokens:
    return Tokens(parts["x"], parts["weights"], parts["mask"], parts.get("drawn"))


def token_score(width: int, layers: int) -> nn.Module:
    """Network (B, X, D) -> (B, X, 1) of 1 to 3 linear layers; tensor names as published."""
    if layers == 1:
        network: nn.Module = nn.Linear(width, 1)
    else:
        hidden = [module for _ in range(layers - 1) for module in (nn.Linear(width, width), nn.ReLU(inplace=True))]
        network = nn.Sequential(*hidden, nn.Linear(width, 1))
    return network.apply(init_small)
