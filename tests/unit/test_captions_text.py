"""Normalising caption texts: what changes, and that it is written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.captions_text import CaptionRow, CaptionRules, normalise, normalise_all, write_captions

PLAIN = CaptionRules()


@pytest.mark.parametrize(
    ("before", "after", "rules"),
    [
        ("a man sings", "a man sings", []),
        ("a man\t sings \n", "a man sings", ["blanks"]),
        ("cats &amp; dogs", "cats & dogs", ["html"]),
        ("it&amp;#39;s", "it's", ["html"]),  # encoded twice
        ("cafe\u0301", "caf\u00e9", ["nfc"]),
        ("a\x00b\x07c", "a b c", ["control"]),
        ("\ufeffa\u200bb", "a b", ["control", "blanks"]),
        ("a\u00a0b\u2003c", "a b c", ["blanks"]),
        ("&nbsp;", "", ["html", "blanks"]),
        ("👨\u200d👩 مرحبا", "👨\u200d👩 مرحبا", []),  # joined emoji and right-to-left stay
        ("Ünïcode", "Ünïcode", []),
        ("a < b &lt; c", "a < b < c", ["html"]),
    ],
)
def test_texts(before: str, after: str, rules: list[str]) -> None:
    assert normalise(before, PLAIN) == (after, rules)


def test_lower_case_is_an_option() -> None:
    assert normalise("A Man", PLAIN) == ("A Man", [])
    assert normalise("A Man", CaptionRules(lower=True)) == ("a man", ["lower"])


@given(st.text(st.characters(exclude_characters="&")))
def test_a_second_time_changes_nothing(text: str) -> None:
    once, _ = normalise(text, PLAIN)
    assert normalise(once, PLAIN) == (once, [])


ROWS = [
    CaptionRow("v1", "a  man", {"split": "train"}),
    CaptionRow("v1", "a man", {"split": "train"}),
    CaptionRow("v2", "a man", {"split": "test"}),
    CaptionRow("v2", " \n", {"split": "test"}),
]


def test_repeated_and_empty_captions_are_listed() -> None:
    kept, report = normalise_all(ROWS, PLAIN)
    assert [(row.video, row.text) for row in kept] == [("v1", "a man"), ("v1", "a man"), ("v2", "a man")]
    assert (report.read, report.written, report.changed, report.dropped) == (4, 3, 2, [])
    assert report.empty == [("v2", " \n")]
    kept, report = normalise_all(ROWS, CaptionRules(unique=True))
    assert [(row.video, row.text) for row in kept] == [("v1", "a man"), ("v2", "a man")]  # only within a video
    assert report.dropped == [("v1", "a man")]


def test_files(tmp_path: Path) -> None:
    rules = CaptionRules(unique=True)
    file, report_file = write_captions(tmp_path / "new", *normalise_all(ROWS, rules), rules)
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert lines == [
        {"video": "v1", "caption": "a man", "split": "train"},
        {"video": "v2", "caption": "a man", "split": "test"},
    ]
    report = json.loads(report_file.read_text(encoding="utf-8"))
    assert report["rules"] == {"lower": False, "unique": True}
    assert (report["read"], report["written"], report["dropped"], report["empty"]) == (4, 2, 1, 1)
    assert report["by_rule"] == {"blanks": 2}
    assert report["examples"][0] == {"before": "a  man", "after": "a man"}
    assert report["empty_captions"] == [{"video": "v2", "caption": " \n"}]
    again, _ = write_captions(tmp_path / "new", *normalise_all(ROWS, rules), rules)
    assert again.read_bytes() == file.read_bytes()
