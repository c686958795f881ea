"""Heads that compare words with frames: against explicit loops, under masks, in tiles, and in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from src.batch import TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.errors import UserError
from src.losses.infonce import SymmetricInfoNCE
from src.models.clip4clip import Clip4Clip
from src.models.heads import tiling
from src.models.heads.base import Head, TextTokens, VideoTokens
from src.models.heads.cdcr import Tokens, decorrelation, draw
from src.models.heads.ti import TokenInteractionHead
from src.models.heads.wti import WeightedTokenInteractionHead
from src.models.heads.xclip import XClipHead
from src.models.heads.xpool import XPoolHead
from tests.head_host import host_of
from tests.tiny_clip import tiny_arch

N, V, L, T, D = 5, 4, 6, 3, 8
SCALE = torch.tensor(1.5, dtype=torch.float64)
HEADS: dict[str, Callable[..., Head]] = {
    "ti": TokenInteractionHead,
    "wti1": partial(WeightedTokenInteractionHead, arch=1),
    "wti2": partial(WeightedTokenInteractionHead, arch=2),
    "wti3": partial(WeightedTokenInteractionHead, arch=3),
    "xpool": XPoolHead,
    "xpool2": partial(XPoolHead, attention_heads=2),
    "xclip": XClipHead,
    "xclip_upstream": partial(XClipHead, padding="upstream"),
}


def make(name: str, **options: Any) -> Head:
    """A head with random weights, in float64, without dropout."""
    torch.manual_seed(1)
    head = HEADS[name](host_of(D, T, L), **options).double().eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return head


def tokens(text_rows: tuple[int, ...] = (6, 2, 4, 1, 3), frames: tuple[int, ...] = (3, 1, 2, 3)) -> tuple[Any, Any]:
    """Captions and videos with so many valid words and frames."""
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mask_NL = torch.arange(L) < torch.tensor(text_rows)[:, None]
    mask_VT = torch.arange(T) < torch.tensor(frames)[:, None]
    text = TextTokens(random(len(text_rows), D), mask_NL, random(len(text_rows), L, D))
    frames_VTD = random(len(frames), T, D)
    return text, VideoTokens(frames_VTD, mask_VT, ordered_BTD=frames_VTD)


def embed(head: Head, text: TextTokens, video: VideoTokens) -> tuple[TextEmbedding, VideoEmbedding]:
    ids = torch.arange(len(text.sentence_BD))
    return (
        TextEmbedding(ids=ids, parts=head.text_parts(text), video_ids=ids),
        VideoEmbedding(ids=torch.arange(len(video.mask_BT)), parts=head.video_parts(video)),
    )


def scores(head: Head, text: TextTokens, video: VideoTokens) -> Tensor:
    return head.similarity(*embed(head, text, video), SCALE)


# ---- explicit loops -------------------------------------------------------------------------------


def cosine(a_D: Tensor, b_D: Tensor) -> float:
    return float(a_D @ b_D / a_D.norm() / b_D.norm())


def loop_ti(head: Any, text: TextTokens, n: int, video: VideoTokens, v: int) -> float:
    """Masked tokens stand for a cosine of 0."""
    assert text.words_BLD is not None
    words, frames = text.words_BLD[n], video.frames_BTD[v]
    valid_words = [i for i in range(L) if text.mask_BL[n, i]]
    valid_frames = [j for j in range(T) if video.mask_BT[v, j]]
    table = [
        [cosine(words[i], frames[j]) if i in valid_words and j in valid_frames else 0.0 for j in range(T)]
        for i in range(L)
    ]
    if isinstance(head, WeightedTokenInteractionHead):
        word_scores = [math.exp(float(head.word_score(words[i]))) for i in valid_words]
        frame_scores = [math.exp(float(head.frame_score(frames[j]))) for j in valid_frames]
    else:
        word_scores, frame_scores = [1.0] * len(valid_words), [1.0] * len(valid_frames)
    by_word = sum(w * max(table[i]) for w, i in zip(word_scores, valid_words, strict=True)) / sum(word_scores)
    by_frame = sum(
        w * max(table[i][j] for i in range(L)) for w, j in zip(frame_scores, valid_frames, strict=True)
    ) / sum(frame_scores)
    return (by_word + by_frame) / 2


def loop_xpool(head: Any, text: TextTokens, n: int, video: VideoTokens, v: int) -> float:
    """Torch's own attention with the head's weights."""
    attention = nn.MultiheadAttention(D, head.attention_heads, batch_first=True).double()
    linears = (head.query, head.key, head.value)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([layer.weight for layer in linears]))
        attention.in_proj_bias.copy_(torch.cat([layer.bias for layer in linears]))
        attention.out_proj.load_state_dict(head.mixed.state_dict())
    sentence_D = text.sentence_BD[n]
    frames_TD = head.norm_in(video.frames_BTD[v][video.mask_BT[v]])
    pooled_D = head.norm_pooled(attention(head.norm_in(sentence_D)[None], frames_TD, frames_TD)[0][0])
    return cosine(sentence_D, head.norm_out(pooled_D + head.feed_forward(pooled_D)))


def loop_add_up(x: list[Tensor], matrix: Tensor, places: list[int]) -> Tensor:
    """Σⱼ [softmax(x/0.01) W]ⱼ xⱼ over the entries that take part."""
    total = sum(torch.exp(x[i] / 0.01) for i in places)
    weights = [sum(torch.exp(x[i] / 0.01) / total * matrix[i, j] for i in places) for j in places]
    return sum(weight * x[j] for weight, j in zip(weights, places, strict=True))  # type: ignore[return-value]


def loop_xclip(head: Any, text: TextTokens, n: int, video: VideoTokens, v: int) -> float:
    assert text.words_BLD is not None
    valid = video.mask_BT[v]
    everything = head.reads_padding
    words = [i for i in range(L) if everything or text.mask_BL[n, i]]
    frames = [j for j in range(T) if everything or valid[j]]
    word = [w / w.norm() for w in text.words_BLD[n]]
    frame = [f / f.norm() for f in video.frames_BTD[v]]
    sentence = text.sentence_BD[n] / text.sentence_BD[n].norm()
    mean = torch.stack([frame[j] for j in range(T) if valid[j]]).mean(0)
    mean = mean / mean.norm()
    fine = [[w @ head.local_mat_weight @ f for f in frame] for w in word]
    by_frame = [loop_add_up([fine[i][j] for i in range(L)], head.word_mat_weight, words) for j in range(T)]
    by_word = [loop_add_up(fine[i], head.frame_mat_weight, frames) for i in range(L)]
    parts = [
        sentence @ head.global_mat_weight @ mean,
        loop_add_up([w @ mean for w in word], head.word_logit_weight, words),
        loop_add_up([sentence @ f for f in frame], head.frame_logit_weight, frames),
        (loop_add_up(by_frame, head.frame_mat_weight2, frames) + loop_add_up(by_word, head.word_mat_weight2, words))
        / 2,
    ]
    return float(sum(parts)) / 4


ORACLES = {"ti": loop_ti, "wti": loop_ti, "xpo": loop_xpool, "xcl": loop_xclip}


@pytest.mark.parametrize("name", HEADS)
def test_equals_explicit_loops(name: str) -> None:
    head = make(name)
    text, video = tokens()
    with torch.no_grad():
        found = scores(head, text, video)
        oracle = next(oracle for start, oracle in ORACLES.items() if name.startswith(start))
        expected = [[oracle(head, text, n, video, v) for v in range(V)] for n in range(N)]
    torch.testing.assert_close(found, SCALE.exp() * torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


# ---- padding --------------------------------------------------------------------------------------


def with_other_padding(text: TextTokens, video: VideoTokens) -> tuple[TextTokens, VideoTokens]:
    assert text.words_BLD is not None
    words_BLD = torch.where(text.mask_BL[..., None], text.words_BLD, 7.0 + torch.arange(D))
    frames_BTD = torch.where(video.mask_BT[..., None], video.frames_BTD, -3.0 - torch.arange(D))
    return (
        TextTokens(text.sentence_BD, text.mask_BL, words_BLD),
        VideoTokens(frames_BTD, video.mask_BT, ordered_BTD=frames_BTD),
    )


@pytest.mark.parametrize("name", HEADS)
def test_padding_says_nothing(name: str) -> None:
    head = make(name)
    text, video = tokens()
    same = torch.allclose(scores(head, text, video), scores(head, *with_other_padding(text, video)), atol=1e-12)
    assert same == (name != "xclip_upstream")


@pytest.mark.parametrize("name", [name for name in HEADS if name != "xclip_upstream"])
def test_score_does_not_depend_on_the_longest_caption_of_the_batch(name: str) -> None:
    head = make(name)
    text, video = tokens((3, 2, 1))
    assert text.words_BLD is not None
    cut = TextTokens(text.sentence_BD, text.mask_BL[:, :3], text.words_BLD[:, :3])
    torch.testing.assert_close(scores(head, cut, video), scores(head, text, video), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", HEADS)
def test_empty_captions_and_videos_stay_finite(name: str) -> None:
    head = make(name).train()
    text, video = tokens((0, 6, 1, 0), (0, 3, 1, 0))
    text.sentence_BD.requires_grad_()
    video.frames_BTD.requires_grad_()
    pair = embed(head, text, video)
    losses = head.loss(SymmetricInfoNCE(), *pair, SCALE)
    losses["loss"].backward()
    assert torch.isfinite(head.similarity(*pair, SCALE)).all()
    gradients = [p.grad for p in [*head.parameters(), video.frames_BTD] if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", ["ti", "wti2"])
def test_an_empty_caption_scores_nothing(name: str) -> None:
    text, video = tokens((0, 6), (0, 3))
    s_NV = scores(make(name), text, video)
    assert torch.equal(s_NV[0], torch.zeros_like(s_NV[0]))
    assert torch.equal(s_NV[:, 0], torch.zeros_like(s_NV[:, 0]))
    assert s_NV[1, 1] != 0


def test_a_negative_cosine_loses_against_padding() -> None:
    """As published: that a video is shorter than it could be acts as a frame of cosine 0."""
    x_D = torch.eye(D, dtype=torch.float64)[0]
    words_1LD = x_D.expand(1, L, D)
    text = TextTokens(x_D[None], torch.ones(1, L, dtype=torch.bool), words_1LD)
    frames_2TD = -x_D.expand(2, T, D)
    mask_2T = torch.tensor([[True] * T, [True] * (T - 1) + [False]])
    video = VideoTokens(frames_2TD, mask_2T, ordered_BTD=frames_2TD)
    s_NV = scores(make("ti"), text, video) / SCALE.exp()
    torch.testing.assert_close(s_NV, torch.tensor([[-1.0, -0.5]], dtype=torch.float64))


# ---- fresh heads and options --------------------------------------------------------------------------


def test_identical_words_and_frames_score_one() -> None:
    x_BXD = F.normalize(torch.randn(1, 1, D, dtype=torch.float64), dim=-1).expand(1, T, D)
    mask_BX = torch.ones(1, T, dtype=torch.bool)
    text, video = TextTokens(x_BXD[:, 0], mask_BX, x_BXD), VideoTokens(x_BXD, mask_BX, ordered_BTD=x_BXD)
    for name in ("ti", "wti1", "xclip"):
        torch.manual_seed(0)
        head = HEADS[name](host_of(D, T, T)).double()
        torch.testing.assert_close(scores(head, text, video), SCALE.exp().view(1, 1))


def test_fresh_xpool_is_the_attention_of_the_raw_vectors() -> None:
    """Identity matrices: what remains is softmax(norm(t)·norm(f)/√D) over the frames, norm, twice it, norm."""
    head = XPoolHead(host_of(D, T, L)).double().eval()
    text, video = tokens()

    def norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, (D,))

    keys_TD = norm(video.frames_BTD[0])
    weights_NT = torch.softmax(norm(text.sentence_BD) @ keys_TD.T / D**0.5, dim=-1)
    expected_N = F.cosine_similarity(text.sentence_BD, norm(2 * norm(weights_NT @ keys_TD)))
    torch.testing.assert_close(scores(head, text, video)[:, 0], SCALE.exp() * expected_N)


def test_xpool_drops_only_in_training() -> None:
    head = make("xpool", dropout=0.5)
    text, video = tokens()
    assert torch.equal(scores(head, text, video), scores(head, text, video))
    head.train()
    assert not torch.equal(scores(head, text, video), scores(head, text, video))


def test_scale_outside_training_is_an_option() -> None:
    text, video = tokens()
    head = make("wti2", scale_evaluation=False)
    plain = scores(head, text, video)
    torch.testing.assert_close(scores(head.train(), text, video), SCALE.exp() * plain)
    torch.testing.assert_close(scores(make("wti2"), text, video), SCALE.exp() * plain)


def test_order_makes_frames_know_of_each_other() -> None:
    text, video = tokens()
    for name in ("ti", "wti2", "xpool", "xclip"):
        plain = make(name)
        ordered = make(name, order="seqLSTM")
        shared = {key: value for key, value in plain.state_dict().items() if not key.startswith("order.")}
        ordered.load_state_dict(shared, strict=False)
        assert not torch.allclose(scores(ordered, text, video), scores(plain, text, video))
        assert any(key.startswith("order.lstm.") for key in ordered.state_dict())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("xpool", {"attention_heads": 3}, "attention_heads=3 does not divide the joint dimension 8"),
        ("xpool", {"attention_heads": 0}, "attention_heads=0"),
        ("xclip", {"temperature": 0.0}, "temperature=0.0, expected more than 0"),
        ("wti2", {"cdcr": 3, "cdcr_lambda": -1.0}, "cdcr_lambda=-1.0"),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(name, **options)


def test_xclip_refuses_another_number_of_frames() -> None:
    text, video = tokens()
    short = VideoTokens(video.frames_BTD[:, :2], video.mask_BT[:, :2], ordered_BTD=video.frames_BTD[:, :2])
    with pytest.raises(UserError, match=r"2 frames.*model.num_frames=3"):
        scores(make("xclip"), text, short)


# ---- tiles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_tiles_change_nothing(name: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"dropout": 0.0} if name.startswith("xpool") else {}
    weights_NV = torch.randn(N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = []
    for budget in (tiling.ELEMENTS_AT_ONCE, 1, 400):  # one tile, one pair a tile, some pairs a tile
        monkeypatch.setattr(tiling, "ELEMENTS_AT_ONCE", budget)
        head = make(name, **options).train(training)
        text, video = tokens()
        text.sentence_BD.requires_grad_(), video.frames_BTD.requires_grad_()
        s_NV = scores(head, text, video)
        (s_NV * weights_NV).sum().backward()
        gradients = [*head.parameters(), text.sentence_BD, video.frames_BTD]
        found.append((s_NV, *(x.grad for x in gradients if x.grad is not None)))
    for other in found[1:]:
        assert len(other) == len(found[0])
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(two, one, rtol=1e-6, atol=1e-12)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation makes, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in args if isinstance(x, Tensor)}
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor) and value.untyped_storage()._cdata not in given:
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize("name", ["ti", "wti2", "xpool", "xclip"])
def test_scoring_a_benchmark_needs_bounded_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 captions of 32 words, 1000 videos of 12 frames, 512 dimensions: without data, shapes suffice."""
    count, length, time, width = 1000, 32, 12, 512
    with torch.device("meta"):
        head = HEADS[name](host_of(width, time, length)).eval()
        text = TextTokens(
            torch.empty(count, width), torch.ones(count, length, dtype=torch.bool), torch.empty(count, length, width)
        )
        frames_VTD = torch.empty(count, time, width)
        video = VideoTokens(frames_VTD, torch.ones(count, time, dtype=torch.bool), ordered_BTD=frames_VTD)
        pair = embed(head, text, video)
        found = {}
        for budget in (tiling.ELEMENTS_AT_ONCE, 10**12):
            monkeypatch.setattr(tiling, "ELEMENTS_AT_ONCE", budget)
            with Largest() as largest, torch.no_grad():
                assert head.similarity(*pair, torch.zeros(())).shape == (count, count)
            found[budget] = largest.elements
    tiled, whole = found.values()
    assert whole >= count * count * length * time
    inputs = count * length * width  # words after a matrix of X-CLIP's
    assert tiled <= max(2**26, inputs)


