"""Words to ids by a closed vocabulary, and captions that have none of its words."""

from __future__ import annotations

import pytest
import torch

from src.models.vocabulary import END, PAD, START, UNKNOWN, VocabularyTokenizer, words_of

TOKENIZER = VocabularyTokenizer(("dog", "runs", "dogs"))


def test_known_words_have_their_ids_and_padding_is_masked() -> None:
    tokens_NL, mask_NL = TOKENIZER(["A dog runs; the DOG!", "runs"])
    assert tokens_NL.tolist() == [
        [START, UNKNOWN, 4, 5, UNKNOWN, 4, END],
        [START, 5, END, PAD, PAD, PAD, PAD],
    ]
    assert mask_NL.sum(1).tolist() == [7, 3]
    assert TOKENIZER.bag_of_words(tokens_NL).tolist() == [[2, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize("caption", ["", " \n", "🎬🤸🏽", "مرحبا بالعالم", "the of and a"])
def test_captions_without_a_known_word_are_zeros_in_the_bag(caption: str) -> None:
    tokens_NL, mask_NL = TOKENIZER([caption])
    assert tokens_NL[0].tolist() == [START, *[UNKNOWN] * len(words_of(caption)), END]
    assert mask_NL.all()
    assert torch.equal(TOKENIZER.bag_of_words(tokens_NL), torch.zeros(1, 3))


def test_nothing_is_cut_and_nothing_is_needed() -> None:
    assert TOKENIZER(["dog " * 5000])[0].shape == (1, 5002)
    assert [part.shape for part in TOKENIZER([])] == [(0, 0), (0, 0)]


def test_the_fingerprint_follows_the_words_and_their_order() -> None:
    others = (("dog", "dogs", "runs"), ("dog", "runs"))
    assert len({TOKENIZER.fingerprint, *(VocabularyTokenizer(words).fingerprint for words in others)}) == 3
