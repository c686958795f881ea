"""The report page of a search by topics, also with topics that try to break it."""

from __future__ import annotations

from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from src.data.annotation import Judgement
from src.metrics.infap import evaluate_run
from src.reports.topic_page import SHOWN, edition_of, write_topic_page
from src.reports.topic_table import editions_table

HOSTILE = "</td><script>alert(1)</script><img src=x onerror='alert(1)'> {{ 7 * 7 }}"
SHOT = "<b>shot</b>"
RUN = {"561": [(SHOT, 3.0), *((f"s{n}", 2 - n / 10) for n in range(SHOWN + 2))], "562": [("s1", 1.5)]}
QRELS = (Judgement("561", SHOT, 1, 1), Judgement("561", "s0", 1, 0), Judgement("561", "s1", 1, -1))


@dataclass(frozen=True)
class Problem:
    video_id: str = "<i>v</i>"
    path: str = "v.bin"
    reason: str = HOSTILE
    kind: str = "missing feature"
    part: str = "test"
    kept: bool = False


class Page(HTMLParser):
    """Names of all elements, and the text of the table cells and list items."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def written(tmp_path: Path, judged: bool = True) -> Page:
    result = evaluate_run(RUN, QRELS) if judged else None
    edition = edition_of("tv18", {"561": HOSTILE, "562": "x" * 2000}, RUN, result, QRELS if judged else ())
    table = editions_table("avs", {"tv18": result})
    protocol = {"dataset": "<u>avs</u>", "model": HOSTILE, "num_videos": 14, "checkpoint": None}
    page = write_topic_page(tmp_path, [edition], table, protocol, [Problem()])
    assert page == tmp_path / "report" / "index.html"
    return Page(page.read_text(encoding="utf-8"))


def test_texts_from_outside_stay_texts(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert not {"script", "img", "b", "i", "u"} & set(page.tags)
    assert page.texts.count(HOSTILE) == 3  # the heading, the topic, the reason; the page's title adds words
    assert f"{SHOT} (3): relevant" in page.texts
    assert any(text.endswith("… (2000 characters)") for text in page.texts)


def test_every_topic_has_its_metrics_and_first_shots(tmp_path: Path) -> None:
    page = written(tmp_path)
    infap = evaluate_run(RUN, QRELS).topics["561"]["infAP"]
    assert page.texts.count(f"{infap:.4f}") == 3  # of the edition, the topic and the mean: one topic is judged
    assert {"s0 (2): not relevant", "s1 (1.9): pooled, not judged", "s2 (1.8): not pooled"} <= set(page.texts)
    assert page.tags.count("li") == SHOWN + 1
    assert "s1 (1.5)" in page.texts  # of a topic without judgements nothing is said
    assert any("in the run, but not judged" in text and text.endswith("562") for text in page.texts)


def test_an_edition_without_judgements(tmp_path: Path) -> None:
    page = written(tmp_path, judged=False)
    assert "no judgements, run files only" in page.texts
    assert f"{SHOT} (3)" in page.texts
    assert page.tags.count("li") == SHOWN + 1