# ---- channel decorrelation ----------------------------------------------------------------------------


def pairs_of_tokens() -> tuple[Tokens, Tokens]:
    text, video = tokens((6, 2, 4, 1), (3, 1, 2, 3))
    head = make("wti2")
    with torch.no_grad():
        text_parts, video_parts = head.text_parts(text), head.video_parts(video)
    return (
        Tokens(text_parts["words"], text_parts["word_weights"], text_parts["words_mask"]),
        Tokens(video_parts["frames"], video_parts["frame_weights"], video_parts["frames_mask"]),
    )


def loop_correlation(tokens: Tokens, others: Tokens, weighted: bool) -> Tensor:
    own, partners, weights = [], [], []
    for b in range(len(tokens.x_BXD)):
        for x in torch.nonzero(tokens.mask_BX[b]).flatten().tolist():
            candidates = torch.nonzero(others.mask_BX[b]).flatten().tolist()
            best = max(candidates, key=lambda y: float(tokens.x_BXD[b, x] @ others.x_BXD[b, y]))
            own.append(tokens.x_BXD[b, x])
            partners.append(others.x_BXD[b, best])
            weights.append(float(tokens.weights_BX[b, x]) / len(tokens.x_BXD))
    a, b_ = torch.stack(own), torch.stack(partners)
    a, b_ = (a - a.mean(0)) / a.std(0), (b_ - b_.mean(0)) / b_.std(0)
    weights = weights if weighted else [1 / len(own)] * len(own)
    return sum(w * torch.outer(a[i], b_[i]) for i, w in enumerate(weights))  # type: ignore[return-value]


