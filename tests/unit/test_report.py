"""Run-folder files and the report page, also with captions that try to break it."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.metrics.retrieval import RetrievalResult, evaluate_matrix
from src.reports.figures import learning_curve, rank_histogram
from src.reports.html import MAX_PICTURE_BYTES, MAX_QUERIES, page_data, safe_json
from src.reports.protocol import PROTOCOL_KEYS
from src.reports.report import RANK_COLUMNS, ReportFacts, VideoFacts, write_report
from src.reports.table import Table, print_table, result_table, skills_table

METRICS = {"R1", "R5", "R10", "R50", "MdR", "MnR", "mAP", "GeoMean"}
HOSTILE = [
    "</script><script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "<!-- <script>",
    "quotes \" ' ` and \\ backslash",
    "line\u2028and paragraph\u2029separators",
    "{{ 7 * 7 }} {% raw %} ${x} &amp; &lt;",
    "مرحبا بالعالم \u202eright to left\u202c",
    "emoji 🐕‍🦺🔥 and a lone \x00 control",
    "x" * 10_000,
    "",
]


@dataclass(frozen=True)
class Broken:
    video_id: str
    path: Path
    reason: str
    kind: str = "unreadable video"
    part: str = "test"
    kept: bool = False


def sample(captions: int = 10, videos: int = 5, seed: int = 0) -> tuple[RetrievalResult, ReportFacts]:
    rng = np.random.default_rng(seed)
    owner = torch.arange(captions) * videos // captions
    result = evaluate_matrix(rng.standard_normal((captions, videos)), owner, videos)
    known = {"dataset": "toy", "split": "toy", "subset": "full", "selection": "val", "model": "M", "seed": 3}
    facts = ReportFacts(
        protocol={**known, "checkpoint": "best", "part": "test"},
        captions={n: HOSTILE[n % len(HOSTILE)] for n in range(captions)},
        videos={n: VideoFacts(f"<b>video {n}</b>", tags=(("skill", f"s{n % 2}"),)) for n in range(videos)},
    )
    return result, facts


class Page(HTMLParser):
    """Elements, their attributes, and the text of script elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on") and tag != "form"]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data


def written(tmp_path: Path, result: RetrievalResult, facts: ReportFacts) -> tuple[str, Page]:
    text = write_report(tmp_path / "run", result, facts).read_text(encoding="utf-8")
    return text, Page(text)


def data_of(page: Page) -> dict[str, list[dict[str, object]]]:
    return json.loads(page.scripts[0])


def test_metrics_json_has_the_promised_keys(tmp_path: Path) -> None:
    result, facts = sample()
    skills = {"motion": {"num_videos": 2, "R1": 50.0, "pair_accuracy": 75.0}}
    facts = replace(facts, skills=skills, timing={"test_s": 1.5})
    facts = replace(
        facts,
        problems=[
            Broken("v9", Path("v9.mp4"), "truncated"),
            Broken("v8", Path("v8.mp4"), "0 frames"),
            Broken("v8", Path("v8.mp4"), "caption 0 is empty", "empty caption", "train"),
        ],
    )
    written(tmp_path, result, facts)
    found = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert list(found) == ["protocol", "t2v", "v2t", "SumR", "SumAP", "skills", "timing", "excluded"]
    assert tuple(found["protocol"]) == PROTOCOL_KEYS
    assert found["protocol"]["num_videos"] == 5
    assert found["protocol"]["num_captions"] == 10
    assert found["protocol"]["captions_per_video"] == 2
    assert found["protocol"]["ties"] == "optimistic"
    assert set(found["t2v"]) == set(found["v2t"]) == METRICS
    assert all(isinstance(value, float) for side in ("t2v", "v2t") for value in found[side].values())
    assert found["SumR"] == pytest.approx(sum(found[s][k] for s in ("t2v", "v2t") for k in ("R1", "R5", "R10")))
    assert found["skills"] == skills
    assert found["excluded"] == {
        "captions_of_unreadable_videos": 0,
        "videos_without_caption": 0,
        "by_part": {"test": {"unreadable video": 2}, "train": {"empty caption": 1}},
    }


