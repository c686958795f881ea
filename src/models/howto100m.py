"""MIL-NCE features of HowTo100M without training: S3D vectors of videos against those of its text tower.

Shape suffixes: T captions, V videos, L words, D dimension of the comparison.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from src.batch import InputSpec, TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.errors import UserError
from src.losses.max_margin import MaxMarginLoss
from src.models.base import RetrievalModule
from src.models.expert_pooling import CaptionPooling, ExpertPooling
from src.models.weights import load_strictly, read_state_dict

MAX_WORDS = 16
PREFIX = "text_module."
"""What precedes the text tower's tensors in the published file, which holds the video tower too."""


class WordIds:
    """Captions to the ids of their first 16 known words; id 0 is padding, the first word of the list is 1.

    Args:
        words: the vocabulary in its order.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.ids = {word: index + 1 for index, word in enumerate(words)}
        self.fingerprint = "howto100m:" + hashlib.sha256("\n".join(words).encode()).hexdigest()

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """int64 tokens_TL and bool mask_TL."""
        tokens_TL = torch.zeros(len(captions), MAX_WORDS, dtype=torch.int64)
        for row, caption in zip(tokens_TL, captions, strict=True):
            found = [self.ids[word] for word in re.findall(r"[\w']+", caption.lower()) if word in self.ids]
            row[: len(found[:MAX_WORDS])] = torch.tensor(found[:MAX_WORDS], dtype=torch.int64)
        return tokens_TL, tokens_TL > 0


class TextTower(nn.Module):
    """Word vectors, a layer for each word, the maximum over all 16 places, padding included, and a last layer.

    Args:
        num_words: words of the vocabulary.
        dim: length of the result.
        word_dim: length of a word's vector.
        hidden_dim: length of the maximum.

    Source: antoine77340/S3D_HowTo100M s3dg.py Sentence_Embedding (arXiv 1912.06430).
    """

    def __init__(self, num_words: int, dim: int = 512, word_dim: int = 300, hidden_dim: int = 2048) -> None:
        super().__init__()
        self.word_embd = nn.Embedding(num_words + 1, word_dim)
        self.fc1 = nn.Linear(word_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens_TL: Tensor) -> Tensor:
        """int64 ids (T, 16) to (T, D)."""
        if tokens_TL.shape[1] < MAX_WORDS:  # the maximum is over padding too
            tokens_TL = nn.functional.pad(tokens_TL, (0, MAX_WORDS - tokens_TL.shape[1]))
        return self.fc2(self.fc1(self.word_embd(tokens_TL)).relu().amax(1))


class HowTo100M(RetrievalModule):
    """Inner product of S3D and text vectors as they are (`MNNet`).

    Args:
        experts: one entry of conf/experts: the S3D vectors.
        text: the entry of conf/text with the tower's vectors of the captions; not read when `vocabulary` is given.
        vocabulary: .npy file with the words of the text tower (s3d_dict.npy): captions are encoded here.
        pretrained: file with the tower's weights (s3d_howto100m.pth), which are not trained.
        margin: of the loss.
        fix_norm: see `MaxMarginLoss`.
        gather: see `RetrievalModule`.

    Source: albanie/collaborative-experts model/model.py MNNet @ 7eb3b9d, whose only parameter, a number that is added
        to all videos, gives an optimiser something to hold.
    """

    def __init__(
        self,
        *,
        experts: dict[str, dict[str, Any]],
        text: dict[str, Any],
        vocabulary: str | None = None,
        pretrained: str | None = None,
        margin: float = 0.2,
        fix_norm: bool = True,
        gather: Literal["exact", "upstream"] = "exact",
    ) -> None:
        super().__init__(gather=gather)
        if len(experts) != 1 or any(entry.get("temporal") for entry in experts.values()):
            raise UserError(
                f"found the experts {', '.join(experts) or 'none'}, expected one with a single vector a video; choose "
                "the S3D features, such as experts=s3dg_logits"
            )
        self.pooling = ExpertPooling(experts, {}, {})
        dim = self.pooling.output_dims[0]
        self.tokenizer = WordIds(_read_words(vocabulary)) if vocabulary is not None else None
        self.text_side: TextTower | CaptionPooling
        if self.tokenizer is not None:
            self.text_side = _tower(self.tokenizer, dim, pretrained)
        else:
            self.text_side = CaptionPooling(text, "mean", clusters=0)
            if self.text_side.output_dim != dim:
                raise UserError(
                    f"captions have {self.text_side.output_dim} dimensions and videos {dim}, expected the same; "
                    "choose text=howto100m and the S3D features that belong to it"
                )
        self.dummy = nn.Parameter(torch.full((1,), 1e-5))
        self.max_margin = MaxMarginLoss(margin, fix_norm, gather)

    @property
    def input_spec(self) -> InputSpec:
        text_features = (self.text_side.spec,) if isinstance(self.text_side, CaptionPooling) else ()
        return InputSpec(self.tokenizer, experts=self.pooling.specs, text_features=text_features)

    def encode_text(self, batch: TextBatch) -> TextEmbedding:
        """Part "x" (T, D)."""
        text_TD = self.text_side(batch.tokens_BL if isinstance(self.text_side, TextTower) else batch)
        return TextEmbedding(ids=batch.ids, parts={"x": text_TD}, video_ids=batch.video_ids)

    def encode_video(self, batch: VideoBatch) -> VideoEmbedding:
        """Part "x" (V, D)."""
        (video_VD,), _ = self.pooling(batch)
        return VideoEmbedding(ids=batch.ids, parts={"x": video_VD + self.dummy})

    def similarity(self, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        return text.parts["x"] @ video.parts["x"].T

    def loss(self, text: TextEmbedding, video: VideoEmbedding) -> dict[str, Tensor]:
        return {"loss": self.max_margin(self.similarity, text, video)}


def _read_words(path: str) -> list[str]:
    try:
        words = np.load(Path(path).expanduser(), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the words of the text tower from {path} ({error}); give s3d_dict.npy") from None
    return [str(word) for word in words]


def _tower(tokenizer: WordIds, dim: int, pretrained: str | None) -> TextTower:
    """The frozen tower, with the tensors of the file that belong to it."""
    tower = TextTower(len(tokenizer.ids), dim)
    if pretrained is not None:
        state = read_state_dict(pretrained)
        own = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
        load_strictly(tower, own or state, pretrained)
    return tower.requires_grad_(False)
