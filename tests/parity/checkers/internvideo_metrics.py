"""Evaluation of InternVideo's retrieval code: published rules, DSL, and QB-Norm of the authors' code."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.metrics.dual_softmax import DualSoftmax
from src.metrics.legacy import Metrics, group_scores, multi_sentence, published_rules, single_sentence
from src.metrics.qb_norm import InvertedSoftmax, QbNorm, QueryBank
from src.metrics.rescoring import Banks, Rescored, Rescoring, rescore
from src.metrics.result import RetrievalResult
from src.metrics.retrieval import MatrixScore, evaluate_matrix
from src.metrics.score_blocks import Scores
from src.reports.rescored import by_published_rules
from tests.parity.cases import Case, assert_close

OURS = {"MedR": "MdR", "MeanR": "MnR", "geometric_mean_R1-R5-R10": "GeoMean"}
SIDES = ("t2v", "v2t")


def same(found: Metrics, expected: dict[str, Any], name: str) -> None:
    for key, value in expected.items():
        assert np.isclose(found[key], value, rtol=1e-9, atol=0), f"{name} {key}: {found[key]}, expected {value}"


def rescored(
    method: Rescoring, s_QV: Tensor, owner: Tensor, banks: Banks | None = None, **options: Any
) -> tuple[Scores, RetrievalResult, Rescored]:
    scores = Scores(MatrixScore(s_QV), owner, s_QV.shape[1], options.get("mask"))
    plain = evaluate_matrix(s_QV, owner, s_QV.shape[1], **options)
    return scores, plain, rescore(method, scores, plain, banks, block=5)


def check_eval(case: Case) -> None:
    """`eval_epoch` run end to end on given embeddings, of one or of several captions per video."""
    counts = case.meta["caps_per_video"]
    text, video = case.tensors["in/text"], case.tensors["in/video"]
    s_QV = case.meta["scale"] * text @ video.T
    assert_close(s_QV, case.tensors["out/sim"], name="scores")
    owner = torch.arange(len(text)) if counts is None else torch.repeat_interleave(torch.tensor(counts))
    method = DualSoftmax(temperature=1.0, v2t="upstream")
    scores, _, found = rescored(method, case.tensors["out/sim"], owner)
    every = slice(0, len(video))
    tile = case.tensors["out/sim"].double()
    assert found.new.v2t is not None
    assert_close(found.new.t2v(tile, slice(0, len(text)), every).float(), case.tensors["out/sim_dsl_t2v"], name="DSL")
    own = DualSoftmax(temperature=1.0).new_scores(scores, None).v2t
    assert own is not None
    assert_close(own(tile, slice(0, len(text)), every).T.float(), case.tensors["out/sim_dsl_v2t"], name="DSL v2t")
    published = by_published_rules(scores, found)
    for side in SIDES:
        expected = {key: value for key, value in case.meta["metrics"][side].items() if key not in ("MR", "Std_Rank")}
        same(published["plain"][side], expected, side)  # type: ignore[arg-type]
        expected = {key: case.meta["metrics"][f"dsl_{side}"][key] for key in expected}
        same(published[found.label][side], expected, f"DSL {side}")  # type: ignore[arg-type]
        mean = case.meta["metrics"][f"dsl_{side}"]["MeanR"]
        if counts is None:  # no ties: our rule has the same ranks
            assert np.isclose(getattr(found.result, side)["MnR"], mean, rtol=1e-9)
    first = published["plain"]["t2v"]["R1"]
    assert np.isclose(first, case.meta["returned_R1"], rtol=1e-9)


def flat(x_GCV: np.ndarray, counts: list[int]) -> np.ndarray:
    """Rows of the captions that exist; the others are padded with minus infinity."""
    return np.concatenate([group[:count] for group, count in zip(x_GCV, counts, strict=True)])


def check_ties(case: Case) -> None:
    square = case.tensors["in/x"].numpy()
    found = single_sentence(square)
    same(found, case.meta["square"], "square")
    assert found["cols"] == case.meta["square_ranks_with_tie_duplicates"]
    assert len(square) == case.meta["n_rows"]
    assert len(case.meta["square_ranks_with_tie_duplicates"]) == case.meta["n_rank_entries"]
    (name,) = (key for key in case.meta if key.startswith("constant_") and not key.endswith("_ranks"))
    rows, columns = map(int, name.removeprefix("constant_").split("x"))
    constant = single_sentence(np.zeros((rows, columns), dtype=np.float32))
    same(constant, case.meta[name], name)
    assert constant["cols"] == case.meta[f"{name}_ranks"]
    # Ties of several captions: the published order is undefined, so only bounds can be checked.
    counts = case.meta["multi_lens"]
    scores, owner = flat(case.tensors["in/x3"].numpy(), counts), torch.repeat_interleave(torch.tensor(counts))
    grouped = case.tensors["out/v2t_sim_from_x3"].numpy()
    assert np.array_equal(group_scores(scores, np.array(counts)), grouped)
    most, least = (
        evaluate_matrix(scores, owner, scores.shape[1], ties=ties).t2v for ties in ("optimistic", "pessimistic")
    )
    for bounds in (case.meta["multi"], multi_sentence(scores, np.array(counts))[0]):
        for key in ("R1", "R5", "R10"):
            assert least[key] - 1e-4 <= bounds[key] <= most[key] + 1e-4, key
        assert most["MnR"] - 1e-9 <= bounds["MeanR"] <= least["MnR"] + 1e-9


def check_multi(case: Case) -> None:
    counts = np.array(case.meta["lens"])
    scores = flat(case.tensors["in/x3"].numpy(), case.meta["lens"])
    assert np.array_equal(group_scores(scores, counts), case.tensors["out/v2t_sim"].numpy())
    to_video, to_text = multi_sentence(scores, counts)
    same(to_video, case.meta["t2v"], "t2v")
    same(to_text, case.meta["v2t"], "v2t")
    owner = np.repeat(np.arange(len(counts)), counts)
    shuffled = np.random.default_rng(0).permutation(len(owner))
    for found, side in zip(published_rules(scores[shuffled], owner[shuffled]), SIDES, strict=True):
        same(found, case.meta[side], f"{side} in another order")


def rounded(found: dict[str, float], expected: dict[str, float], name: str) -> None:
    """The published code rounds to one decimal."""
    for key, value in expected.items():
        assert abs(found[OURS.get(key, key)] - value) <= 0.05 + 1e-9, f"{name} {key}: {found}, expected {value}"


def check_qb_norm(case: Case) -> None:
    test, train = case.tensors["in/test_test"], case.tensors["in/train_test"]
    videos, each = test.shape[1], case.meta["captions_per_video"]
    owner = torch.arange(len(test)) // each
    mask = case.tensors["in/query_masks"].flatten() > 0
    for name, expected in case.group("out").items():
        if name.startswith("active_videos_k"):
            hubs = QueryBank.of(train.split(7), videos, 20.0, int(name.removeprefix("active_videos_k"))).hubs_G
            assert torch.equal(hubs.nonzero()[:, 0], expected)
    for name in [key.removeprefix("out/qb_") for key in case.tensors if key.startswith("out/qb_")]:
        beta, k = (float(part.lstrip("betak")) for part in name.split("_"))
        method = QbNorm(beta=beta, k=int(k))
        banks = Banks("captions of train", train.split(9))
        scores, plain, found = rescored(method, test, owner, banks, mask=mask, ties="average")
        rounded(found.result.t2v, case.meta["metrics"][name], name)
        rounded(plain.t2v, case.meta["metrics"]["before"], "before")
        rounded(plain.v2t, case.meta["metrics"]["before_v2t"], "before v2t")
        assert found.metrics("v2t") is None
        tile = found.new.t2v(test, slice(0, len(test)), slice(0, videos))
        changed_Q = (tile != test).any(1)
        normalised = (beta * tile).exp().where(changed_Q[:, None], tile)
        assert_close(normalised, case.tensors[f"out/qb_{name}"], name=name)
    (name,) = (key for key in case.tensors if key.startswith("out/static_inverted_softmax_beta"))
    beta = float(name.removeprefix("out/static_inverted_softmax_beta"))
    static = InvertedSoftmax(beta=beta).new_scores(scores, Banks("captions of train", train.split(9))).t2v
    tile = static(test, slice(0, len(test)), slice(0, videos))
    assert_close((beta * tile).exp(), case.tensors[name], name="inverted softmax")
    rounded(evaluate_matrix(test, owner, videos, ties="average").t2v, case.meta["metrics"]["before_nomask"], "no mask")
    tied = evaluate_matrix(case.tensors["in/test_test_ties"], owner, videos, mask=mask, ties="average")
    for side in SIDES:
        rounded(getattr(tied, side), case.meta["metrics"][f"ties_{side}"], f"ties {side}")


CHECKERS = {
    "internvideo": {
        "eval_*": check_eval,
        "metrics_ties": check_ties,
        "metrics_multi": check_multi,
        "qbnorm": check_qb_norm,
    }
}
