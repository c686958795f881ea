"""What is wrong with a data set of millions of rows: counts, samples of each kind, and whole lists in files."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from src.data.checks import Finding, Severity
from src.data.streamed import LISTED, Chosen, StreamedDataModule
from src.errors import UserError


def find_in_listings(datamodule: StreamedDataModule, folder: Path) -> tuple[list[Finding], list[dict[str, Any]]]:
    """Check tables, ids, captions and files of every part; files are looked for, not decoded.

    Args:
        datamodule: the data set under its split.
        folder: `missing_<part>.txt` gets the path of every missing file, one a line.

    Returns:
        Findings, errors first, of which each lists at most `LISTED` items, and one row of facts for each part.
    """
    findings: list[Finding] = []
    rows: list[dict[str, Any]] = []
    chosen: dict[str, Chosen] = {}
    for part, name in datamodule.split.parts.items():
        try:
            chosen[part] = datamodule.chosen(name)
        except UserError as error:
            findings.append(Finding("error", "unusable table", part, (str(error),)))
            continue
        found, row = _part(datamodule, part, chosen[part], folder)
        findings += found
        rows.append({"part": part, "list": name, **row})
    findings += _shared(chosen)
    return sorted(findings, key=lambda finding: finding.severity), rows


def _part(
    datamodule: StreamedDataModule, part: str, chosen: Chosen, folder: Path
) -> tuple[list[Finding], dict[str, Any]]:
    """Findings and facts of one part."""
    listing, places = chosen.listing, chosen.rows_R.numpy()
    gone_R = datamodule.missing(chosen)
    blank_R, repeated_R = listing.is_blank()[places], listing.repeat_R.numpy()[places] > 0
    left_out = listing.total - len(listing)
    missing: Severity = "note" if datamodule.split.subset == "available" else "error"
    findings = _some(missing, "missing file", part, chosen, gone_R)
    findings += _some("note", "empty caption", part, chosen, blank_R)
    findings += _some("note", "file named again", part, chosen, repeated_R)
    if left_out:
        text = f"{left_out} of the {listing.total} rows of {listing.source} lack a value and are not used"
        findings.append(Finding("note", "row without a value", part, (text,)))
    expected = datamodule.split.expected.get(part)
    if expected is not None and len(places) != expected.videos:
        text = f"found {len(places)} videos, expected {expected}"
        findings.append(Finding("error", "unexpected counts", part, (text,)))
    if gone_R.any():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"missing_{part}.txt").open("w", encoding="utf-8") as file:
            file.writelines(f"{video.path}\n" for video in datamodule.videos_of(chosen.only(gone_R)))
    count = len(places)
    facts = {"videos": count, "captions": count, "files": count - int(gone_R.sum()), "policy": "all"}
    return findings, facts


def _some(severity: Severity, kind: str, part: str, chosen: Chosen, mask_R: np.ndarray) -> list[Finding]:
    """A finding of the rows where the mask is true; its kind says so when not all are listed."""
    count = int(mask_R.sum())
    if not count:
        return []
    more = f" (first {LISTED:,} of {count:,})" if count > LISTED else ""
    return [Finding(severity, f"{kind}{more}", part, tuple(chosen.only(mask_R).ids()[:LISTED]))]


def _shared(chosen: dict[str, Chosen]) -> list[Finding]:
    """Videos that two parts share."""
    findings: list[Finding] = []
    for (first, one), (second, other) in combinations(chosen.items(), 2):
        keys = one.listing.key_R[one.rows_R].numpy()
        shared_R = np.isin(other.listing.key_R[other.rows_R].numpy(), keys)
        findings += _some("error", "same video in two parts", f"{first} and {second}", other, shared_R)
    return findings