@pytest.mark.parametrize("variant", [2, 3])
def test_decorrelation_equals_loops(variant: Any) -> None:
    words, frames = pairs_of_tokens()
    c = (loop_correlation(words, frames, variant == 3) + loop_correlation(frames, words, variant == 3)) / 2
    on = sum((c[i, i] - 1) ** 2 for i in range(D))
    off = sum(c[i, j] ** 2 for i in range(D) for j in range(D) if i != j)
    found = decorrelation(words, frames, variant, 0.16, 0.02)
    torch.testing.assert_close(found, 0.16 * on + 0.02 * off, rtol=1e-9, atol=0)
    torch.testing.assert_close(decorrelation(words, frames, variant, 1.0, 0.0), on, rtol=1e-9, atol=0)


def test_drawn_tokens_are_valid_and_all_can_be_drawn() -> None:
    torch.manual_seed(0)
    mask_BX = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])
    drawn = torch.stack([draw(mask_BX) for _ in range(60)])
    assert [set(column.tolist()) for column in drawn.T] == [{0, 2}, {1}, {0}]


def test_variant_1_correlates_the_drawn_tokens() -> None:
    words, frames = pairs_of_tokens()
    words, frames = words._replace(drawn_B=draw(words.mask_BX)), frames._replace(drawn_B=draw(frames.mask_BX))
    a, b = (torch.stack([x.x_BXD[i, int(x.drawn_B[i])] for i in range(4)]) for x in (words, frames))  # type: ignore[index]
    c = ((a - a.mean(0)) / a.std(0)).T @ ((b - b.mean(0)) / b.std(0)) / 4
    torch.testing.assert_close(decorrelation(words, frames, 1, 1.0, 0.0), (c.diagonal() - 1).square().sum())


