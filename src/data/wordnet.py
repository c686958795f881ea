"""Base forms of English words by WordNet: its word lists, its exceptions and its rules of detachment.

The single words of WordNet 3.0 come with the package (`wordnet-3.0.txt.gz`, with its licence), so nothing has to be
downloaded; a dictionary folder of any version can be read in their place.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from src.errors import UserError

PACKED = Path(__file__).with_name("wordnet-3.0.txt.gz")
NAMES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
# Sense keys number the parts of speech; 5 are the satellites of adjectives.
_NUMBERED = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}
# Endings and what stands in their place: morphy(7WN), "Rules of Detachment".
_DETACHED = {
    "n": "s: ses:s ves:f xes:x zes:z ches:ch shes:sh men:man ies:y",
    "v": "s: ies:y es:e es: ed:e ed: ing:e ing:",
    "a": "er: est: er:e est:e",
    "r": "",
}
RULES = {pos: tuple(tuple(rule.split(":")) for rule in rules.split()) for pos, rules in _DETACHED.items()}
_SINGLE = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class WordNet:
    """The words of WordNet by part of speech: n, v, a (adjectives), r (adverbs).

    Attributes:
        counts: part of speech -> lemma -> how often WordNet's tagged texts use it so.
        exceptions: part of speech -> irregular form -> its base forms.
    """

    counts: Mapping[str, Mapping[str, int]]
    exceptions: Mapping[str, Mapping[str, tuple[str, ...]]]

    def lemmas(self, word: str, pos: str) -> list[str]:
        """Base forms of a lower-case word that WordNet has, the word itself first; empty when it has none."""
        irregular = self.exceptions[pos].get(word)
        if irregular is None:
            irregular = tuple(word[: -len(end)] + new for end, new in RULES[pos] if word.endswith(end))
        return [form for form in dict.fromkeys((word, *irregular)) if form in self.counts[pos]]

    def lemma(self, word: str, pos: str) -> str:
        """The shortest base form, the first of equally short ones; the word itself where WordNet has none.

        Source: `WordNetLemmatizer` of NLTK 3.10 on WordNet 3.0; all forms agree with it.
        """
        return min(self.lemmas(word, pos), key=len, default=word)

    @classmethod
    def read(cls, folder: Path) -> WordNet:
        """Read a dictionary folder: index.noun, noun.exc, … and cntlist.rev, as WordNet 3.0 publishes them.

        Raises:
            UserError: a file is missing.
        """
        needed = [f"index.{name}" for name in NAMES.values()] + [f"{name}.exc" for name in NAMES.values()]
        lacking = [name for name in (*needed, "cntlist.rev") if not (folder / name).is_file()]
        if lacking:
            raise UserError(
                f"{folder} lacks {', '.join(lacking)}, expected the dictionary folder of WordNet 3.0; "
                "leave task.wordnet=null for the lists that come with the package"
            )
        uses: dict[tuple[str, str], int] = {}
        for key, _, count in (line.split() for line in _lines(folder / "cntlist.rev")):
            lemma, _, sense = key.partition("%")
            uses[lemma.lower(), _NUMBERED[sense[0]]] = uses.get((lemma.lower(), _NUMBERED[sense[0]]), 0) + int(count)
        counts, exceptions = {}, {}
        for pos, name in NAMES.items():
            # Lines that begin with a blank are the licence.
            words = (line.split(" ", 1)[0] for line in _lines(folder / f"index.{name}") if line[:1].strip())
            counts[pos] = {word: uses.get((word, pos), 0) for word in words}
            exceptions[pos] = _exceptions(_lines(folder / f"{name}.exc"))
        return cls(counts, exceptions)

    def packed(self, licence: Iterable[str]) -> bytes:
        """What `wordnet` reads: words that cleaned captions may hold, and the base forms of their exceptions."""
        lines = [f"# {line.rstrip()}".rstrip() for line in licence]
        for pos, name in NAMES.items():
            irregular = {form: bases for form, bases in self.exceptions[pos].items() if _SINGLE.fullmatch(form)}
            wanted = {base for bases in irregular.values() for base in bases}
            lines.append(f"[{name}]")
            for word, count in self.counts[pos].items():
                if _SINGLE.fullmatch(word) or word in wanted:
                    lines.append(f"{word} {count}" if count else word)
            lines.append(f"[{name}.exc]")
            lines += [" ".join((form, *bases)) for form, bases in irregular.items()]
        return gzip.compress("\n".join((*lines, "")).encode(), mtime=0)


@cache
def wordnet() -> WordNet:
    """The lists that come with the package."""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in gzip.decompress(PACKED.read_bytes()).decode().splitlines():
        if line.startswith("["):
            lines = sections.setdefault(line.strip("[]"), [])
        elif not line.startswith("#"):
            lines.append(line)
    counts = {}
    for pos, name in NAMES.items():
        parts = (line.partition(" ") for line in sections[name])
        counts[pos] = {word: int(count or 0) for word, _, count in parts}
    return WordNet(counts, {pos: _exceptions(sections[f"{name}.exc"]) for pos, name in NAMES.items()})


def _exceptions(lines: Iterable[str]) -> dict[str, tuple[str, ...]]:
    return {form: tuple(bases) for form, *bases in (line.split() for line in lines)}


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="ISO-8859-1") as file:
        yield from (line for line in file if line.strip())
