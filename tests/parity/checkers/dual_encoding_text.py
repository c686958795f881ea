"""Words, base forms and concepts of Dual Encoding, as its programs (and NLTK) made them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from src.data.caption_files import read_captions
from src.data.concepts import concept_words, label_videos, read_tags, target, threshold_of, write_tags
from src.data.vocabulary_file import VocabularyFile, count_words, frequent, write_vocabulary
from src.data.wordnet import wordnet
from src.models.vocabulary import SPECIAL, VocabularyTokenizer, words_of
from tests.parity.cases import Case


def check_lemmas(case: Case) -> None:
    for pos, table in case.meta["lemmas"].items():
        got = {word: wordnet().lemma(word, pos) for word in table}
        assert got == table


def check_vocabulary(case: Case) -> None:
    """Words, their order and ids, and the file of counts."""
    texts = case.folder / "root" / "toy" / "TextData"
    counts = count_words(words_of(line.text) for line in read_captions(texts / "toytrain.caption.txt"))
    kept = frequent(counts, 5)
    assert {word: index for index, word in enumerate(kept)} == case.meta["bow_vocab"]
    tokenizer = VocabularyTokenizer(tuple(kept))
    assert tokenizer.ids == case.meta["rnn_vocab"]
    assert list(tokenizer.ids)[:4] == list(SPECIAL)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.json"
        write_vocabulary(path, VocabularyFile(list(kept), list(kept.values()), 5, "toy", "toy", 39, len(counts)))
        name = Path("vocabulary") / "word_vocab_counter_5.txt"
        for style in ("bow", "rnn"):
            expected = (texts / "vocabulary" / style / name.name).read_bytes()
            assert (path.parent / name).read_bytes() == expected


def check_concepts(case: Case) -> None:
    """Labels, concepts and files, with the table that stood in for NLTK when the case was made."""
    texts = case.folder / "root" / "toy" / "TextData"
    stub = case.meta["stub_nltk"]
    table = stub["pos_and_lemma"]

    def tagger(tokens: Sequence[str]) -> list[str]:
        return [table.get(token, ["NN"])[0] for token in tokens]

    def lemma(word: str, _: str) -> str:
        return table.get(word, [None, word])[1]

    lines = read_captions(texts / "toytrain.caption.txt")
    stop_words = frozenset(stub["stop_words"])
    labels = label_videos(
        ((line.video_id, concept_words(words_of(line.text), tagger, lemma, stop_words)) for line in lines),
        lambda video_id: threshold_of("toytrain", video_id),
    )
    with TemporaryDirectory() as folder:
        write_tags(Path(folder), labels, 10)
        published = texts / "tags"
        written = sorted(path.relative_to(folder) for path in Path(folder).rglob("*.*"))
        assert written == sorted(path.relative_to(published) for path in published.rglob("*.*"))
        for name in written:
            assert (Path(folder) / name).read_bytes() == (published / name).read_bytes(), name
    again, concepts = read_tags(published, 10)
    assert again == labels
    place = {
        word: index
        for index, word in enumerate(json.loads((published / "video_label_th_1/tag_vocab_10.json").read_text()))
    }
    assert list(place) == concepts
    y_K = target(labels["tvid0"], place)
    assert y_K is not None
    np.testing.assert_array_equal(y_K[[place["big"], place["car"]]], np.float32([1, 5 / 9]))


CHECKERS = {
    "dual_encoding": {
        "wordnet_lemmas": check_lemmas,
        "pipeline_onefolde[r]": check_vocabulary,
        "pipeline_one[f]older": check_concepts,
    }
}
