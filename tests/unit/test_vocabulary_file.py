"""Vocabularies of training captions, counted and written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.vocabulary_file import (
    FOUND,
    VECTORS,
    VocabularyFile,
    count_words,
    frequent,
    read_vocabulary,
    write_vectors,
    write_vocabulary,
)
from src.errors import UserError


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=6), min_size=1, max_size=12), st.integers(1, 4))
def test_words_keep_the_order_of_first_appearance(captions: list[list[str]], min_count: int) -> None:
    words = [word for caption in captions for word in caption]
    expected = [word for word in dict.fromkeys(words) if words.count(word) >= min_count]
    counts = count_words(captions)
    if expected:
        kept = frequent(counts, min_count)
        assert list(kept) == expected
        assert all(kept[word] == words.count(word) for word in expected)
    else:
        with pytest.raises(UserError, match=r"set task\.min_count to a smaller number"):
            frequent(counts, min_count)


def test_file_and_counter_come_back(tmp_path: Path) -> None:
    content = VocabularyFile(["dog", "läuft", "cat"], [2, 7, 7], 2, "toy", "toy", 9, 12)
    path = tmp_path / "vocabulary.json"
    write_vocabulary(path, content)
    assert read_vocabulary(path) == content
    assert json.loads(path.read_text())["words"] == ["dog", "läuft", "cat"]
    counter = tmp_path / "vocabulary" / "word_vocab_counter_2.txt"
    assert counter.read_text() == "läuft 7\ncat 7\ndog 2"  # by count, ties by first appearance, no final line break


@pytest.mark.parametrize("text", ["not json", "[1, 2]", '{"words": []}'])
def test_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "vocabulary.json"
    with pytest.raises(UserError, match=r"does not exist; write it by task=prepare"):
        read_vocabulary(path)
    path.write_text(text)
    with pytest.raises(UserError, match=r"vocabulary\.json is no vocabulary"):
        read_vocabulary(path)


def test_vectors_and_who_has_one(tmp_path: Path) -> None:
    vectors_VD = np.arange(6, dtype=np.float64).reshape(3, 2)
    write_vectors(tmp_path, vectors_VD, np.array([True, False, True]))
    written = np.load(tmp_path / VECTORS)
    assert written.dtype == np.float32
    np.testing.assert_array_equal(written, vectors_VD)
    np.testing.assert_array_equal(np.load(tmp_path / FOUND), [True, False, True])
