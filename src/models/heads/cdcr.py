"""Channel decorrelation: matched words and frames shall agree in every channel.

Shape suffixes: B pairs, L words, T frames, X tokens of one modality, Y of the other, D joint dimension, M valid tokens.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Variant = Literal[1, 2, 3]

SMALLEST_VARIANCE = 1e-24
"""A channel that is the same in all tokens becomes 0 when standardised."""


class Tokens(NamedTuple):
    """One modality of a batch of pairs.

    Attributes:
        x_BXD: normalised vectors, 0 on padding.
        weights_BX: 0 on padding, of sum 1.
        mask_BX: bool.
        drawn_B: int64, one valid token of each item, read by variant 1.
    """

    x_BXD: Tensor
    weights_BX: Tensor
    mask_BX: Tensor
    drawn_B: Tensor | None = None


def decorrelation(
    words: Tokens, frames: Tokens, variant: Variant, on_weight: float = 0.16, off_weight: float = 0.0
) -> Tensor:
    """on_weight · Σᵢ (Cᵢᵢ − 1)² + off_weight · Σᵢ≠ⱼ Cᵢⱼ², with the correlation C of channels over matched tokens.

    Args:
        words: row i describes row i of `frames`.
        frames: the videos.
        variant: what is matched. 3: each word with the best frame of its video and each frame with the best word of
            its caption, by the tokens' weights; 2: the same, all tokens alike; 1: one drawn word with one drawn frame.
        on_weight: upstream `cdcr_alpha1`.
        off_weight: upstream `cdcr_alpha2`.

    Source: DRL (arXiv 2203.07111), section 3.4; InternVideo1 Downstream/Video-Text-Retrieval modules/modeling.py
        @ 3965eef.
    Deviates: a token's best partner is always a valid one (published: padding, where all cosines are negative); pairs
        without a valid word or frame do not take part.
    """
    if variant == 1:
        c_DD = _of_drawn_tokens(words, frames)
    else:
        c_DD = (_of_best_partners(words, frames, variant) + _of_best_partners(frames, words, variant)) / 2
    on_D = c_DD.diagonal()
    off = c_DD.square().sum() - on_D.square().sum()
    return on_weight * (on_D - 1).square().sum() + off_weight * off


def draw(mask_BX: Tensor) -> Tensor:
    """Position of one valid token of each item, int64 (B,); 0 where there is none."""
    return (torch.rand(mask_BX.shape, device=mask_BX.device) * mask_BX).argmax(dim=1)


def _of_best_partners(tokens: Tokens, others: Tokens, variant: Variant) -> Tensor:
    """C (D, D) over all valid tokens and the token of the other modality that each resembles most."""
    s_BXY = tokens.x_BXD @ others.x_BXD.transpose(1, 2)
    best_BX = s_BXY.masked_fill(~others.mask_BX[:, None], float("-inf")).argmax(dim=2)
    partners_BXD = others.x_BXD.gather(1, best_BX[..., None].expand_as(tokens.x_BXD))
    valid_BX = tokens.mask_BX & others.mask_BX.any(dim=1, keepdim=True)
    a_MD, b_MD = standardised(tokens.x_BXD[valid_BX]), standardised(partners_BXD[valid_BX])
    if variant == 2:
        return a_MD.T @ b_MD / max(len(a_MD), 1)
    return (a_MD * tokens.weights_BX[valid_BX][:, None]).T @ b_MD / max(len(valid_BX), 1)


def _of_drawn_tokens(words: Tokens, frames: Tokens) -> Tensor:
    assert words.drawn_B is not None
    assert frames.drawn_B is not None
    valid_B = words.mask_BX.any(dim=1) & frames.mask_BX.any(dim=1)
    rows_B = torch.arange(len(valid_B), device=valid_B.device)
    a_MD = standardised(words.x_BXD[rows_B, words.drawn_B][valid_B])
    b_MD = standardised(frames.x_BXD[rows_B, frames.drawn_B][valid_B])
    return a_MD.T @ b_MD / max(len(a_MD), 1)


def standardised(x_MD: Tensor) -> Tensor:
    """Each channel with mean 0 and (unbiased) variance 1 over the M tokens."""
    centred_MD = x_MD - x_MD.sum(0) / max(len(x_MD), 1)
    variance_D = centred_MD.square().sum(0) / max(len(x_MD) - 1, 1)
    return centred_MD / variance_D.clamp_min(SMALLEST_VARIANCE).sqrt()
