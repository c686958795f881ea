"""OCR files of the Kwai layout, the word list, and the frame transforms and windows of TextVR's family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.data.frozen_transforms import IMAGENET_MEAN, IMAGENET_STD, evaluation_frames, training_frames
from src.data.ocr import OcrTrack, load_kwai, normalise_positions, ocr_format, parse_kwai, position
from src.data.sliding_window import window_starts
from src.errors import UserError


def box(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height, 0.5, 1]


def document(*rows: tuple[str, float], frames: dict[str, list[float]] | None = None) -> dict[str, Any]:
    boxes = frames or {"3": box(0, 0, 10, 4)}
    return {str(k): {"text": text, "score": str(score), "tracks": boxes} for k, (text, score) in enumerate(rows)}


def words(*rows: tuple[str, float], **options: Any) -> list[str]:
    return list(ocr_format(parse_kwai(document(*rows)), **options).words)


def test_repetitions_count_in_any_case_and_the_best_stays() -> None:
    rows = (("STOP", 0.2), ("stop", 0.9), ("go away", 0.5))
    found = ocr_format(parse_kwai(document(*rows)), min_length=2)
    assert found.words == ("stop", "go", "away")
    assert found.scores == (0.9, 0.5, 0.5)
    assert words(*rows, rule="upstream", min_length=2) == ["go", "away", "stop"]  # the worse "STOP" came first
    assert words(("stop", 0.9), ("STOP", 0.2)) == ["stop"]
    assert words(("stop", 0.2), ("STOP", 0.9), lower=False) == ["STOP"]
    assert words(("stop", 0.9), ("STOP", 0.2), rule="upstream") == ["stop", "stop"]


def test_filters() -> None:
    rows = (("a|b~c", 0.1), ("café", 0.2), ("{brace", 0.3), ("to", 0.4), ("\tab", 0.5), ("", 0.6), ("  ", 0.7))
    assert words(*rows) == ["{brace", "a|b~c"]
    assert words(*rows, rule="upstream") == ["ab", "{brace"]  # "\tab" has three characters before stripping
    assert words(("Stop", 1.0), lower=False) == ["Stop"]


def test_limit_keeps_the_best_scores_and_the_file_order_of_equals() -> None:
    rows = (("low", 0.1), ("one", 0.5), ("two", 0.5), ("top", 0.9))
    for rule in ("fixed", "upstream"):
        assert words(*rows, max_words=3, rule=rule) == ["top", "one", "two"]


@given(st.lists(st.tuples(st.text(alphabet="aAbB|é \t", max_size=8), st.floats(0, 1)), max_size=12))
def test_fixed_words_are_distinct_and_sorted(rows: list[tuple[str, float]]) -> None:
    found = ocr_format(parse_kwai(document(*rows)), max_words=3, min_length=1)
    assert len({word.casefold() for word in found.words}) == len(found.words) <= 3
    assert list(found.scores) == sorted(found.scores, reverse=True)
    assert all(word == word.strip() and word.isascii() for word in found.words)
    assert found.positions_W12.shape == (len(found.words), 12)
    # Nothing that was left out for want of room is better than what stayed.
    everything = ocr_format(parse_kwai(document(*rows)), min_length=1)
    assert everything.words[:3] == found.words


def test_position() -> None:
    frames = {"9": box(30, 8, 20, 4), "3": box(10, 2, 10, 2)}
    (track,) = parse_kwai(document(("word", 0.25), frames=frames))
    fixed = position(track)
    # From frame 3 (centre 15, 3) to frame 9 (centre 40, 10); the box doubles.
    expected = [3, 9, 2, 27.5, 6.5, 15, 3, 25, 7, 2, 2, 0.25]
    np.testing.assert_allclose(fixed, expected, rtol=1e-5)
    upstream = position(track, "upstream")
    np.testing.assert_allclose(upstream[:3], [9, 3, 2])  # file order
    np.testing.assert_allclose(upstream[7:11], [5, 1, 0.5, 0.5], rtol=1e-5)  # half the last box
    scaled = normalise_positions(fixed[None], width=100, height=50, num_frames=10)
    np.testing.assert_allclose(scaled[0, :5], [0.3, 0.9, 0.2, 0.275, 0.13], rtol=1e-5)
    np.testing.assert_allclose(scaled[0, 5:], [0.15, 0.06, 0.25, 0.14, 2, 2, 0.25], rtol=1e-5)
    np.testing.assert_allclose(fixed, expected, rtol=1e-5)  # upstream overwrites it, again in every epoch


def test_padding_and_tracks_without_frames() -> None:
    empty = ocr_format(parse_kwai({"0": {"text": "never seen", "score": 1, "tracks": {}}}))
    assert empty.words == ()
    padded = empty.padded(2)
    assert (padded.words, padded.scores, padded.positions_W12.shape) == ((" ", " "), (0.0, 0.0), (2, 12))
    assert not padded.positions_W12.any()


def read_kwai(path: Path) -> tuple[OcrTrack, ...]:
    return parse_kwai(load_kwai(path), str(path))


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    with pytest.raises(UserError, match=r"no OCR file .*v.json; write it with task=extract extractor=ocr"):
        read_kwai(path)
    path.write_text("{")
    with pytest.raises(UserError, match=r"v.json is damaged"):
        read_kwai(path)
    path.write_text("[]")
    with pytest.raises(UserError, match=r"v.json holds a list, expected an object of tracks"):
        read_kwai(path)
    path.write_text(json.dumps({"7": {"text": "x", "score": "high", "tracks": {}}}))
    with pytest.raises(UserError, match=r"v.json, track '7': ValueError .*expected text, score and tracks"):
        read_kwai(path)
    path.write_text(json.dumps({"7": {"text": "x", "score": 1, "tracks": {"0": [1, 2, 3]}}}))
    with pytest.raises(UserError, match=r"track '7'"):
        read_kwai(path)
    for text in (
        '{"7": {"text": "x", "score": "nan", "tracks": {}}}',
        json.dumps(document(("x", 1))).replace("10", "NaN"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match="ValueError a number is not finite"):
            read_kwai(path)
    path.write_text(json.dumps(document(("word", 1.0))))
    assert read_kwai(path)[0].quads_N42.tolist() == [[[0, 0], [10, 0], [10, 4], [0, 4]]]


def test_windows() -> None:
    assert window_starts(4, 100, 12) == [0, 12, 24]
    assert window_starts(4, 100, 12, "upstream") == [0, 12]
    assert window_starts(4, 2, 12) == window_starts(4, 2, 12, "upstream") == [0]


def raw(frames: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation."""
    return frames * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]


