"""Results by domain: the ranks of a domain's queries in the whole gallery."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from src.errors import UserError
from src.metrics.domains import domain_report
from src.metrics.retrieval import RetrievalResult, evaluate_matrix
from src.reports.domains import domains_table

OWNER = [0, 0, 1, 2, 3, 3]
DOMAINS = ["Games", "Cooking", "Games", None, "Driving"]  # the last video has no caption


def result() -> RetrievalResult:
    rng = np.random.default_rng(3)
    return evaluate_matrix(rng.standard_normal((6, 5)).astype(np.float32), torch.tensor(OWNER), 5)


def test_numbers_by_hand() -> None:
    whole = result()
    report = domain_report(whole, DOMAINS)
    assert list(report) == ["Games", "Cooking", "(none)"]
    ranks = whole.t2v_ranks.numpy()
    games = [rank for rank, video in zip(ranks, OWNER, strict=True) if DOMAINS[video] == "Games"]
    row = report["Games"]
    assert (row["num_videos"], row["num_captions"]) == (2, 3)
    assert row["t2v"]["R1"] == pytest.approx(100 * np.mean([rank == 1 for rank in games]))
    assert row["t2v"]["MnR"] == pytest.approx(np.mean(games))
    assert row["t2v"]["MdR"] == np.median(games)
    videos = [
        rank for rank, video in zip(whole.v2t_ranks.tolist(), whole.v2t_ids.tolist(), strict=True) if video in (0, 2)
    ]
    assert row["v2t"]["R5"] == pytest.approx(100 * np.mean([rank <= 5 for rank in videos]))
    assert set(row["v2t"]) == {"R1", "R5", "R10", "R50", "MdR", "MnR", "GeoMean"}


def test_domains_add_up_to_the_whole() -> None:
    whole = result()
    report = domain_report(whole, DOMAINS)
    for side, size in (("t2v", "num_captions"), ("v2t", "num_videos")):
        total = sum(row[size] for row in report.values())
        for key in ("R1", "R5", "MnR"):
            mean = sum(row[side][key] * row[size] for row in report.values()) / total
            assert mean == pytest.approx(getattr(whole, side)[key])


def test_table() -> None:
    table = domains_table(domain_report(result(), DOMAINS))
    assert table.columns[:3] == ("", "videos", "captions")
    assert [row[:3] for row in table.rows] == [("Games", "2", "3"), ("Cooking", "1", "1"), ("(none)", "1", "2")]
    assert "among all videos" in table.text()


def test_other_videos() -> None:
    with pytest.raises(UserError, match="domains of 2 videos, expected at least 5"):
        domain_report(result(), DOMAINS[:2])