def test_ranks_csv_holds_every_query_and_survives_any_text(tmp_path: Path) -> None:
    result, facts = sample()
    written(tmp_path, result, facts)
    with (tmp_path / "run" / "ranks.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == RANK_COLUMNS
    to_video = [row for row in rows if row["direction"] == "t2v"]
    to_text = [row for row in rows if row["direction"] == "v2t"]
    assert [float(row["rank"]) for row in to_video] == result.t2v_ranks.tolist()
    assert [float(row["rank"]) for row in to_text] == result.v2t_ranks.tolist()
    assert [row["query"] for row in to_video] == HOSTILE
    assert [int(row["true_id"]) for row in to_video] == result.caption_videos.tolist()
    for row in to_video + to_text:
        if row["rank"] == "1":
            assert float(row["score"]) == float(row["top1_score"])
            assert row["true_id"] == row["top1_id"]


def test_hostile_captions_stay_text(tmp_path: Path) -> None:
    result, facts = sample()
    facts = replace(facts, problems=[Broken(HOSTILE[0], Path("x.mp4"), HOSTILE[1])])
    text, page = written(tmp_path, result, facts)
    assert page.tags.count("script") == 2, "a caption opened a script element"
    assert "img" not in page.tags
    assert page.handlers == []
    assert "alert(1)</script>" not in text
    assert "\u2028" not in text
    assert "49" not in re.sub(r"[\d.]{3,}", "", page.scripts[0]), "a caption was rendered as a template"
    shown = {caption["text"] for caption in data_of(page)["captions"]}
    assert shown == {c if len(c) <= 1000 else f"{c[:1000]} … (10000 characters)" for c in HOSTILE}
    names = {video["name"] for video in data_of(page)["videos"]}
    assert "<b>video 0</b>" in names
    script = page.scripts[1]
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert forbidden not in script


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.text() | st.integers() | st.none(), lambda inner: st.lists(inner, max_size=4), max_leaves=10))
def test_json_in_a_script_element_is_the_same_value(value: object) -> None:
    text = safe_json({"value": value, "bad": "</script><!--\u2028&"})
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text)["value"] == value


def test_page_is_self_contained(tmp_path: Path) -> None:
    result, facts = sample()
    facts = replace(facts, thumbnail=lambda video: b"\xff\xd8jpeg" + bytes([video]))
    text, page = written(tmp_path, result, facts)
    assert [link for link in page.links if not link.startswith("#")] == []
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", text)
    assert all(video["picture"].startswith("data:image/jpeg;base64,") for video in data_of(page)["videos"])


def test_page_shows_protocol_metrics_skills_and_exclusions(tmp_path: Path) -> None:
    result, facts = sample()
    facts = replace(
        facts,
        protocol={**facts.protocol, "selection": "test"},
        skills={"order": {"num_videos": 2, "R1": 12.5, "pair_accuracy": 52.5}},
        problems=[Broken("clip_7", Path("clip_7.mp4"), "zero frames")],
        history=[{"epoch": n, "train/loss": 3.0 - n, "val/t2v/R1": 10.0 * n} for n in range(3)],
    )
    text, _ = written(tmp_path, result, facts)
    for part in ("GeoMean", f"{result.t2v['mAP']:.1f}", "rescoring", "clip_7", "zero frames", "52.5", "Learning curve"):
        assert part in text
    assert "picked by its result on the test part" in text
    plain, _ = written(tmp_path, *sample())
    assert "Learning curve" not in plain
    assert "Skills" not in plain


def test_true_item_is_known_even_when_it_is_not_among_the_best() -> None:
    result, facts = sample(captions=60, videos=30, seed=1)
    data = page_data(result, facts, Path())
    assert len(data["t2v"]) == 60
    deep = [row for row in data["t2v"] if row["rank"] > 10]
    assert deep
    for row, rank in zip(data["t2v"], result.t2v_ranks.tolist(), strict=True):
        assert row["rank"] == rank
        assert (row["true"] in row["top"]) == (rank <= 10)
        assert row["scores"] == sorted(row["scores"], reverse=True)
    for row in data["v2t"]:
        assert data["captions"][row["true"]]["video"] == row["q"]
        own = [c for c in row["top"] if data["captions"][c]["video"] == row["q"]]
        assert bool(own) == (row["rank"] <= 10)


