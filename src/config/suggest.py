"""Did-you-mean."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is most likely a slip of, or None."""
    options = sorted(set(known))
    folded = {option.casefold(): option for option in options}
    match = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return folded[match[0]] if match else None


def hint(name: str, known: Iterable[str], prefix: str = "") -> str:
    """What follows an "unknown …": the likely name, else the whole list when it is short."""
    options = sorted(set(known))
    match = closest(name, options)
    if match is not None:
        return f"; did you mean '{prefix}{match}'?"
    if 0 < len(options) <= 25:
        return f"; known: {', '.join(options)}"
    return ""