def test_random_transforms_are_the_same_for_all_frames_of_a_clip() -> None:
    # Column number as brightness: a flip turns the order around.
    ramp = torch.linspace(0, 1, 60).expand(1, 3, 40, 60)
    clip = ramp.repeat(3, 1, 1, 1)
    flipped = {"frozen": set(), "textvr": set()}
    for recipe, seen in flipped.items():
        for seed in range(12):
            found = training_frames(clip, recipe, torch.Generator().manual_seed(seed), size=28)
            assert found.shape == (3, 3, 28, 28)
            assert torch.equal(found[0], found[2])
            again = training_frames(clip, recipe, torch.Generator().manual_seed(seed), size=28)
            assert torch.equal(found, again)
            row = raw(found)[0, 1, 14]
            assert row.min() >= -1e-5
            assert row.max() <= 1 + 1e-5
            seen.add(bool(row[0] > row[-1]))
    assert flipped == {"frozen": {False, True}, "textvr": {False}}


def test_evaluation_frames_cut_or_squash() -> None:
    wide = torch.zeros(1, 3, 10, 30)
    wide[..., :5] = 1  # the left sixth is white
    cut = raw(evaluation_frames(wide, "frozen", size=12, center_crop=16))
    squashed = raw(evaluation_frames(wide, "textvr", size=12))
    assert cut.max() < 1e-5
    assert squashed[..., 0].min() > 1 - 1e-5