@pytest.mark.parametrize("variant", [1, 2, 3])
@pytest.mark.parametrize("rows", [((2,), (1,)), ((0, 6), (3, 0)), ((1, 1), (1, 1))])
def test_decorrelation_of_too_little_is_finite(variant: Any, rows: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """One token has no spread; without a common pair nothing is correlated: Σ (0 − 1)²."""
    head = make("wti1", cdcr=variant).train()
    text, video = tokens(*rows)
    losses = head.loss(SymmetricInfoNCE(), *embed(head, text, video), SCALE)
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


def test_decorrelation_is_added_with_its_factor_and_logged() -> None:
    text, video = tokens((6, 2, 4, 1), (3, 1, 2, 3))
    plain = make("wti2")
    head = make("wti2", cdcr=3, cdcr_lambda=0.5, cdcr_alpha1=0.2, cdcr_alpha2=0.1)
    losses = head.loss(SymmetricInfoNCE(), *embed(head, text, video), SCALE)
    assert set(losses) == {"loss", "contrastive", "cdcr"}
    torch.testing.assert_close(losses["cdcr"], decorrelation(*pairs_of_tokens(), 3, 0.2, 0.1))
    torch.testing.assert_close(losses["loss"], losses["contrastive"] + 0.5 * losses["cdcr"])
    expected = plain.loss(SymmetricInfoNCE(), *embed(plain, text, video), SCALE)
    assert expected.keys() == {"loss"}
    torch.testing.assert_close(losses["contrastive"], expected["loss"])


# ---- in a model ---------------------------------------------------------------------------------------


def batches(count: int = 4) -> tuple[TextBatch, VideoBatch]:
    generator = torch.Generator().manual_seed(4)
    ids = torch.arange(count)
    tokens_BL = torch.randint(1, 60, (count, 5), generator=generator)
    mask_BL = torch.arange(5) < torch.tensor([5, 3, 4, 2])[:count, None]
    tokens_BL[torch.arange(count), mask_BL.sum(1) - 1] = 63
    frames = torch.randn(count, 3, 3, 16, 16, generator=generator)
    mask_BT = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]).bool()[:count]
    text = TextBatch(tokens_BL.masked_fill(~mask_BL, 0), mask_BL, ids, ids)
    return text, VideoBatch(ids=ids, frames_BTCHW=frames, mask_BT=mask_BT)


