"""Text read in pictures: linking to tracks, the TextVR layout, and the recogniser itself on rendered frames."""

from __future__ import annotations

import json
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from src.clip import Clip
from src.data.annotation import VideoRecord
from src.data.clips import ClipDecoder
from src.data.ocr import load_kwai, ocr_format, parse_kwai, position
from src.errors import UserError
from src.extractors.local_files import local_path
from src.extractors.ocr import Ocr, _blocks
from src.extractors.ocr_tracks import (
    Reading,
    Track,
    Word,
    box_iou,
    kwai,
    link,
    text_similarity,
    words_of,
    write_kwai,
)


def quad(x: float, y: float, width: float = 40, height: float = 10) -> np.ndarray:
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], dtype=np.float64)


def reading(frame: int, x: float, y: float, text: str, score: float = 0.9) -> Reading:
    return Reading(frame, quad(x, y), text, score)


def texts(tracks: list[Track]) -> list[list[tuple[int, str]]]:
    return [[(r.frame, r.text) for r in track.readings] for track in tracks]


def test_overlap_of_boxes() -> None:
    assert box_iou(quad(0, 0), quad(0, 0)) == 1
    assert box_iou(quad(0, 0), quad(20, 0)) == pytest.approx(200 / 600)
    assert box_iou(quad(0, 0), quad(40, 0)) == 0  # they touch
    assert box_iou(quad(0, 0, 0, 0), quad(0, 0, 0, 0)) == 0  # no area, no overlap and no division by zero


def test_similarity_of_texts_ignores_case_and_spaces() -> None:
    assert text_similarity("Final Score", "FINALSCORE") == 1
    assert text_similarity("STOP", "ST0P") == pytest.approx(0.75)
    assert text_similarity("abc", "xyz") == 0
    assert text_similarity("", "") == 1
    assert text_similarity("", "a") == 0


def test_a_text_that_stays_becomes_one_track_and_others_do_not() -> None:
    frames = [
        [reading(0, 10, 10, "STOP", 0.7), reading(0, 10, 100, "Exit 12")],
        [reading(30, 12, 11, "ST0P", 0.9), reading(30, 10, 100, "goodbye")],  # same place, other words
        [reading(60, 14, 12, "STOP", 0.8), reading(60, 200, 100, "goodbye")],  # same words, other place
    ]
    tracks = link(frames)
    assert texts(tracks) == [
        [(0, "STOP"), (30, "ST0P"), (60, "STOP")],
        [(0, "Exit 12")],
        [(30, "goodbye")],
        [(60, "goodbye")],
    ]
    assert tracks[0].best.text == "ST0P"


def test_a_gap_up_to_the_limit_keeps_the_track() -> None:
    here = [reading(0, 0, 0, "bus")]
    for missing, joined in ((1, True), (2, False)):
        frames = [here, *([[]] * missing), [reading(9, 0, 0, "bus")]]
        assert (len(link(frames, max_gap=1)) == 1) is joined
    assert len(link([here, [], [reading(9, 0, 0, "bus")]], max_gap=0)) == 2


def test_the_most_similar_pair_is_joined_first_and_each_text_once() -> None:
    tracks = link([[reading(0, 0, 0, "bus 12"), reading(0, 3, 0, "bus 17")], [reading(1, 3, 0, "bus 17")]])
    assert texts(tracks) == [[(0, "bus 12")], [(0, "bus 17"), (1, "bus 17")]]


place = st.tuples(st.integers(0, 3), st.sampled_from(["stop", "st0p", "exit", "go", "GO"]), st.floats(0.5, 1.0))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(place, max_size=5), max_size=6),
    st.sampled_from([0.3, 0.5, 0.9]),
    st.sampled_from([0.0, 0.6, 1.0]),
    st.integers(0, 2),
)
def test_linking_keeps_every_reading_once_and_in_order(
    spec: list[list[tuple[int, str, float]]], min_iou: float, min_similarity: float, max_gap: int
) -> None:
    frames = [[reading(10 * i, 15 * x, 0, text, score) for x, text, score in row] for i, row in enumerate(spec)]
    tracks = link(frames, min_iou, min_similarity, max_gap)
    linked = [r for track in tracks for r in track.readings]
    assert sorted(map(id, linked)) == sorted(id(r) for row in frames for r in row)
    for track in tracks:
        numbers = [r.frame for r in track.readings]
        assert numbers == sorted(set(numbers))
        for before, after in zip(track.readings, track.readings[1:], strict=False):
            assert box_iou(before.quad_42, after.quad_42) >= min_iou
            assert text_similarity(before.text, after.text) >= min_similarity
            assert after.frame - before.frame <= 10 * (max_gap + 1)
    first_frames = [track.readings[0].frame for track in tracks]
    assert first_frames == sorted(first_frames)


