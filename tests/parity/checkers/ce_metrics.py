"""Evaluation of Collaborative Experts: masked captions, averaged ties, QB-Norm, labels as queries, rankings, logs."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.metrics.classification import classify
from src.metrics.qb_norm import QbNorm, QueryBank
from src.metrics.rescoring import Banks, rescore
from src.metrics.retrieval import MatrixScore, RetrievalResult, evaluate_matrix
from src.metrics.score_blocks import Scores
from src.reports.compare import compare_runs, mean_std
from src.reports.pentathlon import ranking_lines, valid_queries
from src.reports.table import METRIC_TITLES
from tests.parity.cases import Case, assert_close

OURS = {"MedR": "MdR", "MeanR": "MnR", "geometric_mean_R1-R5-R10": "GeoMean"}
SIDES = ("t2v", "v2t")
ROUNDING = 1e-9  # means in another order of summation


def same_metrics(found: dict[str, float], expected: dict[str, Any], name: str) -> None:
    for key, value in expected.items():
        got = found[OURS.get(key, key)]
        assert np.isclose(got, float(value), rtol=ROUNDING, atol=1e-12), f"{name} {key}: {got}, expected {float(value)}"


def ranked(scores: Tensor, mask_VC: Tensor | None, **options: Any) -> RetrievalResult:
    videos = scores.shape[1]
    owner = torch.arange(len(scores)) // (len(scores) // videos)
    mask = None if mask_VC is None else mask_VC.flatten() > 0
    return evaluate_matrix(scores, owner, videos, mask=mask, ties="average", **options)


def check_metrics(case: Case) -> None:
    scores, mask = case.tensors["in/sims"], case.tensors["in/query_masks"]
    for kind, chosen in (("masked", mask), ("unmasked", None)):
        for block in (1024, 7):
            result = ranked(scores, chosen, block=block)
            for side in ("t2v", "v2t"):
                same_metrics(getattr(result, side), case.meta["metrics"][f"{side}/{kind}"], f"{side}/{kind}")
                same_metrics(getattr(result, side), case.group(f"out/{side}/{kind}"), f"{side}/{kind}")


def check_classification(case: Case) -> None:
    positive = case.tensors["in/query_masks"].numpy() > 0
    result = classify(case.tensors["in/sims"].numpy(), positive, upstream_order=True)
    same_metrics(result.metrics, case.meta["metrics"], "labels")
    same_metrics(result.metrics, case.group("out/rac"), "labels")


def check_qb_norm(case: Case) -> None:
    scores, beta, k = case.tensors["in/test_test"], case.meta["hyper"]["beta"], case.meta["hyper"]["k"]
    videos = scores.shape[1]
    bank = QueryBank.of(case.tensors["in/train_test"].split(7), videos, beta, k)
    assert torch.equal(torch.nonzero(bank.hubs_G)[:, 0], case.tensors["out/retrieved_videos"])
    owner = torch.arange(len(scores)) // (len(scores) // videos)
    plain = evaluate_matrix(MatrixScore(scores), owner, videos, ties="average", block=5, topk=videos)
    banks = Banks("train", case.tensors["in/train_test"].split(7))
    found = rescore(QbNorm(beta, k), Scores(MatrixScore(scores), owner, videos), plain, banks, block=5)
    same_metrics(plain.t2v, case.group("out/before"), "before")
    same_metrics(found.result.t2v, case.group("out/after"), "after")
    assert found.result.v2t == plain.v2t
    expected = case.tensors["out/normalised"]
    assert torch.equal(found.result.t2v_topk[0], expected.argsort(1, descending=True)), "another order of the videos"
    changed_Q = bank.hubs_G[plain.t2v_topk[0][:, 0]]
    assert int(changed_Q.sum()) == found.settings["changed_captions"]
    tile = found.new.t2v(scores.double(), slice(0, len(scores)), slice(0, videos))
    assert_close((beta * tile).exp().where(changed_Q[:, None], tile).float(), expected, name="normalised")


def check_rankings(case: Case) -> None:
    scores, mask = case.tensors["in/sims"], case.tensors["in/query_masks"]
    result = ranked(scores, mask, topk=case.meta["hyper"]["topk"])
    expected = case.tensors["out/topk"]
    assert torch.equal(result.t2v_topk[0], expected)
    assert valid_queries(result).tolist() == torch.nonzero(mask.flatten())[:, 0].tolist()
    lines = ranking_lines(result, scores.shape[1], case.meta["hyper"]["topk"])
    assert lines == [",".join(map(str, row)) for row in expected.tolist()]


def check_log_summary(case: Case) -> None:
    """The lines of a log as runs of one configuration: the table of `task=compare` prints their mean and deviation.

    A run that is tested at the end logs each value once, one of a fixed number of epochs once per epoch.
    """
    seeds = logged(case.meta["log"], case.meta["fixed_num_epochs"])
    with tempfile.TemporaryDirectory() as folder:
        runs = [write_run(Path(folder) / f"seed-{seed}", seed, found) for seed, found in seeds.items()]
        (table,) = compare_runs(runs).tables
    (row,) = table.rows
    printed = dict(zip(table.columns, row, strict=True))
    assert printed["seeds"] == ",".join(map(str, seeds))
    side, checked = "", 0
    for line in case.meta["summary"]:
        if match := re.match(r"\[([tv]2[tv])\]", line):
            side = match[1]
        elif match := re.match(r"(\w+): ([\d.]+), ([\d.]+)$", line):
            key, expected = match[1], f"{match[2]} ({match[3]})"
            heading = f"{side} {METRIC_TITLES.get(key, OURS.get(key, key))}"
            values = [found[side][OURS.get(key, key)] for found in seeds.values()]
            assert printed[heading] == mean_std(values) == expected, f"{side} {line}"
            checked += 1
    assert checked == 12, "six metrics of both directions stand in the log"


def logged(lines: list[str], epoch: int) -> dict[int, dict[str, dict[str, float]]]:
    """Seed -> direction -> metric -> what was logged for the `epoch`-th time."""
    every: dict[int, dict[tuple[str, str], list[float]]] = {}
    for line in lines:
        if match := re.search(r"random seed to (\d+)", line):
            values = every.setdefault(int(match[1]), {})
        elif match := re.search(r"(?:val|test)_([tv]2[tv])_metrics_(\w+): (\S+)", line):
            values.setdefault((match[1], OURS.get(match[2], match[2])), []).append(float(match[3]))
    return {
        seed: {side: {key: row[epoch - 1] for (its, key), row in values.items() if its == side} for side in SIDES}
        for seed, values in every.items()
    }


def write_run(folder: Path, seed: int, found: dict[str, dict[str, float]]) -> Path:
    folder.mkdir()
    sides = {side: {"GeoMean": 0.0, **found[side]} for side in SIDES}
    content = {"protocol": {"model": "M", "seed": seed}, **sides, "SumR": 0.0}
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


CHECKERS = {
    "collaborative_experts": {
        "metrics_[!c]*": check_metrics,
        "metrics_constant": check_metrics,
        "metrics_classification": check_classification,
        "qbnorm": check_qb_norm,
        "challenge_topk": check_rankings,
        "log_summary_*": check_log_summary,
    }
}
