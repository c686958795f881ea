"""Parts of speech of the words of a caption, as tags of the Penn Treebank."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from src.data.wordnet import WordNet
from src.errors import UserError

Tagger = Callable[[Sequence[str]], Sequence[str]]

NLTK_DATA = "averaged_perceptron_tagger_eng"
ALTERNATIVES = "without these data: task.tagger=wordnet (approximate), or task.lemmatise=false (words as they are)"

# What NLTK's tokeniser splits of words that hold nothing but letters and digits.
_SPLIT = {
    "cannot": ("can", "not"),
    "gimme": ("gim", "me"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "lemme": ("lem", "me"),
    "wanna": ("wan", "na"),
}
# Words that WordNet has as nouns, verbs or adjectives, or not at all, though captions use them otherwise.
_UNTAGGED = """
across along although amid among amongst another anybody anyone anything anyway around aside atop behind beneath
beside besides beyond could despite eight either eleven else every everybody everyone everything except five four
hundred inside instead like may maybe might million must near neither nine nobody none nothing one onto outside past
per seven shall since six somebody someone something ten thirty though thousand three throughout toward towards twelve
twenty two underneath unlike upon us via whatever whenever wherever whether whichever whoever whose within without
would yet
"""
_CLOSED = frozenset(_UNTAGGED.split())
_TAG = {"n": "NN", "v": "VB", "a": "JJ", "r": "RB"}


def tokens_of(words: Sequence[str]) -> list[str]:
    """The tokens of cleaned words.

    Source: `word_tokenize` of NLTK 3.10, which splits only these on text of letters, digits and blanks.
    """
    return [token for word in words for token in _SPLIT.get(word, (word,))]


def nltk_tagger() -> Tagger:
    """NLTK's averaged perceptron, as the published concepts were made.

    Raises:
        UserError: NLTK or the tagger's data are not there.
    """
    try:
        from nltk.tag import PerceptronTagger  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise UserError(
            "task.tagger=nltk needs the package nltk (3.9 or newer) and its data; run `pip install nltk` and "
            f"`python -m nltk.downloader {NLTK_DATA}`; {ALTERNATIVES}"
        ) from None
    try:
        tagger = PerceptronTagger(lang="eng")
    except LookupError:
        raise UserError(
            f"task.tagger=nltk: NLTK's data {NLTK_DATA} are in no folder of NLTK's search path; run "
            f"`python -m nltk.downloader {NLTK_DATA}` or set NLTK_DATA to their folder; {ALTERNATIVES}"
        ) from None
    return lambda tokens: [tag for _, tag in tagger.tag(list(tokens))]


def wordnet_tagger(wordnet: WordNet) -> Tagger:
    """Each word by itself: the part of speech in which WordNet's tagged texts use it most; unknown words are nouns.

    Deviates: the published concepts come from `nltk_tagger`, which looks at the neighbours too.
    """
    known: dict[str, str] = {}

    def tag(word: str) -> str:
        if word in _CLOSED or word.isdigit():
            return "XX"
        uses = {}
        for pos in _TAG:
            lemmas = wordnet.lemmas(word, pos)
            if lemmas:
                uses[pos] = max(wordnet.counts[pos][lemma] for lemma in lemmas)
        return _TAG[max(uses, key=uses.__getitem__)] if uses else "NN"

    def tags(tokens: Sequence[str]) -> list[str]:
        for token in tokens:
            if token not in known:
                known[token] = tag(token)
        return [known[token] for token in tokens]

    return tags