@pytest.mark.parametrize("name", HEADS)
def test_every_weight_is_trained(name: str) -> None:
    torch.manual_seed(0)
    options = {"cdcr": 3} if name.startswith("wti") else {}
    model = Clip4Clip(arch=tiny_arch(), head=partial(HEADS[name], **options), num_frames=3, max_words=8)
    text, video = batches()
    assert model.similarity_is_pairwise == name.startswith("x")
    losses = model.loss(model.encode_text(text), model.encode_video(video))
    losses["loss"].backward()
    untrained = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert untrained == []


@pytest.mark.parametrize("name", HEADS)
def test_embeddings_of_other_batches_can_be_joined(name: str) -> None:
    """Parts have fixed shapes: captions of 5 and 8 tokens, as evaluation collects them."""
    torch.manual_seed(0)
    model = Clip4Clip(arch=tiny_arch(), head=HEADS[name], num_frames=3, max_words=8).eval()
    text, video = batches()
    padded = TextBatch(F.pad(text.tokens_BL, (0, 3)), F.pad(text.mask_BL, (0, 3)), text.ids, text.video_ids)
    with torch.no_grad():
        joined = TextEmbedding.cat([model.encode_text(text), model.encode_text(padded)])
        s_NV = model.similarity(joined, model.encode_video(video))
    torch.testing.assert_close(s_NV[:4], s_NV[4:], rtol=1e-5, atol=1e-5)


def test_xclip_upstream_reads_the_states_of_padding() -> None:
    """The padded ids go through the text tower, so that the four scores see all eight positions."""
    torch.manual_seed(0)
    model = Clip4Clip(arch=tiny_arch(), head=HEADS["xclip_upstream"], num_frames=3, max_words=8).eval()
    text, _ = batches()
    with torch.no_grad():
        words = model.encode_text(text).parts["words"]
        whole = F.normalize(model.tower.encode_text_tokens(F.pad(text.tokens_BL, (0, 3)))[1], dim=-1)
    torch.testing.assert_close(words, whole)
    assert bool((words.norm(dim=-1) > 0.5).all())