def three_tracks() -> list[Track]:
    return [
        Track([Reading(4, quad(51, 83, 31, 5), "Final Score", 0.6), Reading(9, quad(90, 60, 62, 10), "Final Sc", 0.5)]),
        Track([reading(0, 1, 2, "STOP", 0.96)]),
        Track([reading(12, 7, 30.25, "出口 way", 0.75)]),
    ]


def test_the_position_of_a_word() -> None:
    row = three_tracks()[0].position()
    want = [4, 9, 2, (66.5 + 121) / 2, (85.5 + 65) / 2, 46.5, 7.5, 54.5, -20.5, 2, 2, 0.6]
    np.testing.assert_allclose(row, want, rtol=1e-6)
    assert row.dtype == np.float32


def test_files_in_the_textvr_layout_are_read_back_the_same(tmp_path: Path) -> None:
    tracks = three_tracks()
    path = write_kwai(kwai(tracks), tmp_path, "Sports/a.b")
    assert path == tmp_path / "Sports" / "a.b.json"
    assert [p.name for p in path.parent.iterdir()] == ["a.b.json"]  # no temporary file is left
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["0"]["tracks"]["9"] == [90, 60, 152, 60, 152, 70, 90, 70, 0.5, 0]
    assert content["0"]["recommend_box"] == [51, 83, 82, 83, 82, 88, 51, 88]
    back = parse_kwai(load_kwai(path))
    assert [(track.text, track.score) for track in back] == [("Final Score", 0.6), ("STOP", 0.96), ("出口 way", 0.75)]
    for ours, theirs in zip(tracks, back, strict=True):
        np.testing.assert_allclose(ours.position(), position(theirs), rtol=1e-6)
    assert ocr_format(back).words == ("stop", "way", "final", "score")


def test_a_video_id_cannot_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leads out of"):
        write_kwai({}, tmp_path / "ocr", "../../elsewhere")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_kwai({"0": object()}, tmp_path, "a")
    assert list(tmp_path.iterdir()) == []


def test_words_have_their_own_boxes_where_known() -> None:
    line = Reading(3, quad(0, 0, 100), "red bus", 0.876543, (Word("red", quad(0, 0, 40)), Word("bus", quad(60, 0, 40))))
    red, bus, go, on = words_of([Track([line]), Track([reading(5, 1, 1, "go on")])])
    assert red == {"text": "red", "score": 0.87654, "box": [0, 0, 40, 0, 40, 10, 0, 10], "frame": 3, "track": 0}
    assert bus["box"][0] == 60
    assert go["box"] == on["box"] == [1, 1, 41, 1, 41, 11, 1, 11]
    assert on["track"] == 1


# The recogniser itself. One engine for all: it takes a second to load.


@pytest.fixture(scope="module")
def ocr() -> Ocr:
    return Ocr()


def page(lines: dict[tuple[int, int], str], size: tuple[int, int] = (320, 180)) -> np.ndarray:
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for at, text in lines.items():
        draw.text(at, text, font=ImageFont.load_default(28), fill="black")
    return np.asarray(picture)


def clip_of(*frames: np.ndarray, scale: int = 1, id: str = "video") -> Clip:
    height, width = frames[0].shape[:2]
    numbers = tuple(30 * i for i in range(len(frames)))
    return Clip(id, frames_THWC=np.stack(frames), frame_indices=numbers, size_hw=(scale * height, scale * width))


def test_rendered_words_are_read_linked_and_described(ocr: Ocr, tmp_path: Path) -> None:
    writing = Ocr(kwai_dir=str(tmp_path))
    writing._engine = ocr._engine = ocr._engine or ocr._load()
    clip = clip_of(
        page({(20, 30): "Hello world", (20, 100): "STOP"}), page({(24, 30): "Hello world", (200, 100): "Exit"}), scale=2
    )
    rows = writing.extract(clip)
    details = writing.details(clip)
    assert details is not None
    assert [word["text"] for word in details["words"]] == ["Hello", "world", "STOP", "Exit"]
    assert details["size"] == [360, 640]
    assert details["frames"] == [0, 30]
    assert rows is not None
    assert rows.shape == (4, ocr.dim) == (4, 12)
    assert rows.dtype == np.float32
    first, last, count = rows[0, :3]
    assert (first, last, count) == (0, 30, 2)
    assert rows[0, 7] == pytest.approx(8, abs=4)  # moved by 4 decoded pixels = 8 of the file
    x, y = np.array(details["words"][3]["box"]).reshape(4, 2).mean(axis=0)
    assert 400 < x < 500
    assert 200 < y < 260
    back = parse_kwai(load_kwai(tmp_path / "video.json"))
    assert [track.text for track in back] == ["Hello world", "STOP", "Exit"]
    assert details["kwai"] == json.loads((tmp_path / "video.json").read_text())


def test_pictures_without_text_are_missing_but_have_a_file(ocr: Ocr) -> None:
    clip = clip_of(np.full((64, 96, 3), 128, np.uint8))
    assert ocr.extract(clip) is None
    details = ocr.details(clip)
    assert details is not None
    assert details["kwai"] == {}
    assert details["words"] == []


