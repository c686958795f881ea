"""Token ids are computed once per captions and tokeniser, and a bad file costs time, not results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from src.data import caption_tokens
from src.data.caption_tokens import CaptionTokens


class Counting:
    """Tokenises to lengths, and counts its calls."""

    def __init__(self, fingerprint: str = "one") -> None:
        self.fingerprint = fingerprint
        self.calls = 0

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        self.calls += 1
        tokens_NL = torch.tensor([[len(caption), 7] for caption in captions])
        return tokens_NL, torch.ones_like(tokens_NL, dtype=torch.bool)


@pytest.fixture(autouse=True)
def small_parts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_tokens, "FEWEST_TO_KEEP", 2)


CAPTIONS = ["a dog", "ein Hund 🐕", "\ud800 half a character"]


def test_the_second_run_reads_the_file(tmp_path: Path) -> None:
    tokenizer = Counting()
    first, second = (CaptionTokens(CAPTIONS, tokenizer, tmp_path) for _ in range(2))
    assert tokenizer.calls == 1
    assert torch.equal(first.tokens_NL, second.tokens_NL)
    assert torch.equal(first.mask_NL, second.mask_NL)
    assert second.mask_NL.dtype == torch.bool


def test_other_captions_or_another_tokeniser_are_another_file(tmp_path: Path) -> None:
    tokenizer = Counting()
    CaptionTokens(CAPTIONS, tokenizer, tmp_path)
    CaptionTokens(CAPTIONS[::-1], tokenizer, tmp_path)
    assert tokenizer.calls == 2
    other = Counting("two")
    CaptionTokens(CAPTIONS, other, tmp_path)
    assert other.calls == 1


def test_a_broken_file_is_written_anew(tmp_path: Path) -> None:
    tokenizer = Counting()
    CaptionTokens(CAPTIONS, tokenizer, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:10])
    assert CaptionTokens(CAPTIONS, tokenizer, tmp_path).tokens_NL[0, 0] == 5
    assert tokenizer.calls == 2
    CaptionTokens(CAPTIONS, tokenizer, tmp_path)
    assert tokenizer.calls == 2


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert len(CaptionTokens(CAPTIONS, Counting(), tmp_path / "file" / "tokens")) == 3


def test_small_parts_leave_no_file(tmp_path: Path) -> None:
    CaptionTokens(CAPTIONS[:1], Counting(), tmp_path)
    assert not list(tmp_path.iterdir())
    assert CaptionTokens(CAPTIONS, None, tmp_path).tokens_NL.shape == (3, 0)
