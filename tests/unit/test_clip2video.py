"""CLIP2Video: size of the published model, branches, independence of padding and batch, options."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch

from src.batch import TextBatch, VideoBatch
from src.errors import UserError
from src.models.clip2video import Clip2Video
from src.models.heads.mean import MeanHead
from src.models.heads.seq_lstm import SeqLstmHead
from src.models.heads.seq_transf import SeqTransfHead
from src.models.heads.tab import TabHead
from src.models.heads.tight import TightTransfHead
from tests.head_host import host_of
from tests.tiny_clip import tiny_arch

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "mean": {"temporal_block": False, "difference_block": False, "head": MeanHead},
    "mean_aligned": {"temporal_block": False, "difference_block": False, "alignment_tokens": "frames"},
    "sequence": {"difference_block": False, "head": MeanHead},
    "raw": {"difference": "raw", "head": MeanHead},
    "mlp": {"difference": "mlp", "head": MeanHead},
    "lstm": {"head": SeqLstmHead},
    "twice": {"head": partial(SeqTransfHead, temporal_layers=1)},
    "joint": {"head": partial(TightTransfHead, temporal_layers=1)},
    "temporal_tokens": {"difference_block": False, "alignment_tokens": "temporal"},
}


def make(**options: Any) -> Clip2Video:
    torch.manual_seed(0)
    return Clip2Video(arch=tiny_arch(), num_frames=5, max_words=6, temporal_layers=2, **options).eval()


def texts(count: int = 3) -> TextBatch:
    torch.manual_seed(1)
    tokens = torch.randint(1, 60, (count, 6))
    tokens[:, 0], tokens[:, 4] = 62, 63
    mask = torch.ones(count, 6).bool()
    mask[:, 5] = False
    return TextBatch(tokens, mask, torch.arange(count), torch.arange(count))


def videos(lengths: tuple[int, ...] = (5, 3, 4)) -> VideoBatch:
    torch.manual_seed(2)
    mask = torch.arange(5)[None] < torch.tensor(lengths)[:, None]
    frames = torch.randint(0, 256, (len(lengths), 5, 3, 16, 16), dtype=torch.uint8)
    return VideoBatch(ids=torch.arange(len(lengths)), frames_BTCHW=frames, mask_BT=mask)


def test_published_size() -> None:
    with torch.device("meta"):
        model = Clip2Video(arch="ViT-B-32-quickgelu")
    assert len(model.state_dict()) == 380
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 170_238_209
    assert model.attention_heads == 8


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_trained_parameter_has_a_gradient(variant: str) -> None:
    model = make(**VARIANTS[variant])
    model.loss(model.encode_text(texts()), model.encode_video(videos()))["loss"].backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_video_is_the_same_alone_and_in_a_batch(variant: str) -> None:
    model, text, video = make(**VARIANTS[variant]), texts(), videos()
    together = model.similarity(model.encode_text(text), model.encode_video(video))
    for i, j in itertools.product(range(3), range(3)):
        one = model.encode_text(text.map(lambda t, i=i: t[i : i + 1]))
        alone = model.encode_video(video.map(lambda t, j=j: t[j : j + 1]))
        torch.testing.assert_close(model.similarity(one, alone)[0, 0], together[i, j], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_embeddings_ignore_what_padded_frames_and_words_hold() -> None:
    model, text, video = make(), texts(), videos()
    assert video.frames_BTCHW is not None
    assert video.mask_BT is not None
    frames, tokens = video.frames_BTCHW.clone(), text.tokens_BL.clone()
    frames[~video.mask_BT] = 99
    tokens[~text.mask_BL] = 7
    changed_video = VideoBatch(ids=video.ids, frames_BTCHW=frames, mask_BT=video.mask_BT)
    changed_text = TextBatch(tokens, text.mask_BL, text.ids, text.video_ids)
    for name in ("global", "aligned"):
        assert torch.equal(model.encode_video(video).parts[name], model.encode_video(changed_video).parts[name])
        torch.testing.assert_close(model.encode_text(text).parts[name], model.encode_text(changed_text).parts[name])


@torch.no_grad()
def test_masks_are_not_changed() -> None:
    model, text, video = make(), texts(), videos()
    before = text.mask_BL.clone(), video.mask_BT.clone()  # type: ignore[union-attr]
    model.encode_text(text)
    model.encode_video(video)
    assert torch.equal(text.mask_BL, before[0])
    assert torch.equal(video.mask_BT, before[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_video_without_frames_gives_finite_loss_and_gradients(variant: str) -> None:
    model = make(**VARIANTS[variant])
    loss = model.loss(model.encode_text(texts()), model.encode_video(videos((5, 0, 1))))["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@torch.no_grad()
def test_loss_and_score_weigh_the_branches() -> None:
    model = make(head=partial(TabHead, global_weight=0.3))
    assert isinstance(model.head, TabHead)
    text, video = model.encode_text(texts()), model.encode_video(videos())
    losses = model.loss(text, video)
    torch.testing.assert_close(losses["loss"], 0.3 * losses["global"] + 0.7 * losses["aligned"])
    together, aligned = (model.head.branch(n, text, video, model.tower.logit_scale) for n in ("global", "aligned"))
    scores = 0.3 * together + 0.7 * aligned
    torch.testing.assert_close(model.similarity(text, video), scores)


@torch.no_grad()
def test_alignment_follows_its_formula() -> None:
    torch.manual_seed(0)
    block = TabHead(host_of(width=4, num_frames=5, max_words=5), num_centers=3)
    x, mask = torch.randn(1, 5, 4), torch.tensor([[True, True, False, True, False]])
    weights = torch.softmax(x @ block.assignment.T, -1)
    residuals = []
    for k in range(3):
        r = sum(weights[0, n, k] * (x[0, n] - block.residual[k]) for n in range(5) if mask[0, n])
        residuals.append(r / r.norm())
    mean = torch.stack(residuals).mean(0)
    torch.testing.assert_close(block.describe(x, mask)[0], mean / mean.norm())


@torch.no_grad()
def test_difference_tokens_alternate() -> None:
    model = make(difference="raw", head=MeanHead)
    frames, mask = torch.randn(1, 3, 32), torch.tensor([[True, True, False]])
    z = model.difference(frames, mask, model.position)
    torch.testing.assert_close(z.tokens_BSD[0, 1], frames[0, 1] - frames[0, 0])
    torch.testing.assert_close(z.tokens_BSD[0, ::2], frames[0])
    # The difference after the last valid frame counts as that frame does.
    assert z.mask_BS[0].tolist() == [True, True, True, True, False]
    assert torch.equal(z.position_SD[3], model.position.weight[1])
    assert torch.equal(z.type_SD[0], model.difference.kind.weight[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temporal_block": False}, "difference_block=true needs model.temporal_block=true"),
        (
            {"temporal_block": False, "difference_block": False},
            "alignment_tokens=difference needs model.temporal_block=true, found false; set model.alignment_tokens=fr",
        ),
        ({"difference_block": False}, "model.alignment_tokens=temporal"),
        ({"num_frames": 2}, "at least 3"),
        ({"num_frames": 1, "head": MeanHead}, "at least 2"),
        ({"temporal_layers": 0}, "model.temporal_layers=0, expected at least 1"),
        ({"num_frames": 11}, "model.num_frames=10 or less"),
    ],
)
def test_contradictions_name_the_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Clip2Video(**({"arch": tiny_arch(), "num_frames": 5} | options))
