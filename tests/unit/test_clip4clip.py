"""CLIP4Clip and the heads of its code: independence of padding and of the batch, encode-once, options."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from src.batch import TextBatch, VideoBatch
from src.errors import UserError
from src.models.clip4clip import Clip4Clip
from src.models.heads import tiling
from src.models.heads.base import HeadFactory
from src.models.heads.mean import MeanHead
from src.models.heads.seq_lstm import SeqLstmHead
from src.models.heads.seq_transf import SeqTransfHead
from src.models.heads.tab import TabHead
from src.models.heads.tight import TightTransfHead
from src.models.temporal import TemporalTransformer, key_mask, masked_mean
from tests.tiny_clip import tiny_arch

HEADS: dict[str, HeadFactory] = {
    "meanP": MeanHead,
    "meanP, raw frames": partial(MeanHead, normalise_frames=False),
    "seqLSTM": SeqLstmHead,
    "seqTransf": partial(SeqTransfHead, temporal_layers=2),
    "tightTransf": partial(TightTransfHead, temporal_layers=2),
    "tab": TabHead,
}


def make(head: str, **options: Any) -> Clip4Clip:
    torch.manual_seed(0)
    return Clip4Clip(arch=tiny_arch(), head=HEADS[head], num_frames=4, max_words=6, **options).eval()


def texts(count: int = 3) -> TextBatch:
    torch.manual_seed(1)
    tokens = torch.randint(1, 60, (count, 6))
    tokens[:, 0], tokens[:, 5] = 62, 63
    return TextBatch(tokens, torch.ones(count, 6).bool(), torch.arange(count), torch.arange(count))


def videos(lengths: tuple[int, ...] = (4, 2, 3)) -> VideoBatch:
    torch.manual_seed(2)
    mask = torch.arange(4)[None] < torch.tensor(lengths)[:, None]
    frames = torch.randint(0, 256, (len(lengths), 4, 3, 16, 16), dtype=torch.uint8)
    return VideoBatch(ids=torch.arange(len(lengths)), frames_BTCHW=frames, mask_BT=mask)


def rows(batch: VideoBatch, index: slice) -> VideoBatch:
    return batch.map(lambda tensor: tensor[index])


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_scores_ignore_what_padded_frames_hold(head: str) -> None:
    model, text, video = make(head), texts(), videos()
    assert video.frames_BTCHW is not None
    assert video.mask_BT is not None
    other = video.frames_BTCHW.clone()
    other[~video.mask_BT] = 77
    scores = model.similarity(model.encode_text(text), model.encode_video(video))
    changed = VideoBatch(ids=video.ids, frames_BTCHW=other, mask_BT=video.mask_BT)
    assert torch.equal(scores, model.similarity(model.encode_text(text), model.encode_video(changed)))


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_a_video_is_the_same_alone_and_in_a_batch(head: str) -> None:
    model, text, video = make(head), texts(), videos()
    together = model.similarity(model.encode_text(text), model.encode_video(video))
    for column in range(3):
        alone = model.encode_video(rows(video, slice(column, column + 1)))
        torch.testing.assert_close(
            model.similarity(model.encode_text(text), alone)[:, 0], together[:, column], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_blockwise_equals_whole_matrix(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, video = make(head), videos()
    text, embedded = model.encode_text(texts(5)), model.encode_video(video)
    whole = model.similarity(text, embedded)
    blocks = [[model.similarity(text[i : i + 2], embedded[j : j + 2]) for j in (0, 2)] for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat([torch.cat(row, 1) for row in blocks]), whole, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(tiling, "ELEMENTS_AT_ONCE", 1)
    torch.testing.assert_close(model.similarity(text, embedded), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_a_video_without_frames_gives_finite_loss_and_gradients(head: str) -> None:
    model, video = make(head), videos((4, 0, 3))
    loss = model.loss(model.encode_text(texts()), model.encode_video(video))["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("head", HEADS)
def test_every_trained_parameter_has_a_gradient(head: str) -> None:
    model = make(head)
    model.loss(model.encode_text(texts()), model.encode_video(videos()))["loss"].backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_tiled_joint_transformer_has_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for elements in (2**26, 1):
        monkeypatch.setattr(tiling, "ELEMENTS_AT_ONCE", elements)
        model = make("tightTransf")
        model.loss(model.encode_text(texts()), model.encode_video(videos()))["loss"].backward()
        assert isinstance(model.head, TightTransfHead)
        assert model.head.dense.weight.grad is not None
        found.append(model.head.dense.weight.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-8)


def test_the_joint_transformer_is_pairwise() -> None:
    assert make("tightTransf").similarity_is_pairwise
    assert not make("seqTransf").similarity_is_pairwise


@torch.no_grad()
def test_autocast_keeps_scores_in_float32() -> None:
    model = make("seqTransf")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        text, video = model.encode_text(texts()), model.encode_video(videos())
    assert text.parts["text"].dtype is torch.float32
    assert video.parts["video"].dtype is torch.float32
    torch.testing.assert_close(video.parts["video"].norm(dim=-1), torch.ones(3))


def test_temporal_layers_start_from_the_text_tower() -> None:
    model = make("seqTransf")
    assert isinstance(model.head, SeqTransfHead)
    assert torch.equal(model.head.order.position.weight, model.tower.clip.positional_embedding)
    source = model.tower.clip.transformer.resblocks[1].mlp.c_fc.weight
    assert torch.equal(model.head.order.transformer.resblocks[1].mlp.c_fc.weight, source)  # type: ignore[union-attr]


def test_upstream_mask_layout_lets_heads_see_other_videos() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    per_video, upstream = (key_mask(mask, 2, layout) < 0 for layout in ("per_video", "upstream"))  # type: ignore[arg-type]
    assert per_video[:, 0, 0].tolist() == [[False, False], [False, True]]
    # Flattened (video, head) pairs 0, 1, 2, 3 read the masks of videos 0, 1, 0, 1.
    assert upstream[:, :, 0, 1].tolist() == [[False, True], [False, True]]
    torch.manual_seed(0)
    layer = TemporalTransformer(8, 1, 2, "upstream")
    x = torch.randn(2, 2, 8)
    assert not torch.allclose(layer(x, mask)[:1], layer(x[:1], mask[:1]))


def test_masked_mean_of_nothing_is_zero() -> None:
    x = torch.tensor([[[1.0], [3.0]], [[5.0], [7.0]]])
    mask = torch.tensor([[True, True], [False, False]])
    assert masked_mean(x, mask).tolist() == [[2.0], [0.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": SeqTransfHead, "num_frames": 11}, "model.num_frames=10 or less"),
        ({"head": TightTransfHead, "num_frames": 10}, "model.num_frames=9 or less"),
        ({"head": partial(SeqTransfHead, temporal_layers=0)}, "head.temporal_layers=0, expected at least 1"),
        ({"head": partial(TightTransfHead, temporal_layers=0)}, "head.temporal_layers=0, expected at least 1"),
        ({"head": partial(TabHead, num_centers=0)}, "head.num_centers=0, expected at least 1"),
        ({"head": partial(TabHead, global_weight=1.5)}, "head.global_weight=1.5, expected 0 to 1"),
        ({"head": TemporalTransformer}, "expected a Head; choose a file of conf/model/head"),
        ({"num_frames": 0}, "at least 1"),
        ({"head_dim": 5}, "head_dim=5 does not divide"),
    ],
)
def test_mistakes_name_the_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Clip4Clip(arch=tiny_arch(), **options)


def test_features_without_frames_are_refused() -> None:
    with pytest.raises(UserError, match="reads frames"):
        make("meanP").encode_video(VideoBatch(ids=torch.arange(1)))
