"""What can be wrong with the feature stores of a data set: missing, unfinished, altered, of other dimensions, gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from src.data.checks import Finding, Severity
from src.data.feature_source import FeatureSource, Keys
from src.data.features.store import FeatureStore
from src.errors import UserError


def find_in_features(
    source: FeatureSource, items: Mapping[str, Sequence[Keys]], *, read_all: bool = False
) -> list[Finding]:
    """Check every store of a source against the items of every part.

    Args:
        source: the stores that a run would read.
        items: part -> its items.
        read_all: also compare the checksums and look for NaN and infinite rows, which reads every byte.

    Returns:
        Findings in the order of the stores.
    """
    findings: list[Finding] = []
    for spec in source.specs:
        where = source.called(spec)
        try:
            store = source.store(spec)
        except UserError as error:
            findings.append(Finding("error", "no usable feature store", where, (str(error),)))
            continue
        if store.dim != spec.dim:
            item = f"found {store.dim}, expected {spec.dim}"
            findings.append(Finding("error", "wrong dimension", where, (item,)))
        for part, keys in items.items():
            findings += _gaps(f"{part}, {where}", source.item, store, keys)
        if read_all:
            findings += _some("error", "altered file", where, store.verify())
            findings += _some("error", "NaN or infinite feature", where, store.nonfinite())
    return findings


def _gaps(where: str, item: str, store: FeatureStore, items: Sequence[Keys]) -> list[Finding]:
    """Items that the store has nothing of: with its reason when it knows the item, as strangers otherwise."""
    lacking = [keys for keys in items if not any(key in store for key in keys)]
    if items and len(lacking) == len(items):
        example = f"of {len(items)} items the store has none (first: {', '.join(items[0]) or 'without key'})"
        return [Finding("error", "other ids than the store", where, (example,))]
    known = [f"{keys[0]}: {store.missing[keys[0]]}" for keys in lacking if keys and keys[0] in store.missing]
    strangers = [", ".join(keys) for keys in lacking if not keys or keys[0] not in store.missing]
    without = "item without the expert" if item == "video" else "caption without the features"
    return _some("note", without, where, known) + _some("note", "item that was never extracted", where, strangers)


def _some(severity: Severity, kind: str, where: str, items: Sequence[str]) -> list[Finding]:
    return [Finding(severity, kind, where, tuple(items))] if items else []
