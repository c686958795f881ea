"""Words and picture in one attention: what may not matter, what has to, and what is computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from src.batch import VideoBatch, WordBatch
from src.errors import UserError
from src.models.bert_text import BertText
from src.models.ocr_fusion import OcrFusion, occupied, words_of

WIDTH = 16


class Pieces(nn.Module):
    """Mean of the real pieces of a word through a layer; remembers what it was asked."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, WIDTH)
        self.layer = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(dropout))
        self.asked: list[tuple[int, int]] = []

    def forward(self, tokens_NL: Tensor, mask_NL: Tensor) -> Tensor:
        self.asked.append((tokens_NL.shape[0], tokens_NL.shape[1]))
        mask_NL1 = mask_NL[..., None]
        return self.layer((self.embedding(tokens_NL) * mask_NL1).sum(1) / mask_NL1.sum(1))


def make_words(lengths: list[int], slots: int = 6, pieces: int = 5) -> WordBatch:
    """Random words; every second one of one piece, the others of up to five."""
    generator = torch.Generator().manual_seed(3)
    size = (len(lengths), slots)
    tokens_BWL = torch.randint(2, 50, (*size, pieces), generator=generator)
    longest_BW = torch.randint(1, pieces + 1, size, generator=generator)
    words_BW = torch.arange(slots) < torch.tensor(lengths)[:, None]
    longest_BW[~words_BW] = 1
    tokens_BWL[~words_BW] = 1  # the word " "
    mask_BWL = torch.arange(pieces) < longest_BW[..., None]
    positions_BWP = torch.rand(*size, 12, generator=generator) * words_BW[..., None]
    return WordBatch(tokens_BWL.masked_fill(~mask_BWL, 0), mask_BWL, words_BW, positions_BWP)


def make_fusion(**options: object) -> OcrFusion:
    torch.manual_seed(0)
    encoder = options.pop("encoder", None) or Pieces()
    fusion = OcrFusion(encoder, WIDTH, 10, **options)  # type: ignore[arg-type]
    nn.init.normal_(fusion.query_token)
    return fusion.eval()


VIDEO_BD = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
LENGTHS = [6, 0, 3]


def test_by_hand() -> None:
    fusion, words = make_fusion(num_heads=2), make_words(LENGTHS)
    row, count = 2, 3
    word_vectors = fusion.ocr_model(words.tokens_BWL[row, :count], words.mask_BWL[row, :count])
    word_vectors = word_vectors + fusion.ocr_pos_embeds(words.positions_BWP[row, :count])
    types = fusion.type_embedding.weight
    tokens = torch.cat([fusion.query_token + types[0], VIDEO_BD[row : row + 1] + types[1], word_vectors + types[2]])
    attention = fusion.fusion_model
    parts = []
    for head in (slice(0, 8), slice(8, 16)):
        query, key, value = (layer(tokens)[:, head] for layer in (attention.query, attention.key, attention.value))
        parts.append((query @ key.T / 8**0.5).softmax(-1) @ value)
    fused = fusion.query_token + torch.cat(parts, dim=1)[:1]
    expected = fusion.fusion_proj[1](fused.relu())
    torch.testing.assert_close(fusion(words, VIDEO_BD)[row : row + 1], expected)


def test_order_of_the_words_does_not_matter() -> None:
    fusion, words = make_fusion(), make_words(LENGTHS)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    shuffled = words.map(lambda tensor: tensor[:, order])
    full = torch.tensor([True, False, False])  # the slot of an empty video has to stay the first
    torch.testing.assert_close(fusion(shuffled, VIDEO_BD)[full], fusion(words, VIDEO_BD)[full])


def test_positions_matter_where_the_model_looks_at_them() -> None:
    words = make_words(LENGTHS)
    moved = replace(words, positions_BWP=words.positions_BWP + 1)
    fusion = make_fusion()
    assert not torch.allclose(fusion(moved, VIDEO_BD), fusion(words, VIDEO_BD))
    only_reads = make_fusion(reads_video=False)
    assert torch.equal(only_reads(moved), only_reads(words))


