"""Tables for terminals and papers, and the result table with the protocol beside the numbers."""

from __future__ import annotations

import csv
import io
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from src.metrics.result import RetrievalResult
from src.reports.protocol import full_protocol, protocol_line

METRICS = ("R1", "R5", "R10", "R50", "MdR", "MnR", "mAP", "GeoMean")
METRIC_TITLES = {"R1": "R@1", "R5": "R@5", "R10": "R@10", "R50": "R@50"}
DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is left-aligned, the others right-aligned.

    Attributes:
        title: what the numbers are, on a line above.
        columns: headings.
        rows: cells; each row as long as `columns`.
        notes: lines below the table.
        best: (row, column) of the cells to emphasise.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    best: frozenset[tuple[int, int]] = field(default_factory=frozenset)

    def print(self) -> None:
        """Write to stdout: with rich on a terminal, as plain aligned text into a pipe or file."""
        console = Console()
        plain = self.text()
        if not sys.stdout.isatty() or console.width < max(map(_width, plain.split("\n")[1 : 3 + len(self.rows)])):
            sys.stdout.write(plain + "\n")  # a terminal's own line breaks lose less than cut columns
            return
        # Plain Text objects: names and captions may look like rich's markup.
        console.print(Text(self.title, style="bold"))
        table = RichTable(header_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 1))
        for number, column in enumerate(self.columns):
            table.add_column(Text(column), justify="right" if number else "left", no_wrap=number > 0)
        for r, row in enumerate(self.rows):
            table.add_row(
                *(Text(cell, style="bold green" if (r, c) in self.best else "") for c, cell in enumerate(row))
            )
        console.print(table)
        for note in self.notes:
            console.print(Text(note, style="dim"))

    def text(self) -> str:
        """Plain text in aligned columns."""
        lines = [self.columns, *self.rows]
        widths = [max(_width(line[c]) for line in lines) for c in range(len(self.columns))]
        aligned = [
            "  ".join(
                cell + " " * (width - _width(cell)) if number == 0 else " " * (width - _width(cell)) + cell
                for number, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        rule = "-" * max(map(len, aligned))
        return "\n".join([self.title, aligned[0], rule, *aligned[1:], *self.notes])

    def markdown(self) -> str:
        """A GitHub-flavoured table, best cells bold."""
        lines = [f"**{_markdown(self.title)}**", "", _bar(map(_markdown, self.columns))]
        lines.append(_bar([":--", *["--:"] * (len(self.columns) - 1)]))
        for r, row in enumerate(self.rows):
            cells = [_markdown(cell) for cell in row]
            lines.append(_bar(f"**{cell}**" if (r, c) in self.best else cell for c, cell in enumerate(cells)))
        return "\n".join([*lines, "", *(f"{_markdown(note)}  " for note in self.notes)]).rstrip() + "\n"

    def latex(self) -> str:
        """A booktabs tabular, best cells bold; the title and notes are comments."""
        rows = []
        for r, row in enumerate(self.rows):
            cells = [
                rf"\textbf{{{_latex(cell)}}}" if (r, c) in self.best else _latex(cell) for c, cell in enumerate(row)
            ]
            rows.append(" & ".join(cells) + r" \\")
        head = " & ".join(map(_latex, self.columns)) + r" \\"
        return "\n".join(
            [
                *(f"% {line}" for line in (self.title, *self.notes)),
                rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
                r"\toprule",
                head,
                r"\midrule",
                *rows,
                r"\bottomrule",
                r"\end{tabular}",
                "",
            ]
        )

    def csv(self) -> str:
        """Comma-separated values, headings first."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.columns, *self.rows])
        return out.getvalue()


def number(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}"


def result_table(result: RetrievalResult, protocol: Mapping[str, object]) -> Table:
    """Both directions, all metrics, the protocol above, notes on ties and exclusions below."""
    rows = tuple(
        (DIRECTIONS[side], *(number(getattr(result, side)[key]) for key in METRICS)) for side in ("t2v", "v2t")
    )
    notes = [f"SumR {number(result.sum_r)}"]
    for side, fraction in result.tie_fraction.items():
        if fraction:
            tied = int(getattr(result, f"{side}_tied").sum())
            notes.append(f"{DIRECTIONS[side]}: {tied} queries tie with their true item (rule: {result.ties})")
    if result.excluded_captions:
        notes.append(f"{len(result.excluded_captions)} captions excluded: their video could not be read")
    if gallery_only := len(result.video_ids) - len(result.v2t_ids):
        notes.append(f"{gallery_only} videos have no caption and only serve as distractors")
    return Table(
        protocol_line(full_protocol(result, protocol)),
        ("", *(METRIC_TITLES.get(k, k) for k in METRICS)),
        rows,
        tuple(notes),
    )


def skills_table(skills: Mapping[str, Mapping[str, float]]) -> Table:
    """One row per skill."""
    columns = list(dict.fromkeys(key for row in skills.values() for key in row))
    rows = tuple(
        (skill, *(_cell(key, row[key]) if key in row else "" for key in columns)) for skill, row in skills.items()
    )
    return Table("skills", ("", *(METRIC_TITLES.get(key, key.replace("_", " ")) for key in columns)), rows)


def print_table(
    result: RetrievalResult,
    protocol: Mapping[str, object],
    skills: Mapping[str, Mapping[str, float]] | None = None,
    further: Iterable[Table] = (),
) -> None:
    """Print the result, further tables of the same test, and the skills where the benchmark has them."""
    result_table(result, protocol).print()
    for table in further:
        table.print()
    if skills:
        skills_table(skills).print()


def _cell(key: str, value: float) -> str:
    return str(int(value)) if key.startswith("num_") else number(value)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)


def _bar(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text)


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)
