"""Words in the picture, from OCR files and stores to the model's batch and the report."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from src.batch import FrameSpec, InputSpec, VideoBatch, VideoEmbedding, WordSpec
from src.data import words as words_module
from src.data.annotation import VideoRecord
from src.data.benchmarks.folder import FolderDataModule
from src.data.datasets import FrameSource
from src.data.features.writer import FAILED, StoreWriter
from src.data.fill_cache import FillOptions, fill
from src.data.frame_cache import Recipe
from src.data.ocr import ocr_format, parse_kwai
from src.data.splits import SplitSpec
from src.data.video import Problem, VideoError, VideoShape, read_problems
from src.data.word_checks import find_in_words
from src.data.words import DAMAGED, NO_SHAPE, WordPieces, WordSource
from src.errors import UserError
from src.metrics.retrieval import evaluate_matrix
from src.models.gradient_cache import encode_in_chunks
from src.reports.html import page_data
from src.reports.report import ReportFacts, VideoFacts, metrics_json, write_report
from src.tasks.outcome import print_problems
from tests.clips import make_clip

START, END, PAD = 101, 102, 7


class Letters:
    """START, the letters of the word, END; padded with 7 to a fixed length, as some tokenizers do."""

    def __init__(self, length: int = 16) -> None:
        self.length = length
        self.calls: list[list[str]] = []

    @property
    def fingerprint(self) -> str:
        return f"letters {self.length}"

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        self.calls.append(list(captions))
        rows = [[START, *map(ord, caption.strip()), END][: self.length] for caption in captions]
        tokens = torch.tensor([row + [PAD] * (self.length - len(row)) for row in rows])
        return tokens, torch.arange(self.length) < torch.tensor([len(row) for row in rows])[:, None]


class Shapes:
    """Stands for FrameSource: every video is 200 x 100 and has 50 frames, but "lost" cannot be read."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def shape(self, record: VideoRecord) -> VideoShape:
        self.asked.append(record.id)
        if record.id == "lost":
            raise VideoError("lost.mp4", "file not found")
        return VideoShape(200, 100, 50)


def track(text: object, score: object = 0.5, x: float = 20, frames: Sequence[int] = (5, 10), **more: Any) -> Any:
    box = [x, 10, x + 40, 10, x + 40, 30, x, 30, 0.9, 1]
    return {"text": text, "score": score, "tracks": {str(frame): box for frame in frames}, "recommend_box": box} | more


def write(folder: Path, video_id: str, *tracks: Any) -> Path:
    path = folder / f"{video_id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({str(k): value for k, value in enumerate(tracks)}, ensure_ascii=False))
    return path


def source(folder: Path | None, spec: WordSpec | None = None, **options: Any) -> WordSource:
    return WordSource(spec or WordSpec(Letters()), folder, options.pop("frames", Shapes()), **options)


def records(*ids: str) -> list[VideoRecord]:
    return [VideoRecord(video_id) for video_id in ids]


def read_back(batch: Any, row: int) -> list[str]:
    """The words of a row, from its token ids."""
    real = [batch.tokens_BWL[row, w][batch.mask_BWL[row, w]].tolist() for w in range(batch.tokens_BWL.shape[1])]
    found = ["".join(map(chr, ids[1:-1])) for ids in real]
    used = batch.words_BW[row].tolist()
    assert all(ids[0] == START and ids[-1] == END for ids in real)
    assert all(not word for word, is_real in zip(found, used, strict=True) if not is_real)
    return [word for word, is_real in zip(found, used, strict=True) if is_real]