@pytest.mark.parametrize("reads_video", [True, False])
def test_amount_of_padding_does_not_matter(reads_video: bool) -> None:
    fusion, words = make_fusion(reads_video=reads_video), make_words(LENGTHS)
    video = (VIDEO_BD,) if reads_video else ()
    expected = fusion(words, *video)
    wider = WordBatch(
        tokens_BWL=nn.functional.pad(words.tokens_BWL, (0, 3, 0, 4), value=7),
        mask_BWL=nn.functional.pad(words.mask_BWL, (0, 3, 0, 4)),
        words_BW=nn.functional.pad(words.words_BW, (0, 4)),
        positions_BWP=nn.functional.pad(words.positions_BWP, (0, 0, 0, 4), value=9.0),
    )
    torch.testing.assert_close(fusion(wider, *video), expected)
    alone = fusion(words.map(lambda tensor: tensor[2:, :3]), *(part[2:] for part in video))
    torch.testing.assert_close(alone, expected[2:])


def test_a_video_without_words_has_one_slot() -> None:
    words = make_words(LENGTHS)
    assert occupied(words).tolist()[1] == [True] + [False] * 5
    fusion = make_fusion()
    blank = fusion.ocr_model(torch.tensor([[1]]), torch.tensor([[True]]))
    features_BWD = fusion.encode_words(words)
    torch.testing.assert_close(features_BWD[1, :1], blank + fusion.ocr_pos_embeds.bias)
    assert not features_BWD[1, 1:].any()
    assert fusion(words, VIDEO_BD).isfinite().all()


def test_each_distinct_word_is_encoded_once() -> None:
    words = make_words([6, 6, 6])
    same = words.map(lambda tensor: tensor[:1].expand(3, *tensor.shape[1:]))
    fusion = make_fusion()
    fusion.encode_words(same)
    assert sum(count for count, _ in fusion.ocr_model.asked) == 6
    torch.testing.assert_close(fusion.encode_words(same)[2], fusion.encode_words(words)[0])


@pytest.mark.parametrize(("share", "dropout", "expected"), [(False, 0.0, 6), (False, 0.1, 18), (True, 0.1, 6)])
def test_training_shares_words_where_that_is_exact_or_allowed(share: bool, dropout: float, expected: int) -> None:
    fusion = make_fusion(encoder=Pieces(dropout), share_words=share).train()
    words = make_words([6, 6, 6])
    fusion.encode_words(words.map(lambda tensor: tensor[:1].expand(3, *tensor.shape[1:])))
    assert sum(count for count, _ in fusion.ocr_model.asked) == expected


