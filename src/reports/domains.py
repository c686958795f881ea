"""The table of results by domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from src.reports.table import METRIC_TITLES, Table, number

SHOWN = ("R1", "R5", "R10", "MdR")


def domains_table(domains: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row per domain: sizes, then both directions."""
    columns = [f"{side} {METRIC_TITLES.get(key, key)}" for side in ("t2v", "v2t") for key in SHOWN]
    rows = tuple(
        (
            domain,
            str(row["num_videos"]),
            str(row["num_captions"]),
            *(number(row[side][key]) for side in ("t2v", "v2t") for key in SHOWN),
        )
        for domain, row in domains.items()
    )
    notes = ("each query is ranked among all videos (or captions), not only those of its domain",)
    return Table("by domain", ("", "videos", "captions", *columns), rows, notes)