def test_local_videos_are_linked_relatively(tmp_path: Path) -> None:
    result, facts = sample()
    clip = tmp_path / "data" / "a #1 'clip'.mp4"
    facts = replace(facts, videos={0: VideoFacts("a", clip, start_s=1.5, end_s=4)})
    (tmp_path / "run" / "report").mkdir(parents=True)
    data = page_data(result, facts, tmp_path / "run" / "report")
    linked = {video["name"]: video["file"] for video in data["videos"]}
    assert linked["a"] == "../../data/a%20%231%20%27clip%27.mp4#t=1.5,4"
    assert linked["1"] is None


def test_long_lists_keep_the_worst_the_best_and_a_sample(tmp_path: Path) -> None:
    result, facts = sample(captions=3000, videos=1500)
    pictures = 0

    def thumbnail(video: int) -> bytes:
        nonlocal pictures
        pictures += 1
        return b"x" * 8000

    text, page = written(tmp_path, result, replace(facts, thumbnail=thumbnail))
    data = data_of(page)
    assert len(data["t2v"]) == len(data["v2t"]) == MAX_QUERIES
    ranks = [row["rank"] for row in data["t2v"]]
    assert max(ranks) == result.t2v_ranks.max()
    assert sum(rank == 1 for rank in ranks) >= min(200, int((result.t2v_ranks == 1).sum()))
    assert "Of 3000 captions, this page lists 1000" in text
    assert "have no picture" in text
    assert len(text) < 8_000_000
    assert pictures * 8000 * 4 / 3 < MAX_PICTURE_BYTES + 20_000, "pictures are made only while they are wanted"


def test_page_of_one_query(tmp_path: Path) -> None:
    result = evaluate_matrix(np.ones((1, 1)), torch.tensor([0]), 1)
    written(tmp_path, result, ReportFacts(protocol={}, captions={}, videos={}))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["protocol"]["dataset"] is None


def test_pictures_take_the_colours_of_the_page() -> None:
    histogram = rank_histogram(np.array([1, 1, 3, 2000]), np.array([1, 2, 2, 7]))
    assert histogram.startswith("<svg")
    assert "currentColor" in histogram
    assert "#010203" not in histogram
    assert histogram == rank_histogram(np.array([1, 1, 3, 2000]), np.array([1, 2, 2, 7])), "not reproducible"
    assert learning_curve([]) is None
    assert learning_curve([{"epoch": 0, "lr": 1.0}]) is None
    curve = learning_curve([{"epoch": 0, "train/loss": 1.0}, {"epoch": 1, "train/loss": float("nan")}])
    assert curve is not None
    assert not set(re.findall(r'id="([^"]+)"', curve)) & set(re.findall(r'id="([^"]+)"', histogram))


def test_printed_table_names_the_protocol_and_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    result, facts = sample()
    print_table(result, facts.protocol, {"motion": {"num_videos": 4, "R1": 25.0}, "sound": {"num_videos": 4}})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("toy/toy | 5 videos, 10 captions, 2 per video | subset full | rescoring none")
    assert "ties optimistic | seed 3 | model M" in lines[0]
    assert len(lines[1]) == len(lines[3]) == len(lines[4])
    assert any(line.split() == ["motion", "4", "25.0"] for line in lines)


def test_ties_and_exclusions_are_noted() -> None:
    result = evaluate_matrix(np.ones((4, 3)), torch.tensor([0, 0, 1, 1]), 3)
    notes = result_table(replace(result, excluded_captions=(7, 8)), {}).notes
    assert "text to video: 4 queries tie with their true item (rule: optimistic)" in notes
    assert "2 captions excluded: their video could not be read" in notes
    assert "1 videos have no caption and only serve as distractors" in notes


def test_other_formats_escape_their_own_syntax() -> None:
    table = Table("50 % of a_b", ("run", "R@1"), (("a|b_c & <x>", "1.0"), ("d", "2.0")), ("note",), frozenset({(1, 1)}))
    assert r"| a\|b\_c & \<x\> | 1.0 |" in table.markdown()
    assert "| d | **2.0** |" in table.markdown()
    assert r"a|b\_c \& <x> & 1.0 \\" in table.latex()
    assert r"d & \textbf{2.0} \\" in table.latex()
    assert list(csv.reader(table.csv().splitlines()))[1] == ["a|b_c & <x>", "1.0"]
    assert skills_table({"a": {"R1": 1.0}}).columns == ("", "R@1")
