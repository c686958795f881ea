"""Published rows beside a result: which ones, in which table, and what is said of those that do not compare."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from src.metrics.rescoring import NewScores, Rescored
from src.metrics.result import RetrievalResult
from src.metrics.retrieval import evaluate_matrix
from src.reports.published import METRICS, Setting, all_rows, published_rows, published_tables
from src.reports.rescored import Further


def result(videos: int = 4, seed: int = 0, **options: Any) -> RetrievalResult:
    scores = torch.randn(videos, videos, generator=torch.Generator().manual_seed(seed))
    return evaluate_matrix(lambda rows, columns: scores[rows, columns], torch.arange(videos), videos, **options)


def rows_of(model: str, dataset: str, split: str, setting: Setting = "fine-tuned") -> list[dict[str, Any]]:
    found = published_rows({"model": model, "dataset": dataset, "split": split}, setting)
    return [row.to_json() for row in found]


def test_every_row_is_plausible() -> None:
    assert len(all_rows()) == len({tuple(map(str, row.to_json().values())) for row in all_rows()}) == 39
    for row in all_rows():
        assert row.t2v
        assert (row.v2t_protocol == "") == (not row.v2t)
        assert row.rescoring in ("none", "DSL")
        for side in (row.t2v, row.v2t):
            recalls = [side[key] for key in METRICS[:4] if key in side]
            assert recalls == sorted(recalls)
            assert all(0 < recall <= 100 for recall in recalls)


@pytest.mark.parametrize(
    ("split", "setting", "count"),
    [
        ("msrvtt_1ka", "zero-shot", 4),
        ("msrvtt_1ka_7k", "zero-shot", 4),  # the same test pairs, and nothing is trained
        ("msrvtt_1ka", "fine-tuned", 1),
        ("msrvtt_1ka_7k", "fine-tuned", 0),
        ("msrvtt_full", "zero-shot", 0),
    ],
)
def test_only_rows_of_the_same_test_are_given(split: str, setting: Setting, count: int) -> None:
    assert len(rows_of("InternVideo", "msrvtt", split, setting)) == count
    assert not rows_of("InternVideo", "msvd", split, setting)


def test_rows_that_disagree_are_both_given() -> None:
    found = [row["t2v"]["R1"] for row in rows_of("InternVideo", "vatex", "vatex_hgr")]
    assert found == [72.0, 71.1]
    assert [row["t2v"]["R5"] for row in rows_of("Clip4Clip", "activitynet", "activitynet_val1")[:2]] == [72.4, 73.4]


def test_a_row_says_its_source_and_only_what_was_published() -> None:
    (row,) = rows_of("Clip4Clip", "didemo", "didemo")
    assert (row["source"], row["variant"], row["videos"]) == ("public listing", "meanP ViT-B/32", 1004)
    assert row["t2v"] == {"R1": 43.4, "R5": 70.2, "R10": 80.6, "MdR": 2.0, "MnR": 17.5}
    assert row["v2t"] == {}


def test_rescored_rows_never_stand_beside_plain_ones() -> None:
    rows = published_rows({"model": "InternVideo", "dataset": "msrvtt", "split": "msrvtt_1ka"}, "zero-shot")
    ours, other = result(), result(seed=5)
    found = Rescored("dsl", "DSL", True, {}, other, NewScores(lambda s, *_: s, lambda s, *_: s))
    plain, rescored = published_tables(rows, ours, Further(found))
    assert "without re-scoring" in plain.title
    assert "with DSL (transductive: uses all test queries)" in rescored.title
    firsts = [cells[1:] for table in (plain, rescored) for cells in table.rows if cells[0].endswith(": this run")]
    assert firsts == [tuple(f"{getattr(r, s)[k]:.1f}" for k in METRICS) for r in (ours, other) for s in ("t2v", "v2t")]
    assert [cells[1] for cells in plain.rows] == [firsts[0][0], "35.4", firsts[1][0], "31.7"]
    assert [cells[1] for cells in rescored.rows[1:4]] == ["40.0", "40.7", "38.0"]
    assert rescored.rows[2][0] == "text to video: authors, second table (ViT-L/14)"
    assert rescored.rows[2][4:] == ("", "", "")  # not published


def test_without_rescoring_the_published_rows_say_how_to_get_ours() -> None:
    rows = published_rows({"model": "InternVideo", "dataset": "msvd", "split": "msvd"}, "fine-tuned")
    (table,) = published_tables(rows, result(), Further())
    assert not any("this run" in cells[0] for cells in table.rows)
    assert table.notes[0] == "add rescoring=dsl for the numbers of this run with DSL"


def test_what_does_not_compare_is_said() -> None:
    rows = published_rows({"model": "Clip2Video", "dataset": "msvd", "split": "msvd"}, "fine-tuned")
    (table,) = published_tables(rows, result(), Further())
    assert table.notes == (
        "this run ranks 4 videos, not 670: its numbers do not compare",
        "published video to text ranks groups of captions, this run all captions, which is harder; "
        "add compatibility=clip4clip for the published rules",
    )
    (table,) = published_tables(rows, result(670, v2t="groups"), Further())
    assert table.notes == ()


def test_numbers_by_the_published_rules_stand_there_too() -> None:
    rows = published_rows({"model": "Clip2Video", "dataset": "msvd", "split": "msvd"}, "fine-tuned")
    metrics = {"R1": 12.5, "R5": 25.0, "R10": 50.0, "MedianR": 7.0, "MeanR": 9.25}
    (table,) = published_tables(rows, result(670), Further(None, {"plain": {"t2v": metrics, "v2t": metrics}}))
    named = {cells[0]: cells[1:] for cells in table.rows}
    assert named["text to video: this run, published rules"] == ("12.5", "25.0", "50.0", "", "7.0", "9.2")
    assert [name.split(": ")[1] for name in named] == [
        "this run",
        "this run, published rules",
        "authors (ViT-B/32)",
    ] * 2
    assert not any("add compatibility" in note for note in table.notes)


def test_no_rows_no_tables() -> None:
    assert published_tables((), result(), Further()) == ()
