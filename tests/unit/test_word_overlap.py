"""Retrieval by shared words."""

from __future__ import annotations

import hashlib

import torch

from src.models.word_overlap import NO_WORD, WholeWords, shared_words, word_id


def test_words_are_counted_once() -> None:
    tokenizer = WholeWords(8)
    text, mask = tokenizer(["the final score is the Score", "no big one"])
    assert mask.tolist() == [[True, True] + [False] * 6, [False] * 8]
    assert text[0, :2].tolist() == [word_id("final"), word_id("score")]
    video, _ = tokenizer(["score score final goal", "STOP", " "])
    assert shared_words(text, video).tolist() == [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_empty_places_never_match() -> None:
    nothing = torch.full((2, 3), NO_WORD)
    assert not shared_words(nothing, nothing).any()


def test_long_texts_are_cut() -> None:
    tokens, mask = WholeWords(2)(["alpha bravo charlie"])
    assert tokens.shape == (1, 2)
    assert mask.all()


def test_ids_fit_the_kept_pieces() -> None:
    """Token ids of words are kept as 32 bits, and hashes do not differ between processes."""
    ids = [word_id(f"word{index}") for index in range(1000)]
    assert len(set(ids)) == 1000
    assert min(ids) > NO_WORD
    assert max(ids) < 2**31
    assert word_id("sale") == 1 + int.from_bytes(hashlib.blake2b(b"sale", digest_size=4).digest(), "big") % (2**31 - 1)
