"""Collaborative Experts: missing experts, order of gating, options, concatenation."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from src.batch import TextEmbedding, VideoBatch
from src.convert.collaborative_experts import from_upstream, to_upstream
from src.errors import UserError
from src.models.base import gather_items
from src.models.collaborative_experts import CollaborativeExperts, mean_similarity, side_by_side
from src.models.collaborative_gating import CollaborativeGating
from src.models.concat_experts import ConcatExperts
from src.models.gating import GatedReasoning
from src.models.weights import load_strictly
from tests.tiny_ce import EXPERTS, OPTIONS, TEXT, make, scores, texts, videos

WIRINGS = ["pairwise", "pairwise-star", "pairwise-star-specific", "pairwise-star-tensor", "triplet", "none"]
CONCAT = {name: value for name, value in OPTIONS.items() if name not in ("shared_dim", "g_layers")}


def with_features(batch: VideoBatch, **features: Tensor) -> VideoBatch:
    return replace(batch, features={**batch.features, **features})


def test_experts_are_ordered_by_store() -> None:
    model = make()
    assert [spec.name for spec in model.pooling.specs] == ["zebra", "ocr", "scene"]
    assert [layer.fc.in_features for layer in model.reduce] == [6, 10, 7]


def test_input_spec_pads_every_temporal_feature() -> None:
    spec = make(max_tokens={"text": 9, "ocr": 4}).input_spec
    assert [(s.name, s.max_steps, s.pad) for s in spec.experts if s.temporal] == [("ocr", 4, "max")]
    assert [(s.name, s.max_steps, s.pad) for s in spec.text_features] == [("words", 9, "max")]
    assert spec.tokenizer is None
    assert [s.store for s in spec.experts] == ["alpha", None, None]


@pytest.mark.parametrize("gating", WIRINGS)
def test_missing_expert_has_no_say_and_no_gradient(gating: str) -> None:
    model = make(gating=gating).eval()
    batch = videos(12)
    for x in batch.features.values():
        x.requires_grad_()
    s_TV = scores(model, texts(12), batch)
    s_TV.square().sum().backward()
    for name, present_B in zip(batch.features, batch.present_BE.T, strict=True):
        gradient = batch.features[name].grad.flatten(1).abs().sum(1)
        assert (gradient[~present_B] == 0).all()
        assert (gradient[present_B] > 0).all()
    lacks_B = ~batch.present_BE[:, 0]
    other = batch.features["scene"].detach().clone()
    other[lacks_B] = float("nan")  # whatever stands there
    assert torch.equal(scores(model, texts(12), with_features(batch, scene=other)), s_TV)


def test_weights_are_shared_out_among_the_experts_that_are_there() -> None:
    weights_TM, present_VM = torch.tensor([[0.25, 0.75]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    text_TD = side_by_side([torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0]])], weights_TM)
    video_VD = side_by_side([torch.tensor([[0.6, 0.8]] * 2), torch.tensor([[0.5]] * 2)], present_VM)
    s_TV = mean_similarity(text_TD, weights_TM, video_VD, present_VM)
    torch.testing.assert_close(s_TV, torch.tensor([[0.25 * 0.6 + 0.75 * 0.5, 0.6]]))


def test_video_without_experts_is_refused() -> None:
    batch = videos(4)
    batch.present_BE[2] = False
    with pytest.raises(UserError, match=r"1 videos have none of the experts zebra, ocr, scene \(positions \[2\]"):
        make().eval().encode_video(batch)


@pytest.mark.parametrize("gating", WIRINGS)
@pytest.mark.parametrize("order", ["sequential", "regrouped", "batched"])
def test_evaluation_does_not_depend_on_the_batch(gating: str, order: str) -> None:
    model = make(gating=gating, gating_order=order, h_layers=1).eval()
    text, batch = texts(7), videos(7)
    whole = model.encode_video(batch).parts["experts"], model.encode_text(text).parts["experts"]
    for row in range(7):
        one = torch.tensor([row])
        torch.testing.assert_close(model.encode_video(batch.map(lambda t, i=one: t[i])).parts["experts"], whole[0][one])
        torch.testing.assert_close(model.encode_text(text.map(lambda t, i=one: t[i])).parts["experts"], whole[1][one])


class Keep(nn.Module):
    """A gate that lets everything through and remembers what the others said."""

    def forward(self, x_VD: Tensor, q_VD: Tensor) -> Tensor:
        self.q_VD = q_VD
        return x_VD


def gated(order: str, wiring: str, gates: nn.ModuleList, **options: Any) -> list[Tensor]:
    torch.manual_seed(3)
    gating = CollaborativeGating(3, 8, wiring=wiring, order=order, **options).eval()
    experts = list(torch.randn(3, 5, 8))
    return gating(experts, torch.tensor([[1.0, 1, 1], [1, 0, 1], [0, 1, 1], [0, 0, 1], [1, 1, 0]]), gates)


@pytest.mark.parametrize("wiring", WIRINGS[:-1])
@pytest.mark.parametrize("include_self", [True, False])
def test_orders_differ_by_what_later_experts_see(wiring: str, include_self: bool) -> None:
    asked = []
    for order in ("sequential", "batched"):
        gates = nn.ModuleList(Keep() for _ in range(3))
        gated(order, wiring, gates, include_self=include_self, h_layers=1)
        asked.append(torch.stack([gate.q_VD for gate in gates]))
    torch.testing.assert_close(*asked)
    torch.manual_seed(4)
    real = nn.ModuleList(GatedReasoning(8) for _ in range(3)).eval()
    one, other = (
        torch.stack(gated(order, wiring, real, include_self=include_self)) for order in ("sequential", "batched")
    )
    torch.testing.assert_close(one[0], other[0])
    same = torch.allclose(one[1:], other[1:], atol=1e-5)
    assert same == wiring.startswith("pairwise-star")


@pytest.mark.parametrize("wiring", ["pairwise", "triplet"])
@pytest.mark.parametrize("options", [{}, {"include_self": False, "g_layers": 1, "h_layers": 2}, {"norm": False}])
def test_regrouping_gives_the_numbers_of_pair_after_pair(wiring: str, options: dict[str, Any]) -> None:
    torch.manual_seed(5)
    regrouped = CollaborativeGating(3, 8, wiring=wiring, **options).double()
    published = CollaborativeGating(3, 8, wiring=wiring, order="sequential", **options).double()
    published.load_state_dict(regrouped.state_dict())
    gates = nn.ModuleList(GatedReasoning(8) for _ in range(3)).double()
    x_MVD, weights = torch.randn(3, 6, 8).double(), torch.randn(3, 6, 8).double()
    present_VM = (torch.rand(6, 3) > 0.3).double()
    found = []
    for module in (regrouped, published):
        own, x = copy.deepcopy(gates), x_MVD.clone().requires_grad_()
        y_MVD = torch.stack(module(list(x), present_VM, own))
        (y_MVD * weights).sum().backward()
        gradients = [p.grad for p in (*module.parameters(), *own.parameters())]
        found.append([y_MVD, x.grad, *gradients, *module.buffers(), *own.buffers()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("include_self", [True, False])
def test_batched_order_sees_the_pairs_that_are_there_all_at_once(include_self: bool) -> None:
    torch.manual_seed(6)
    gating = CollaborativeGating(3, 8, order="batched", include_self=include_self).double()
    plain = copy.deepcopy(gating)
    x_MVD, weights = torch.randn(3, 6, 8).double().requires_grad_(), torch.randn(6, 3, 8).double()
    present_VM = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 1], [0, 0, 1], [1, 1, 0], [1, 1, 1]]).double()
    gates = nn.ModuleList(Keep() for _ in range(3))
    gating(list(x_MVD), present_VM, gates)
    q_VMD = torch.stack([gate.q_VD for gate in gates], 1)
    there = [(v, m, j) for v, m, j in product(range(6), range(3), range(3)) if present_VM[v, m] * present_VM[v, j]]
    there = [(v, m, j) for v, m, j in there if include_self or j != m]
    u_RD = plain.shared(plain.first(torch.stack([torch.cat([x_MVD[m, v], x_MVD[j, v]]) for v, m, j in there])))
    expected = torch.zeros_like(q_VMD)
    for v, m in product(range(6), range(3)):
        rows = [row for row, pair in enumerate(there) if pair[:2] == (v, m)]
        if rows:
            expected[v, m] = u_RD[rows].mean(0)
    torch.testing.assert_close(q_VMD, expected)
    for module, q in ((gating, q_VMD), (plain, expected)):
        (q * weights).sum().backward()
        gradient, x_MVD.grad = x_MVD.grad, None
        module.found = [gradient, *(p.grad for p in module.parameters()), *module.buffers()]
    for one, other in zip(gating.found, plain.found, strict=True):
        torch.testing.assert_close(one, other)


def test_videos_of_a_single_expert_have_no_pairs_to_take_statistics_from() -> None:
    gating = CollaborativeGating(3, 8, order="batched", include_self=False)
    before = [buffer.clone() for buffer in gating.buffers()]
    x_MVD = torch.randn(3, 4, 8, requires_grad=True)
    gates = nn.ModuleList(GatedReasoning(8) for _ in range(3))
    torch.stack(gating(list(x_MVD), torch.eye(3)[[0, 1, 2, 0]], gates)).sum().backward()
    for one, other in zip(before, gating.buffers(), strict=True):
        assert torch.equal(one, other)
    for name, parameter in gating.named_parameters():  # others may have some: all ranks must wait for the same ones
        assert parameter.grad is not None, name
        assert (parameter.grad == 0).all(), name


@pytest.mark.parametrize(
    "options",
    [*({"gating": wiring} for wiring in WIRINGS), {"gating": "none", "project": False}, {"h_layers": 2, "mish": False}],
    ids=str,
)
def test_checkpoint_survives_the_published_names(options: dict[str, Any], tmp_path) -> None:
    model, other = make(**options).eval(), make(**options).eval()
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    torch.save(to_upstream(model.state_dict()), tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    load_strictly(other, from_upstream(state), "model.pt")
    assert torch.equal(scores(other, texts(5), videos(5)), scores(model, texts(5), videos(5)))


def test_count_of_the_published_model() -> None:
    dims = {"audio": 128, "face": 512, "flow": 1024, "inst": 2048, "ocr": 300, "r2p1d": 512, "rgb": 2048}
    dims |= {"scene": 2208, "speech": 300}
    clusters = {"text": 28, "ocr": 43, "audio": 8, "speech": 19}
    experts = {name: {"dim": dim, "temporal": name in clusters, "max_steps": 9} for name, dim in dims.items()}
    with torch.device("meta"):
        model = CollaborativeExperts(
            experts=experts, text=TEXT | {"dim": 768}, vlad_clusters=clusters, max_tokens={}, text_ghost_clusters=1
        )
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 183_448_607


def test_training_lowers_the_loss() -> None:
    for order in ("sequential", "regrouped", "batched"):
        model = make(gating_order=order).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
        losses = []
        for _ in range(15):
            optimizer.zero_grad()
            loss = model.loss(model.encode_text(texts(8)), model.encode_video(videos(8)))["loss"]
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]


def test_equal_weights_leave_the_mixture_without_gradient() -> None:
    for options in ({"mixture_weights": False}, {"keep_missing": True}):
        model = make(**options).train()
        model.loss(model.encode_text(texts(6)), model.encode_video(videos(6)))["loss"].backward()
        lacking = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert lacking == ["mixture.weight", "mixture.bias"] == model._ddp_params_and_buffers_to_ignore
    weights_TM = make(mixture_weights=False).encode_text(texts(6)).parts["weights"]
    assert (weights_TM == 1 / 3).all()


def test_kept_missing_experts_count_like_all_others() -> None:
    model = make(keep_missing=True, gating="none").eval()
    text, video = model.encode_text(texts(4)), model.encode_video(videos(4))
    expected = text.parts["experts"] @ video.parts["experts"].T
    assert torch.equal(model.similarity(text, video), expected)


def test_captions_of_a_video_share_their_mean_score() -> None:
    model = make(test_caption_mode="avg").eval()
    text, video = model.encode_text(texts(6)), model.encode_video(videos(3))
    text = replace(text, video_ids=torch.tensor([2, 0, 2, 1, 0, 2]))
    plain, score = model.similarity(text, video), model.scorer(text, video)
    averaged = torch.cat([score(text[:4], video), score(text[4:], video)])
    for own in ([1, 4], [0, 2, 5], [3]):
        torch.testing.assert_close(averaged[own], plain[own].mean(0).expand(len(own), -1))


def test_mean_of_words_leaves_padding_out() -> None:
    model = make(text_pooling="mean").eval()
    batch = texts(6)
    pooled_TI = model.text_pooling(batch)
    torch.testing.assert_close(pooled_TI[2], batch.features["words"][2, :3].mean(0))
    assert pooled_TI.shape == (6, 4)


def test_single_vectors_of_captions_are_taken_as_they_are() -> None:
    model = make(text={"name": "words", "dim": 4}).eval()
    batch = replace(texts(6), features={"words": torch.randn(6, 4)}, feature_masks={})
    assert model.text_pooling(batch) is batch.features["words"]
    assert scores(model, batch, videos(6)).isfinite().all()


def test_noise_is_the_same_for_a_video_in_evaluation_only() -> None:
    model = make(randomise=["scene", "text"]).eval()
    first = scores(model, texts(5), videos(5))
    assert torch.equal(scores(model, texts(5, seed=9), with_features(videos(5), scene=torch.ones(5, 7))), first)
    one = videos(5).map(lambda t: t[3:4])
    torch.testing.assert_close(scores(model, texts(5), one), first[:, 3:4])
    model.train()
    assert not torch.equal(scores(model, texts(5), videos(5)), scores(model, texts(5), videos(5)))


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"experts": {}}, "reads experts, found none"),
    ({"text": {}}, "reads precomputed text features, found none"),
    ({"vlad_clusters": {"text": 3}}, r"'ocr' has several vectors.*\+model.vlad_clusters.ocr=16"),
    ({"experts": {"ocr": {"dim": 5, "temporal": True}, "scene": {"dim": 7}}}, r"steps of 'ocr' is not known"),
    ({"text": {"name": "words", "dim": 4, "temporal": True}}, r"\+model.max_tokens.text=32"),
    ({"vlad_clusters": {"ocr": 2}}, "6 tokens a caption, expected one token without clusters"),
    (
        {"experts": {"scene": EXPERTS["scene"]}, "gating": "pairwise"},
        "gating=pairwise with 1 expert, expected at least 2",
    ),
    (
        {"experts": {k: EXPERTS[k] for k in ("scene", "zebra")}, "gating": "triplet", "include_self": False},
        "2 experts, expected at least 3",
    ),
    ({"gating": "pairs"}, "found model.gating='pairs', expected one of pairwise, "),
    ({"project": False, "gating": "pairwise"}, "gating=pairwise with model.project=false"),
    ({"g_layers": 0}, "g_layers=0"),
    ({"randomise": ["smell"]}, "found 'smell', expected some of ocr, scene, zebra, text"),
]


@pytest.mark.parametrize(("options", "message"), ERRORS, ids=[message[:30] for _, message in ERRORS])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**options)


def test_gating_is_chosen_by_what_there_is() -> None:
    assert make().gating.wiring == "pairwise"
    assert make(project=False).gating is None
    model = make(experts={"scene": EXPERTS["scene"]}).eval()
    assert model.gating is None
    batch = replace(videos(4), present_BE=torch.ones(4, 3, dtype=torch.bool))
    assert scores(model, texts(4), batch).isfinite().all()


def test_single_pair_cannot_be_normalised() -> None:
    model = make().train()
    with pytest.raises(UserError, match="holds 1 item, expected at least 2"):
        model.encode_video(videos(1))
    with pytest.raises(UserError, match="holds 1 item, expected at least 2"):
        model.encode_text(texts(1))


def test_more_than_ten_experts_are_allowed() -> None:
    experts = {f"e{index}": {"dim": 3} for index in range(12)}
    model = make(experts=experts).eval()
    batch = VideoBatch(torch.arange(4), features={name: torch.randn(4, 3) for name in experts})
    assert scores(model, texts(4), batch).isfinite().all()


@pytest.mark.parametrize("longer", ["text", "video"])
def test_concatenation_fills_the_shorter_side_with_zeros(longer: str) -> None:
    clusters = {"text": 20 if longer == "text" else 2, "ocr": 2}
    model = ConcatExperts(**CONCAT | {"vlad_clusters": clusters}).eval()
    text, video = model.encode_text(texts(3)), model.encode_video(videos(3))
    s_TV = model.similarity(text, video)
    short = min(4 * clusters["text"], 6 + 10 + 7)
    own = model.text_pooling(texts(3))[:, :short] @ torch.cat(model.pooling(videos(3))[0], 1)[:, :short].T
    torch.testing.assert_close(s_TV, own)
    wrong = ConcatExperts(**CONCAT | {"vlad_clusters": clusters}, upstream_bug=True).eval()
    wrong.load_state_dict(model.state_dict())
    s_TV = wrong.similarity(wrong.encode_text(texts(3)), wrong.encode_video(videos(3)))
    assert torch.equal(s_TV, torch.zeros(3, 3)) if longer == "text" else torch.allclose(s_TV, own)


def test_mixed_concatenation_has_one_embedding_on_each_side() -> None:
    model = ConcatExperts(**CONCAT, mix=True).train()
    text, video = model.encode_text(texts(4)), model.encode_video(videos(4))
    assert text.parts["experts"].shape == video.parts["experts"].shape == (4, 5 + 7 + 6)
    torch.testing.assert_close(video.parts["experts"].norm(dim=1), torch.ones(4))
    model.loss(text, video)["loss"].backward()
    lacking = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert lacking == ["mixture.weight", "mixture.bias"]


def test_captions_of_a_bank_are_scored_one_by_one() -> None:
    """Their ids are of another part, so that no mean over the test captions of the same numbers may be taken."""
    model = make(test_caption_mode="avg").eval()
    text, video, bank = model.encode_text(texts(6)), model.encode_video(videos(3)), model.encode_text(texts(4, seed=9))
    text = replace(text, video_ids=torch.tensor([2, 0, 2, 1, 0, 2]))
    assert torch.equal(model.bank_scorer(text, video)(bank, video), model.similarity(bank, video))


def test_items_in_order_are_not_copied_once_more() -> None:
    model = make().eval()
    pieces = [model.encode_text(texts(6).map(lambda t, rows=rows: t[rows])) for rows in (slice(0, 4), slice(4, 6))]
    joined = type(pieces[0]).cat(pieces)
    shuffled = [pieces[1], pieces[0], pieces[1]]
    with patch.object(TextEmbedding, "__getitem__", side_effect=AssertionError("copied")):
        assert torch.equal(gather_items(pieces).parts["experts"], joined.parts["experts"])
    assert pieces == []
    assert torch.equal(gather_items(shuffled).parts["experts"], joined.parts["experts"])


@pytest.mark.parametrize("gating", WIRINGS)
@pytest.mark.parametrize("order", ["sequential", "regrouped", "batched"])
def test_mixed_precision_trains_with_statistics_in_full(gating: str, order: str) -> None:
    found = []
    for is_mixed in (False, True):
        model = make(gating=gating, gating_order=order).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            text, video = model.encode_text(texts(8)), model.encode_video(videos(8))
        text, video = (one.map(lambda t: t.float() if t.is_floating_point() else t) for one in (text, video))
        loss = model.loss(text, video)["loss"]
        loss.backward()
        assert all(x.dtype == torch.float32 for name, x in model.named_buffers() if "running" in name)
        found.append(loss.detach())
    torch.testing.assert_close(found[1], found[0], rtol=0.1, atol=0.02)