def test_batch_of_kwai_files(tmp_path: Path) -> None:
    write(tmp_path, "Games/a", track("Final Score", "0.6"), track("STOP", 0.9, x=60, frames=(0, 25)))
    write(tmp_path, "b", track("stop"))
    write(tmp_path, "none")
    words = source(tmp_path)
    batch = words.batch(records("Games/a", "none", "b"))
    assert [read_back(batch, row) for row in range(3)] == [["stop", "final", "score"], [], ["stop"]]
    assert batch.tokens_BWL.shape == (3, 3, 7)  # the longest word has five letters
    assert batch.tokens_BWL.dtype == torch.int64
    assert batch.tokens_BWL[1].tolist() == [[START, END, PAD, PAD, PAD, PAD, PAD]] * 3
    assert batch.mask_BWL[1].tolist() == [[True, True] + [False] * 5] * 3
    assert batch.words_BW.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    # STOP: frames 0 to 25 of 50, centre (80, 20) and box 40 x 20 of 200 x 100 pixels.
    expected = [0, 0.5, 0.04, 0.4, 0.2, 0.2, 0.2, 0, 0, 1, 1, 0.9]
    np.testing.assert_allclose(batch.positions_BWP[0, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(batch.positions_BWP[0, 1, :3], [0.1, 0.2, 0.04], rtol=1e-5)
    assert not batch.positions_BWP[1].any()
    assert not batch.positions_BWP[2, 1:].any()
    assert words.lacking(records("Games/a", "none", "elsewhere")) == ["elsewhere"]
    assert words.problems == {}


def test_no_words_at_all_leave_one_blank_slot(tmp_path: Path) -> None:
    batch = source(tmp_path).batch(records("x", "y"))
    assert batch.tokens_BWL.tolist() == [[[START, END]]] * 2
    assert batch.mask_BWL.all()
    assert not batch.words_BW.any()
    assert batch.positions_BWP.shape == (2, 1, 12)


def test_rule_length_and_number_are_the_models(tmp_path: Path) -> None:
    tracks = [track("STOP", 0.2), track("stop", 0.9, frames=(9, 3)), track("go", 0.5), track("{x|}", 0.4)]
    write(tmp_path, "a", *tracks)
    parsed = parse_kwai({str(k): value for k, value in enumerate(tracks)})
    for options in ({}, {"rule": "upstream"}, {"min_length": 2}, {"max_words": 1}, {"position_rule": "upstream"}):
        words = source(tmp_path, WordSpec(Letters(), **options), frames=Shapes()).of(VideoRecord("a"))
        expected = ocr_format(parsed, **options)
        assert words.words == expected.words
        scale = np.array([50, 50, 50, 200, 100, 200, 100, 200, 100, 1, 1, 1])
        np.testing.assert_allclose(words.positions_WP, expected.positions_W12 / scale, rtol=1e-6)
    upstream = source(tmp_path, WordSpec(Letters(), rule="upstream", position_rule="fixed")).of(VideoRecord("a"))
    assert upstream.words == ("stop",)  # the first one stays, "stop" is then known
    assert upstream.positions_WP[0, 7] == 0  # displacement, not half the box


def test_the_shape_that_the_ocr_noted_comes_before_that_of_the_decoded_video(tmp_path: Path) -> None:
    write(tmp_path, "ours", track("stop", frames=(110, 120), video=[400, 50, 40, 100]))
    write(tmp_path, "theirs", track("stop"))
    write(tmp_path, "odd", track("stop", video=["400", 0, None]))
    shapes = Shapes()
    words = source(tmp_path, frames=shapes)
    # A segment that begins at frame 100: frames count from there.
    ours = words.of(VideoRecord("ours")).positions_WP[0]
    np.testing.assert_allclose(ours[:7], [0.25, 0.5, 0.05, 0.1, 0.4, 0.1, 0.4], rtol=1e-5)
    assert shapes.asked == []
    for _ in range(2):
        words.batch(records("theirs", "odd"))
    assert shapes.asked == ["theirs", "odd"]  # once each
    write(tmp_path, "quiet")
    words.batch(records("quiet", "nowhere"))
    blind = source(tmp_path, WordSpec(Letters(), positions=False), frames=shapes)
    assert not blind.batch(records("theirs")).positions_BWP.any()
    assert shapes.asked == ["theirs", "odd"]


def test_unknown_shape_is_listed_and_the_words_stay(tmp_path: Path) -> None:
    write(tmp_path, "lost", track("stop"))
    words = source(tmp_path, problems_file=tmp_path / "run" / "problems.jsonl")
    batch = words.batch(records("lost"))
    assert read_back(batch, 0) == ["stop"]
    assert not batch.positions_BWP.any()
    (problem,) = read_problems(tmp_path / "run" / "problems.jsonl")
    assert (problem.video_id, problem.kind) == ("lost", NO_SHAPE)
    assert "file not found" in problem.reason


BAD = {
    "cut": b'{"0": {"text": "st',
    "empty": b"",
    "list": b"[]",
    "binary": b"\xff\xfe\x00",
    "deep": b"[" * 200_000,
    "long": b'{"0": {"text": "x", "score": 1, "tracks": {"' + b"9" * 5000 + b'": [0, 0, 1, 0, 1, 1, 0, 1]}}}',
    "nan": json.dumps({"0": track("stop", float("nan"))}).encode(),
    "huge": json.dumps({"0": track("stop", 1e300)}).encode(),
    "far": json.dumps({"0": track("stop", frames=(10**30,))}).encode(),
    "null": json.dumps({"0": track(None)}).encode(),
    "flat": json.dumps({"0": "stop"}).encode(),
    "shapeless": json.dumps({"0": {"text": "stop", "score": 1}}).encode(),
}


def test_damaged_files_are_listed_and_their_videos_have_no_words(tmp_path: Path) -> None:
    for name, content in BAD.items():
        (tmp_path / f"{name}.json").write_bytes(content)
    (tmp_path / "folder.json").mkdir()
    write(tmp_path, "good", track("stop"))
    file = tmp_path / "run" / "problems.jsonl"
    words = source(tmp_path, problems_file=file)
    names = [*BAD, "folder"]
    for _ in range(2):  # each is read and listed once
        batch = words.batch(records(*names, "good"))
    assert batch.words_BW.any(1).tolist() == [False] * len(names) + [True]
    assert torch.isfinite(batch.positions_BWP).all()
    found = read_problems(file)
    assert [problem.video_id for problem in found] == names
    assert list(words.problems.values()) == found
    for problem in found:
        assert problem.kind == DAMAGED
        assert problem.path == str(tmp_path / f"{problem.video_id}.json")
        assert problem.path in problem.reason
    assert len(file.read_text().splitlines()) == len(names)
    assert words.lacking(records(*names)) == []  # damaged is not missing


def test_other_scripts_and_hostile_texts(tmp_path: Path) -> None:
    write(tmp_path, "a", track("出口 exit", 0.9), track("café", 0.8), track("</script><b>", 0.7), track(2024, 0.6))
    (tmp_path / "b.json").write_text(json.dumps({"0": track("\ud83d alone \u202e"), "1": track("x" * 5000, 0.1)}))
    words = source(tmp_path)
    assert words.of(VideoRecord("a")).words == ("exit", "</script><b>", "2024")
    assert words.of(VideoRecord("b")).words == ("alone", "x" * 5000)
    assert words.batch(records("b")).tokens_BWL.shape == (1, 2, 16)  # the tokenizer cuts


def test_ids_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    write(tmp_path, "secret", track("stop"))
    (tmp_path / "ocr").mkdir()
    words = source(tmp_path / "ocr")
    strangers = [*records("../secret", str(tmp_path / "secret")), VideoRecord("x", ocr="../secret.json")]
    assert len(words.lacking(strangers)) == 3
    assert not words.batch(strangers).words_BW.any()


def test_the_file_that_the_data_set_names_comes_first(tmp_path: Path) -> None:
    write(tmp_path, "Movie/a", track("published"))
    write(tmp_path, "Cooking/a", track("ours"))
    write(tmp_path, "shared", track("same"))
    words = source(tmp_path)
    assert words.of(VideoRecord("Cooking/a", ocr="Movie/a.json")).words == ("published",)
    assert words.of(VideoRecord("Cooking/a2", ocr="Movie/none.json", same_as="Cooking/a")).words == ("ours",)
    assert words.of(VideoRecord("other", same_as="shared")).words == ("same",)


def test_no_folder() -> None:
    for folder, found in ((None, "dataset.ocr_dir is null"), (Path("nowhere"), "dataset.ocr_dir=nowhere is not a")):
        with pytest.raises(UserError, match=rf"{found}.*the model reads the words.*extractor=ocr extractor.kwai_dir="):
            source(folder).check()


def test_the_folder_of_other_videos(tmp_path: Path) -> None:
    write(tmp_path, "a", track("stop"))
    words = source(tmp_path)
    words.check()
    words.check([records("x", "a"), records("y")])
    words.check([[], []])
    match = r"has OCR of none of the videos \(looked for .*x.json, …\), expected that of some; set dataset.ocr_dir"
    with pytest.raises(UserError, match=match):
        words.check([records("x", "y"), records("z")])


def make_store(path: Path, extractor: str = "ocr") -> Path:
    """a and d have words, b shows none, c could not be read."""
    writer = StoreWriter(
        path,
        name="ocr",
        dim=12,
        recipe={"extractor": {"extractor": extractor}},
        ids=["a", "b", "c", "d"],
        items_per_shard=2,
    )
    row = np.ones((1, 12), np.float32)
    details = {"kwai": {"0": track("Exit 12", frames=(2, 4), video=[100, 50, 20, 0])}, "size": [50, 100], "frames": [2]}
    items = {
        "a": ("a", row, None, details),
        "b": ("b", None, "no text", {"kwai": {}, "size": [50, 100], "frames": [2]}),
        "c": ("c", None, f"{FAILED}truncated", None),
        "d": ("d", row, None, {"kwai": {"0": {"text": "stop"}}}),
    }
    for shard in writer.pending():
        writer.write_shard(shard, (items[i] for i in writer.shard_ids(shard)))
    writer.finish()
    return path


def test_store_of_the_extractor(tmp_path: Path) -> None:
    words = source(make_store(tmp_path / "ocr"))
    words.check()
    assert words.lacking(records("a", "b", "c", "d", "e")) == ["c", "e"]
    for reader in (words, pickle.loads(pickle.dumps(words))):  # noqa: S301  (as a worker gets it)
        batch = reader.batch([*records("b", "c"), VideoRecord("x", same_as="a"), *records("d")])
        assert [read_back(batch, row) for row in range(4)] == [[], [], ["exit"], []]
        np.testing.assert_allclose(batch.positions_BWP[2, 0, :5], [0.1, 0.2, 0.1, 0.4, 0.4], rtol=1e-5)
        ((key, problem),) = reader.problems.items()
        assert key == ("d", DAMAGED)
        assert "item 'd', track '0'" in problem.reason
    other = make_store(tmp_path / "clip", "clip")
    with pytest.raises(UserError, match=r"clip: found a feature store of clip, expected one of extractor=ocr"):
        source(other).check()


@pytest.mark.parametrize("rule", ["fixed", "upstream"])
def test_a_store_and_files_of_one_extraction_are_the_same(tmp_path: Path, rule: Any) -> None:
    # A store sorts keys as text: frame 157 before 22, track 10 before 2.
    tracks = [
        track(f"word{k % 8} STOP", 0.5, x=5.0 * k, frames=(22, 157, 1000), video=[640, 360, 1200, 0]) for k in range(12)
    ]
    for k, one in enumerate(tracks):
        one["tracks"]["1000"] = [value + k for value in one["tracks"]["1000"]]
    path = write(tmp_path / "files", "a", *tracks)
    writer = StoreWriter(tmp_path / "ocr", name="ocr", dim=12, recipe={"extractor": {"extractor": "ocr"}}, ids=["a"])
    writer.write_shard(0, [("a", np.ones((1, 12), np.float32), None, {"kwai": json.loads(path.read_text())})])
    writer.finish()
    found = [source(tmp_path / name, WordSpec(Letters(), rule=rule)).of(VideoRecord("a")) for name in ("files", "ocr")]
    assert found[0].words == found[1].words
    np.testing.assert_array_equal(found[0].positions_WP, found[1].positions_WP)


def test_each_distinct_word_is_tokenised_once(tmp_path: Path) -> None:
    write(tmp_path, "a", track("stop exit"))
    write(tmp_path, "b", track("exit now"))
    tokenizer = Letters()
    words = source(tmp_path, WordSpec(tokenizer))
    for _ in range(3):
        words.batch(records("a", "b", "a"))
    asked = [word for call in tokenizer.calls for word in call if "xylo" not in word]
    assert sorted(set(asked)) == [" ", "exit", "now", "stop"]
    assert len([word for word in asked if word != " "]) == 3


def test_a_tokenizer_with_padding_inside_is_refused() -> None:
    def odd(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        return torch.ones(len(captions), 2, dtype=torch.int64), torch.tensor([[False, True]] * len(captions))

    odd.fingerprint = "odd"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="odd: expected real tokens before the padding"):
        WordPieces(odd)(["stop"])  # type: ignore[arg-type]


def test_what_a_process_keeps_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"v{k}" for k in range(40)]
    for k, name in enumerate(names):
        write(tmp_path, name, *(track(f"word{k}x{j}", video=[9, 9, 9, 0]) for j in range(25)))
    reference = source(tmp_path)
    expected = [reference.of(record).words for record in records(*names)]
    monkeypatch.setattr(words_module, "MOST_WORDS", 100)
    monkeypatch.setattr(words_module, "MOST_TOKENISED", 60)
    words = source(tmp_path)
    for _ in range(2):
        for name, wanted in zip(names, expected, strict=True):
            batch = words.batch(records(name))
            assert read_back(batch, 0) == list(wanted)
    assert len(words._kept) == 4
    assert words._num_kept == 100
    assert len(words.pieces._kept) <= 60
    # What is kept of a word: 48 bytes of position and its letters.
    size = sum(len(text) + positions.nbytes for text, positions in words._kept.values())
    assert size < 100 * 60
    words.spec.tokenizer.calls.clear()  # type: ignore[attr-defined]
    words.frames.asked.clear()  # type: ignore[attr-defined]
    assert len(pickle.dumps(words)) < 3000  # nothing of it travels to a worker


# In the data module.


def tokenize(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    return torch.ones(len(captions), 2, dtype=torch.int64), torch.ones(len(captions), 2, dtype=torch.bool)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 train and 5 test clips of 64 x 48 with 12 frames; test1 has no OCR file, test2 a damaged one, test3 no word."""
    root = tmp_path_factory.mktemp("clips")
    lines = ["video,caption,split"]
    for part, count in (("train", 8), ("test", 5)):
        for k in range(count):
            name = f"{part}{k}.mp4"
            make_clip(root / name, 12, audio=False)
            lines += [f"{name},caption {j} of {part} {k},{part}" for j in range(2)]
            if name != "test1.mp4":
                texts = [] if name == "test3.mp4" else [track(f"word{j} of{k}", 0.1 * j) for j in range(k % 3 + 1)]
                path = write(root / "ocr", name, *texts)
            if name == "test2.mp4":
                path.write_text("{")
    (root / "captions.csv").write_text("\n".join(lines) + "\n")
    return root


SPLIT = SplitSpec("folder", parts={"train": "train", "test": "test"})
FRAMES = FrameSpec(num_frames=2, image_size=16)


def make(root: Path, *, rank: int = 0, world_size: int = 1, **options: Any) -> FolderDataModule:
    values: dict[str, Any] = {
        "inputs": InputSpec(tokenize, FRAMES, words=WordSpec(Letters())),  # type: ignore[arg-type]
        "split": SPLIT,
        "batch_size": 4,
        "eval_batch_size": 4,
        "ocr_dir": str(root / "ocr"),
    }
    module = FolderDataModule(name="folder", data_dir=str(root), **values | options)
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)  # type: ignore[assignment]
    module.setup()
    return module


def train_words(module: FolderDataModule) -> list[tuple[list[int], list[list[str]], list[float]]]:
    found = []
    for batch in module.train_dataloader():
        words = batch.video.words
        texts = [read_back(words, row) for row in range(len(words))]
        found.append((batch.video.ids.tolist(), texts, words.positions_BWP.sum((1, 2)).tolist()))
    return found


def test_workers_and_processes_change_nothing(clips: Path, tmp_path: Path) -> None:
    reference = train_words(make(clips))
    assert any(texts for _, rows, _ in reference for texts in rows)
    assert train_words(make(clips, num_workers=2)) == reference
    shards = [train_words(make(clips, rank=rank, world_size=2)) for rank in range(2)]
    for whole, first, second in zip(reference, *shards, strict=True):
        assert (first[0] + second[0], first[1] + second[1]) == whole[:2]
        assert first[2] + second[2] == pytest.approx(whole[2])
    # Positions are those of the decoded clip: 64 x 48, 12 frames.
    position = make(clips).words.of(make(clips).part("train").videos[0]).positions_WP[0]  # type: ignore[union-attr]
    np.testing.assert_allclose(position[:5], [5 / 12, 10 / 12, 2 / 12, 40 / 64, 20 / 48], rtol=1e-5)


def test_evaluation_counts_and_lists(clips: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        file = tmp_path / f"run{workers}" / "problems.jsonl"
        module = make(clips, problems_file=file, num_workers=workers)
        batches = list(module.test_dataloader()[0])
        assert [row for batch in batches for row in batch.words.words_BW.any(1).tolist()] == [1, 0, 0, 0, 1]
        assert all(batch.frames_BTCHW is not None for batch in batches)
        assert module.describe("test")["without_ocr"] == 1
        assert module.describe("train")["without_ocr"] == 0
        (problem,) = module.problems
        assert (problem.video_id, problem.part, problem.kind) == ("test2.mp4", "test", DAMAGED)
    shown = module.shown_words(module.part("test"))
    assert shown is not None
    assert [shown[k] for k in shown] == [["word0", "of0"], None, None, [], ["word1", "of4", "word0"]]
    assert shown.get(99) is None


def test_a_model_without_words_reads_none(clips: Path, tmp_path: Path) -> None:
    module = make(clips, inputs=InputSpec(tokenize, FRAMES), ocr_dir=str(tmp_path / "nowhere"))  # type: ignore[arg-type]
    assert next(iter(module.train_dataloader())).video.words is None
    assert "without_ocr" not in module.describe("test")
    assert module.shown_words(module.part("test")) is None
    with pytest.raises(UserError, match=r"nowhere is not a folder, but the model reads the words in the picture"):
        make(clips, ocr_dir=str(tmp_path / "nowhere"))


def test_words_without_frames(clips: Path) -> None:
    inputs = InputSpec(tokenize, words=WordSpec(Letters()))  # type: ignore[arg-type]
    batch = next(iter(make(clips, inputs=inputs).test_dataloader()[0]))
    assert batch.frames_BTCHW is None
    np.testing.assert_allclose(batch.words.positions_BWP[0, 0, 3:5], [40 / 64, 20 / 48], rtol=1e-5)


def test_shapes_come_from_the_frame_cache_where_the_files_are_gone(clips: Path, tmp_path: Path) -> None:
    root = tmp_path / "clips"
    root.mkdir()
    for path in clips.glob("*.*"):
        (root / path.name).write_bytes(path.read_bytes())
    expected = train_words(make(root, ocr_dir=str(clips / "ocr")))
    videos = make(root, ocr_dir=str(clips / "ocr")).annotation.videos
    fill(tmp_path / "cache", videos, Recipe(FRAMES), FillOptions(workers=1))
    for path in root.glob("*.mp4"):
        path.unlink()
    module = make(root, ocr_dir=str(clips / "ocr"), cache="disk", cache_dir=str(tmp_path / "cache"))
    assert train_words(module) == expected
    assert module.problems == []
    # A cache that was made before shapes were noted: the words stay, and each video is listed.
    for table in (tmp_path / "cache").glob("shard-*.json"):
        content = json.loads(table.read_text())
        for entry in content["videos"]:
            del entry["video"]
        table.write_text(json.dumps(content))
    old = make(root, ocr_dir=str(clips / "ocr"), cache="disk", cache_dir=str(tmp_path / "cache"))
    assert [rows for _, rows, _ in train_words(old)] == [rows for _, rows, _ in expected]
    assert {problem.kind for problem in old.problems} == {NO_SHAPE}


def test_shape_of_a_segment_and_of_a_missing_file(clips: Path) -> None:
    frames = FrameSource(None)
    assert frames.shape(VideoRecord("a", clips / "train0.mp4")) == (64, 48, 12, 0)
    assert frames.shape(VideoRecord("a", clips / "train0.mp4", 0.1, 0.3)) == (64, 48, 6, 3)
    for record in (VideoRecord("a"), VideoRecord("a", clips / "no.mp4"), VideoRecord("a", clips / "train0.mp4", 99)):
        with pytest.raises(VideoError):
            frames.shape(record)


def test_captions_of_one_video_share_its_words(clips: Path) -> None:
    module = make(clips, encode_videos_once=True, batch_size=16)
    (batch,) = module.train_dataloader()
    assert (len(batch.text), len(batch.video), len(batch.video.words)) == (16, 8, 8)


def test_chunks_of_cached_gradients_cut_the_words(clips: Path) -> None:
    batch = next(iter(make(clips, eval_batch_size=5).test_dataloader()[0]))
    seen: list[tuple[int, int]] = []

    def encode(chunk: VideoBatch) -> VideoEmbedding:
        assert chunk.words is not None
        seen.append((len(chunk), len(chunk.words)))
        return VideoEmbedding(chunk.ids, {"x": chunk.words.positions_BWP.sum(1)})

    whole, cut = encode(batch), encode_in_chunks(encode, batch, 2)
    assert torch.equal(whole.parts["x"], cut.parts["x"])
    assert seen == [(5, 5), (2, 2), (3, 3)]
    assert batch.to("cpu").words.tokens_BWL.dtype == torch.int64


def test_check_data(clips: Path, tmp_path: Path) -> None:
    module = make(clips)
    lists = {name: part.videos for name, part in module.applied.parts.items()}
    findings, counts = find_in_words(clips / "ocr", lists)
    assert counts == {"train": 8, "test": 4}
    assert [(f.severity, f.kind, f.where, len(f.items)) for f in findings] == [("note", "missing OCR file", "test", 1)]
    assert findings[0].items[0] == f"test1.mp4 at {clips / 'ocr' / 'test1.mp4.json'}"
    findings, _ = find_in_words(clips / "ocr", lists, read_all=True)
    kinds = [(f.severity, f.kind, [item.split(":")[0] for item in f.items]) for f in findings[1:]]
    assert kinds == [("error", "damaged OCR file", ["test2.mp4"]), ("note", "OCR without words", ["test3.mp4"])]
    assert find_in_words(tmp_path / "no", lists) == find_in_words(None, lists) == ([], {})
    named = {"test": (VideoRecord("a", ocr="a.json"),)}
    assert find_in_words(tmp_path / "no", named)[0][0].items == (f"dataset.ocr_dir={tmp_path / 'no'} is not a folder",)
    other = make_store(tmp_path / "clip", "clip")
    assert find_in_words(other, lists)[0][0].kind == "no usable OCR"
    assert find_in_words(make_store(tmp_path / "ocr"), {"test": records("a", "c")})[1] == {"test": 1}


# In the report.

HOSTILE = ["</script><script>alert(1)</script>", '<img src=x onerror="alert(1)">', "<!--", "\u2028", "y" * 500]


def test_the_report_shows_the_best_words_beside_each_video(tmp_path: Path) -> None:
    result = evaluate_matrix(np.eye(3), torch.arange(3), 3)
    facts = ReportFacts(
        protocol={"without_ocr": 1},
        captions={k: f"caption {k}" for k in range(3)},
        videos={k: VideoFacts(f"video {k}") for k in range(3)},
        words={0: HOSTILE, 1: [f"word{k}" for k in range(30)], 2: []},
    )
    videos = page_data(result, facts, tmp_path)["videos"]
    assert videos[0]["words"] == [*HOSTILE[:4], "y" * 40 + "…"]
    assert videos[1]["words"] == [f"word{k}" for k in range(20)]
    assert videos[2]["words"] == []
    for words in ({2: None}, {}):  # without OCR file, or with a damaged one: not the same as no words
        assert page_data(result, replace(facts, words=words), tmp_path)["videos"][2]["words"] is None
    text = write_report(tmp_path / "run", result, facts).read_text(encoding="utf-8")
    assert "missing or damaged" in text
    assert "</script><script>alert" not in text
    assert "<img src=x" not in text
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["protocol"]["without_ocr"] == 1
    without = page_data(result, ReportFacts({}, facts.captions, facts.videos), tmp_path)["videos"]
    assert all("words" not in video for video in without)


def test_a_video_whose_words_are_lost_is_not_called_excluded(capsys: pytest.CaptureFixture[str]) -> None:
    problems = [Problem("v", "v.json", "why", DAMAGED, "test", kept=True), Problem("w", "w.mp4", "why", part="test")]
    print_problems(problems)
    found = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert found == ["kept", "excluded"]
    result = evaluate_matrix(np.eye(3), torch.arange(3), 3)
    content = metrics_json(result, ReportFacts({}, {}, {}, problems=problems))
    assert content["kept"] == {"by_part": {"test": {DAMAGED: 1}}}
    assert content["excluded"]["by_part"] == {"test": {"unreadable video": 1}}  # type: ignore[index]
    assert "kept" not in metrics_json(result, ReportFacts({}, {}, {}, problems=problems[1:]))
