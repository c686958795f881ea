"""`model.ocr=true`: the words in the picture for any model of the CLIP family, whatever its tower and head.

The words are encoded by the caption encoder of the model itself, pooled by the attention of TextVR with the picture in
view, and added to every token of the video. Why so:

* The caption encoder needs no further weights, reads the same sub-words as captions, and where it is a pretrained CLIP
  its vector of a word is comparable with captions that mention the word, before any training. A small encoder of its
  own would be cheaper and learn this from nothing.
* Tokens are what every head reads, so each of them benefits, its embeddings keep their size, and search, indexes and
  re-scoring work as they are. A term of its own beside the head's score would need the vectors of 200 words for every
  video of a gallery.

The sum starts as plus zero: the last layer's weights are zeros, so a checkpoint without this branch keeps its numbers
until it is trained. A video without words always gets exactly zero.

Shape suffixes: B items, N words to encode, L pieces of a word, T frames, X extra tokens, D joint dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from src.batch import WordBatch
from src.models.heads.base import VideoTokens
from src.models.ocr_fusion import OcrFusion

Encode = Callable[[Tensor, Tensor], Tensor]


class TowerWords(nn.Module):
    """The model's caption encoder as encoder of words; it holds no weights, so none is listed twice.

    Args:
        encode: called with int64 tokens_NL and bool mask_NL, returns (N, D).
    """

    def __init__(self, encode: Encode) -> None:
        super().__init__()
        self.encode = encode

    def forward(self, tokens_NL: Tensor, mask_NL: Tensor) -> Tensor:
        return self.encode(tokens_NL, mask_NL)


class ClipOcr(nn.Module):
    """Adds what is written in a video to its tokens.

    Distinct words of a batch are encoded once, 1024 at a time, and their activations are computed again in the backward
    pass: 200 words of each video cost time, and the memory of one such piece.

    Args:
        encode: see `TowerWords`.
        width: D.
        heads: of the attention over words; divides the width.

    Deviates: from TextVR, whose attention this is: the values start as the words themselves, since they are in the
        space of captions already, and the result is added to the video's tokens, not compared with captions.
    """

    def __init__(self, encode: Encode, width: int, heads: int) -> None:
        super().__init__()
        self.fusion = OcrFusion(
            TowerWords(encode), width, None, num_heads=heads, activation_checkpointing=True, share_words=True
        )
        nn.init.eye_(self.fusion.fusion_model.value.weight)
        nn.init.zeros_(self.fusion.fusion_model.value.bias)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, video: VideoTokens, words: WordBatch) -> VideoTokens:
        """The tokens of videos, which know now what is written in them; padding stays as it was."""
        collected_BD = self.fusion(words, picture(video))
        with torch.autocast(collected_BD.device.type, enabled=False):
            read_BD = self.out(self.norm(collected_BD.to(self.norm.weight.dtype)))
            return _plus(video, read_BD * (words.words_BW.any(dim=1) & video.mask_BT.any(dim=1))[:, None])


def picture(video: VideoTokens) -> Tensor:
    """One vector per video (B, D): the tower's, or the mean of the valid frames; zeros where there are none."""
    if video.pooled_BD is not None:
        return video.pooled_BD
    weights_BT1 = video.mask_BT[..., None].to(video.ordered_BTD.dtype)
    return (video.ordered_BTD * weights_BT1).sum(dim=1) / weights_BT1.sum(dim=1).clamp(min=1)


def _plus(video: VideoTokens, read_BD: Tensor) -> VideoTokens:
    read_BTD = read_BD[:, None] * video.mask_BT[..., None]
    frames_BTD = video.frames_BTD + read_BTD
    changed = replace(video, frames_BTD=frames_BTD, ordered_BTD=video.ordered_BTD + read_BTD)
    if video.pooled_BD is not None:
        changed = replace(changed, pooled_BD=video.pooled_BD + read_BD)
    if video.extra_BXD is not None and video.extra_mask_BX is not None:
        changed = replace(changed, extra_BXD=video.extra_BXD + read_BD[:, None] * video.extra_mask_BX[..., None])
    return changed
