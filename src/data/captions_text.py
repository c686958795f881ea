"""Normalising caption texts as a step of its own: what was changed is written down, and nothing is changed silently.

Annotation files carry the traces of their history: HTML entities, decomposed accents, control characters, runs of
blanks. Some tokenizers mend part of that and some do not, so that the same caption means different tokens to different
models. No reader does any of this by itself.
"""

from __future__ import annotations

import html
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.data.whole_file import write_whole

FILE = "captions.normalised.jsonl"
REPORT = "captions.normalised.report.json"
SHOWN = 10  # examples of each kind in the report
ZERO_WIDTH = "\u200b\u200c\u200e\u200f\u2060\ufeff"  # not \u200d, which joins emoji


@dataclass(frozen=True)
class CaptionRules:
    """What is done to a text, in this order: HTML entities decoded (twice, as they are often encoded twice), Unicode
    NFC, control and zero-width characters to blanks, runs of blanks to one, and the two options.

    Attributes:
        lower: lower-case.
        unique: drop a caption that its video has already (after everything else).
    """

    lower: bool = False
    unique: bool = False


@dataclass(frozen=True)
class CaptionRow:
    """A caption and the other columns of its row."""

    video: str
    text: str
    rest: dict[str, Any] = field(default_factory=dict)


@dataclass
class CaptionReport:
    """What happened: counts of all, examples of some.

    Attributes:
        read: captions read.
        written: captions written.
        changed: captions whose text differs.
        by_rule: name of a rule -> captions that it changed.
        dropped: duplicates within a video that were left out.
        empty: (video, text as read) of captions with nothing left; they are left out.
        examples: (before, after) of changed texts.
    """

    read: int = 0
    written: int = 0
    changed: int = 0
    by_rule: Counter[str] = field(default_factory=Counter)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    empty: list[tuple[str, str]] = field(default_factory=list)
    examples: list[tuple[str, str]] = field(default_factory=list)

    def to_json(self, rules: CaptionRules) -> dict[str, Any]:
        return {
            "rules": {"lower": rules.lower, "unique": rules.unique},
            "read": self.read,
            "written": self.written,
            "changed": self.changed,
            "by_rule": dict(sorted(self.by_rule.items())),
            "dropped": len(self.dropped),
            "dropped_captions": [{"video": video, "caption": text} for video, text in self.dropped],
            "empty": len(self.empty),
            "empty_captions": [{"video": video, "caption": text} for video, text in self.empty],
            "examples": [{"before": before, "after": after} for before, after in self.examples],
        }


def normalise(text: str, rules: CaptionRules) -> tuple[str, list[str]]:
    """The text, and the names of the rules that changed it."""
    steps = [
        ("html", lambda t: html.unescape(html.unescape(t))),
        ("nfc", lambda t: unicodedata.normalize("NFC", t)),
        ("control", _without_control),
        ("blanks", lambda t: " ".join(t.split())),
        ("lower", str.lower if rules.lower else str),
    ]
    changed_by = []
    for name, step in steps:
        after = step(text)
        if after != text:
            changed_by.append(name)
        text = after
    return text, changed_by


def _without_control(text: str) -> str:
    """Line ends and tabs count as blanks, for which another rule is there."""
    return "".join(
        " "
        if character in ZERO_WIDTH or (unicodedata.category(character) == "Cc" and not character.isspace())
        else character
        for character in text
    )


def normalise_all(rows: Iterable[CaptionRow], rules: CaptionRules) -> tuple[list[CaptionRow], CaptionReport]:
    """Normalised rows in the order of the given ones, and what happened."""
    report = CaptionReport()
    kept = []
    seen: set[tuple[str, str]] = set()
    for row in rows:
        report.read += 1
        text, changed_by = normalise(row.text, rules)
        report.by_rule.update(changed_by)
        if changed_by:
            report.changed += 1
            if len(report.examples) < SHOWN:
                report.examples.append((row.text, text))
        if not text:
            report.empty.append((row.video, row.text))
        elif rules.unique and (row.video, text) in seen:
            report.dropped.append((row.video, text))
        else:
            kept.append(CaptionRow(row.video, text, row.rest))
        seen.add((row.video, text))
    report.written = len(kept)
    return kept, report


def write_captions(
    folder: Path, rows: Sequence[CaptionRow], report: CaptionReport, rules: CaptionRules
) -> tuple[Path, Path]:
    """Write the rows as jsonl (columns video, caption and the others) and the report; each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"video": r.video, "caption": r.text} | r.rest, ensure_ascii=False) for r in rows]
    write_whole(folder / FILE, "".join(line + "\n" for line in lines).encode())
    text = json.dumps(report.to_json(rules), ensure_ascii=False, indent=1)
    write_whole(folder / REPORT, text.encode())
    return folder / FILE, folder / REPORT