def test_unchanged_frames_are_not_read_again(ocr: Ocr, monkeypatch: pytest.MonkeyPatch) -> None:
    same, other = page({(20, 30): "Hello"}), page({(20, 30): "Hello", (200, 100): "Exit"})
    noisy = np.clip(same.astype(int) - np.random.default_rng(0).integers(0, 3, same.shape), 0, 255).astype(np.uint8)
    skipping = Ocr(skip_below=2.0)
    skipping._engine = ocr._engine = ocr._engine or ocr._load()
    read: list[int] = []
    real = Ocr._read

    def counted(self: Ocr, image: np.ndarray, frame: int, scale: np.ndarray) -> list[Reading]:
        read.append(frame)
        return real(self, image, frame, scale)

    monkeypatch.setattr(Ocr, "_read", counted)
    clip = clip_of(same, noisy, other)
    rows = skipping.extract(clip)
    assert read == [0, 60]
    assert rows is not None
    assert rows[:, 2].tolist() == [3, 1]  # Hello on all three frames
    assert skipping.recipe()["skip_below"] == 2.0


def test_block_means() -> None:
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:2, :3] = 90
    blocks = _blocks(picture)
    assert blocks.shape == (16, 16)
    assert blocks[0, 0] == 90
    assert blocks.sum() == 90


def test_details_belong_to_their_clip(ocr: Ocr) -> None:
    clips = [clip_of(page({(20, 30): text}), id=text) for text in ("Hello", "Exit")]
    ocr.extract_many(clips)
    for clip in clips:
        details = ocr.details(clip)
        assert details is not None
        assert [word["text"] for word in details["words"]] == [clip.id]


def test_word_vectors_as_rows(ocr: Ocr, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("hello 1 2\nexit 3 4\n")
    embedding = Ocr(vectors=str(tmp_path / "words.txt"))
    embedding._engine = ocr._engine = ocr._engine or ocr._load()
    clip = clip_of(page({(20, 30): "Hello STOP", (20, 100): "Exit"}))
    rows = embedding.extract(clip)
    assert embedding.dim == 2
    np.testing.assert_array_equal(rows, [[1, 2], [3, 4]])
    details = embedding.details(clip)
    assert details is not None
    assert [word["text"] for word in details["words"]] == ["Hello", "Exit"]
    assert embedding.recipe()["rows"]["words"] == 2


def test_the_recipe_names_weights_and_settings(ocr: Ocr) -> None:
    recipe = ocr.recipe()
    json.dumps(recipe)
    assert set(recipe["versions"]) == {"rapidocr", "onnxruntime"}
    assert len(recipe["weights"]) == 2
    assert all(len(digest) == 64 for digest in recipe["weights"].values())
    assert "kwai_dir" not in recipe
    assert Ocr(fps=2.0).recipe() != recipe
    assert ocr.request.fps == 1.0


def test_it_travels_to_other_processes_without_its_engine(ocr: Ocr) -> None:
    ocr._engine = ocr._engine or ocr._load()
    copy = pickle.loads(pickle.dumps(ocr))  # noqa: S301  our own bytes
    assert copy._engine is None
    assert copy.recipe() == ocr.recipe()


def test_loading_asks_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert Ocr()._load() is not None


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"extractor\.fps=0"):
        Ocr(fps=0)
    monkeypatch.setattr("src.extractors.ocr.local_path", lambda *_: tmp_path)
    with pytest.raises(UserError, match="nowhere"):
        Ocr()
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(UserError, match=r"package rapidocr is not installed.*videotext\[ocr\]"):
        Ocr()
    with pytest.raises(UserError, match=r"no-such-package.*not installed"):
        local_path("package:no_such_package/data", "extractor.path")


@pytest.mark.real
@pytest.mark.parametrize(("name", "seen"), [("video7015", "Having"), ("6AXZJTgpusY.3", "HAWAI")])
def test_real_clips(ocr: Ocr, shared_data: Path, name: str, seen: str) -> None:
    path = next((shared_data / "clips").glob(f"*/{name}.mp4"))
    clip = ClipDecoder("frames", ocr.request)(VideoRecord(name, path))
    assert isinstance(clip, Clip)
    rows, details = ocr.extract(clip), ocr.details(clip)
    assert rows is not None
    assert details is not None
    assert seen in {word["text"] for word in details["words"]}
    assert len(rows) == len(details["words"])
    height, width = clip.size_hw
    boxes = np.array([word["box"] for word in details["words"]]).reshape(-1, 2)
    assert boxes.min() >= -1
    assert (boxes.max(axis=0) <= (width + 1, height + 1)).all()
    assert {int(frame) for track in details["kwai"].values() for frame in track["tracks"]} <= set(clip.frame_indices)
