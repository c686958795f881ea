"""What videos say in writing: each word its own text, and one attention over the words and the picture.

Shape suffixes: B videos, W words of a video, L pieces of a word, N words to encode, U distinct words, P numbers of a
position, D width, S = 2 + W tokens of the attention (1 + W without the picture), H heads, E joint dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from src.batch import VideoBatch, WordBatch
from src.errors import UserError

POSITION_SIZE = 12  # numbers of `WordBatch.positions_BWP`
QUERY, PICTURE, WORD = range(3)  # rows of the type embedding
TYPE_STD = 0.02  # of a start that does not drown the words


class QueryAttention(nn.Module):
    """Attention of the first token over all: no output projection, norm or dropout; only that row is computed.

    Args:
        width: of the tokens.
        num_heads: divides the width.

    Raises:
        UserError: it does not.

    Source: TextVR model/model.py SelfAttention @ ae16786.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or width % num_heads:
            raise UserError(
                f"found {num_heads} attention heads for OCR words of width {width}, expected a divisor of it; set "
                "model.ocr_heads to one"
            )
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, tokens_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """What the first token collects (B, D); `mask_BS` is True on the tokens that it sees."""
        query_BH1D = self._heads(self.query(tokens_BSD[:, :1]))
        key_BHSD, value_BHSD = self._heads(self.key(tokens_BSD)), self._heads(self.value(tokens_BSD))
        found = F.scaled_dot_product_attention(query_BH1D, key_BHSD, value_BHSD, attn_mask=mask_BS[:, None, None])
        return found.transpose(1, 2).flatten(1)

    def _heads(self, x_BSD: Tensor) -> Tensor:
        return x_BSD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class OcrFusion(nn.Module):
    """The words in the picture, and the picture itself, as one vector of the joint space.

    A query attends to itself, the picture's vector and the words that the video has; the result plus the query, after
    a ReLU, is projected. The order of the words does not matter but for their positions, and empty slots do not count;
    a video without words has one slot, the word " " at position zero.

    Words that repeat are encoded once per batch: always the same numbers without dropout, so this is done in
    evaluation, and in training where `share_words` allows it or nothing drops out.

    Args:
        ocr_model: encodes words: called with int64 tokens_NL and bool mask_NL, it returns (N, D).
        width: D, of what it returns and of the picture's vector.
        projection_dim: E; None leaves the width as it is.
        num_heads: of the attention.
        reads_video: False: neither picture nor types nor positions, the published model that only reads.
        words_per_pass: the words of a batch go through `ocr_model` so many at a time.
        activation_checkpointing: compute the words' activations again in the backward pass, one such piece after the
            other, so that those of one piece are in memory: 64 videos of 200 words fit; a third more arithmetic.
        share_words: a word that repeats in a training batch has the same dropout everywhere.
        hide_picture: in training, the share of videos with words whose picture the query does not see, so that words
            are learnt as well where the picture alone would do; 0 as published.

    Source: TextVR model/model.py FrozenInTime, versions "fusion" and "ocr" @ ae16786.
    Deviates: videos are not looped over, words are encoded in order of length, and attention rows that upstream
        computes and drops are not computed; the same numbers.
    """

    def __init__(
        self,
        ocr_model: nn.Module,
        width: int,
        projection_dim: int | None,
        *,
        num_heads: int = 8,
        reads_video: bool = True,
        words_per_pass: int = 1024,
        activation_checkpointing: bool = False,
        share_words: bool = False,
        hide_picture: float = 0.0,
    ) -> None:
        super().__init__()
        if words_per_pass < 1:
            raise UserError(
                f"found model.ocr_words_per_pass={words_per_pass}, expected at least 1; 1024 is the default"
            )
        if not 0 <= hide_picture <= 1:
            raise UserError(f"found model.ocr_hide_picture={hide_picture}, expected a share from 0 to 1")
        self.hide_picture = hide_picture
        self.words_per_pass = words_per_pass
        self.activation_checkpointing = activation_checkpointing
        self.share_words = share_words
        self.reads_video = reads_video
        self.query_token = nn.Parameter(torch.zeros(1, width))
        self.ocr_model = ocr_model
        self.fusion_model = QueryAttention(width, num_heads)
        if reads_video:
            self.type_embedding = nn.Embedding(3, width)
            self.ocr_pos_embeds = nn.Linear(POSITION_SIZE, width)
        projection = nn.Identity() if projection_dim is None else nn.Linear(width, projection_dim)
        # The ReLU belongs to the projection, as in that of the captions.
        self.fusion_proj = nn.Sequential(nn.Identity() if projection_dim is None else nn.ReLU(), projection)

    @torch.no_grad()
    def align(self, caption_proj: nn.Module) -> None:
        """Start so that words count like those of captions: values pass unchanged to the projection of captions.

        Args:
            caption_proj: what captions go through after a text model with the weights of `ocr_model`; same shapes.
        """
        nn.init.eye_(self.fusion_model.value.weight)
        nn.init.zeros_(self.fusion_model.value.bias)
        self.fusion_proj.load_state_dict(caption_proj.state_dict())
        if self.reads_video:
            nn.init.normal_(self.type_embedding.weight, std=TYPE_STD)

    def forward(self, words: WordBatch, video_BD: Tensor | None = None) -> Tensor:
        """Vectors (B, E), not normalised.

        Args:
            words: of the videos.
            video_BD: the vectors of the pictures, where the model reads them.

        Raises:
            ValueError: the picture is missing, or given to a model that only reads.
        """
        if (video_BD is None) == self.reads_video:
            raise ValueError(f"expected {'a' if self.reads_video else 'no'} vector of the picture")
        words_BWD, mask_BW = self.encode_words(words), occupied(words)
        query_B1D = self.query_token.expand(len(words), 1, -1)
        tokens = [query_B1D, words_BWD]
        if video_BD is not None:
            types_3D = self.type_embedding.weight
            picture_B1D = video_BD[:, None] + types_3D[PICTURE]
            tokens = [query_B1D + types_3D[QUERY], picture_B1D, words_BWD + types_3D[WORD]]
        mask_BS = F.pad(mask_BW, (len(tokens) - 1, 0), value=True)
        if self.training and self.reads_video and self.hide_picture:
            hidden_B = torch.rand(len(words), device=mask_BS.device) < self.hide_picture
            mask_BS[:, PICTURE] = ~(hidden_B & words.words_BW.any(dim=1))
        dtype = words_BWD.dtype
        collected_BD = self.fusion_model(torch.cat([part.to(dtype) for part in tokens], dim=1), mask_BS)
        fused_BE: Tensor = self.fusion_proj(self.query_token + collected_BD)
        return fused_BE

    def encode_words(self, words: WordBatch) -> Tensor:
        """One vector a slot (B, W, D), with its position where the model looks at those; zeros in empty slots."""
        mask_BW = occupied(words)
        features_ND = self._encode(words.tokens_BWL[mask_BW], words.mask_BWL[mask_BW])
        if self.reads_video:
            features_ND = features_ND + self.ocr_pos_embeds(words.positions_BWP[mask_BW].to(features_ND.dtype))
        slots_BWD = features_ND.new_zeros(*mask_BW.shape, features_ND.shape[-1])
        return slots_BWD.index_put((mask_BW,), features_ND)

    def _encode(self, tokens_NL: Tensor, mask_NL: Tensor) -> Tensor:
        """Vectors of words (N, D), each distinct one computed once where that changes no number."""
        if self._sees_dropout():
            return self._in_passes(tokens_NL, mask_NL)
        distinct_UL, places_N = torch.unique(tokens_NL.masked_fill(~mask_NL, -1), dim=0, return_inverse=True)
        return self._in_passes(distinct_UL.clamp(min=0), distinct_UL >= 0)[places_N]

    def _sees_dropout(self) -> bool:
        """Whether two copies of one word may differ."""
        if self.share_words or not self.ocr_model.training:
            return False
        modules = [module for module in self.ocr_model.modules() if isinstance(module, nn.Dropout)]
        return any(module.training and module.p > 0 for module in modules)

    def _in_passes(self, tokens_NL: Tensor, mask_NL: Tensor) -> Tensor:
        """Encode in order of length, so that a pass of short words carries no padding."""
        lengths_N = mask_NL.sum(dim=1)
        order_N = torch.argsort(lengths_N, stable=True)
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        pieces = []
        for rows in order_N.split(self.words_per_pass):
            longest = max(1, int(lengths_N[rows[-1]]))
            inputs = tokens_NL[rows, :longest], mask_NL[rows, :longest]
            pieces.append(
                checkpoint(self.ocr_model, *inputs, use_reentrant=False) if recompute else self.ocr_model(*inputs)
            )
        return torch.cat(pieces)[torch.argsort(order_N)]


def occupied(words: WordBatch) -> Tensor:
    """bool (B, W): the slots that count: real words, and the first of a video that has none."""
    first_W = torch.arange(words.words_BW.shape[1], device=words.words_BW.device) == 0
    return words.words_BW | (first_W & ~words.words_BW.any(dim=1, keepdim=True))


def words_of(batch: VideoBatch) -> WordBatch:
    """The words of a batch.

    Raises:
        UserError: the data gives none.
    """
    if batch.words is None:
        raise UserError(
            "this model reads the words in the picture, the data set gives none; set dataset.ocr_dir=FOLDER"
        )
    return batch.words