def test_a_repeated_word_collects_the_gradient_of_all_its_places() -> None:
    words = make_words([6, 6, 6]).map(lambda tensor: tensor[:1].expand(3, *tensor.shape[1:]))
    gradients = []
    for encoder in (Pieces(), Pieces(1e-9)):  # the second drops nothing in practice, but keeps words apart
        fusion = make_fusion(encoder=encoder, share_words=False)
        fusion.train()
        fusion(words, VIDEO_BD).square().sum().backward()
        gradients.append(encoder.embedding.weight.grad)
    assert gradients[0].any()
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("recompute", [False, True])
def test_passes_change_nothing(recompute: bool) -> None:
    words, results = make_words(LENGTHS), []
    for options in ({}, {"words_per_pass": 2, "activation_checkpointing": recompute}):
        fusion = make_fusion(**options).train()
        embeddings = fusion(words, VIDEO_BD)
        embeddings.square().sum().backward()
        results.append((embeddings.detach(), [p.grad for p in fusion.parameters()], fusion.ocr_model.asked))
    (plain, plain_gradients, _), (small, small_gradients, asked) = results
    torch.testing.assert_close(small, plain)
    torch.testing.assert_close(small_gradients, plain_gradients)
    assert max(count for count, _ in asked) == 2
    lengths = [length for _, length in asked[: len(asked) // (1 + recompute)]]
    assert lengths == sorted(lengths)
    assert lengths[0] == 1


def test_recomputing_draws_the_same_dropout() -> None:
    words = make_words(LENGTHS)
    gradients = []
    for recompute in (False, True):
        fusion = make_fusion(encoder=Pieces(0.5), words_per_pass=2, activation_checkpointing=recompute).train()
        torch.manual_seed(5)
        fusion(words, VIDEO_BD).square().sum().backward()
        gradients.append(fusion.ocr_model.embedding.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("reads_video", [True, False])
def test_every_parameter_learns(reads_video: bool) -> None:
    fusion = make_fusion(reads_video=reads_video).train()
    video_BD = VIDEO_BD.clone().requires_grad_()
    fusion(make_words(LENGTHS), *((video_BD,) if reads_video else ())).square().sum().backward()
    # A constant added to all keys changes no softmax: its gradient is zero but for rounding.
    still = [name for name, p in fusion.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in still if name != "fusion_model.key.bias"] == []
    assert not reads_video or video_BD.grad.any()


def test_a_real_encoder_and_its_training_mode() -> None:
    encoder = BertText("videotext-tiny")
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    fusion = OcrFusion(encoder, 96, None)
    words = make_words(LENGTHS)
    video_BD = torch.randn(3, 96)
    assert not torch.equal(fusion(words, video_BD), fusion(words, video_BD))  # dropout
    fusion.eval()
    assert torch.equal(fusion(words, video_BD), fusion(words, video_BD))
    assert fusion(words, video_BD).shape == (3, 96)


def test_half_precision_of_the_encoder() -> None:
    fusion = make_fusion()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fusion(make_words(LENGTHS), VIDEO_BD)
    assert found.isfinite().all()


def test_a_hidden_picture_is_hidden_in_training_only_and_only_behind_words() -> None:
    fusion, words = make_fusion(hide_picture=1.0), make_words(LENGTHS)
    other_BD = VIDEO_BD.flip(0) + 1
    seen = (fusion(words, VIDEO_BD) - fusion(words, other_BD)).abs().amax(dim=1) > 1e-4
    assert seen.tolist() == [True, True, True]
    fusion.train()
    seen = (fusion(words, VIDEO_BD) - fusion(words, other_BD)).abs().amax(dim=1) > 1e-4
    assert seen.tolist() == [False, True, False]  # the one without words keeps its picture
    published = make_fusion().train()
    torch.testing.assert_close(published(words, VIDEO_BD), published.eval()(words, VIDEO_BD))


def test_the_share_of_hidden_pictures() -> None:
    fusion = make_fusion(hide_picture=0.25).train()
    words = make_words([2] * 400)
    same = words.map(lambda tensor: tensor[:1].expand(400, *tensor.shape[1:]))
    found_BE = fusion(same, VIDEO_BD[:1].expand(400, -1))
    hidden = int((found_BE - found_BE[0]).abs().amax(dim=1).gt(1e-4).sum())
    assert min(hidden, 400 - hidden) in range(70, 131)
    for wrong in (-0.1, 1.5):
        with pytest.raises(UserError, match=f"hide_picture={wrong}, expected a share from 0 to 1"):
            make_fusion(hide_picture=wrong)


def test_missing_picture_or_words_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a vector"):
        make_fusion()(make_words(LENGTHS))
    with pytest.raises(ValueError, match="expected no vector"):
        make_fusion(reads_video=False)(make_words(LENGTHS), VIDEO_BD)
    with pytest.raises(UserError, match=r"dataset\.ocr_dir"):
        words_of(VideoBatch(ids=torch.arange(2)))
    with pytest.raises(UserError, match="expected a divisor"):
        make_fusion(num_heads=5)
    with pytest.raises(UserError, match="words_per_pass=0"):
        make_fusion(words_per_pass=0)
