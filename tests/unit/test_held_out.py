"""Held-out captions of the same videos: parts share videos on purpose, and never a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.batch import InputSpec
from src.data.annotation import Annotation, CaptionRecord, VideoRecord
from src.data.benchmarks.folder import FolderDataModule
from src.data.checks import find_all
from src.data.splits import AppliedSplit, SplitSpec, apply_split
from src.errors import UserError
from src.reports.protocol import protocol_line
from tests.unit.test_folder import tokenize

ALL = {"train": "all", "val": "all", "test": "all"}


def annotation(sentences: dict[str, list[str]]) -> Annotation:
    captions = [CaptionRecord(video, text) for video, texts in sentences.items() for text in texts]
    return Annotation(tuple(VideoRecord(v) for v in sentences), tuple(captions), {"all": tuple(sentences)})


def texts(applied: AppliedSplit, part: str, video: str) -> list[str]:
    chosen = applied.part(part)
    ids = [record.id for record in chosen.videos]
    return [c.text for c, i in zip(chosen.captions, chosen.video_index, strict=True) if ids[i] == video]


def test_sentences_are_dealt_out_once_and_in_the_order_of_the_file() -> None:
    sentences = {f"v{i}": [f"sentence {k} of {i}" for k in range(6)] for i in range(20)}
    applied = apply_split(SplitSpec("s", ALL, caption_holdout={"test": 2, "val": 1}), annotation(sentences))
    for video, given in sentences.items():
        dealt = {part: texts(applied, part, video) for part in ALL}
        assert {part: len(own) for part, own in dealt.items()} == {"train": 3, "val": 1, "test": 2}
        assert sorted(text for own in dealt.values() for text in own) == given
        assert all(own == sorted(own) for own in dealt.values())
    # Not always the same places of the file, or the annotators' order would choose.
    assert len({tuple(sentences[v].index(t) for t in texts(applied, "test", v)) for v in sentences}) > 5


def test_repeated_words_go_to_one_part_and_one_sentence_always_trains() -> None:
    found = annotation({"a": ["A dog", "a  dog ", "a cat"], "b": ["alone"], "c": ["x", "y", ""], "d": ["p", "q", "r"]})
    applied = apply_split(SplitSpec("s", ALL, caption_holdout={"test": 1, "val": 1}), found)
    parts = {part: {video: texts(applied, part, video) for video in "abcd"} for part in ALL}
    assert {tuple(parts[part]["a"]) for part in ("train", "test")} == {("A dog", "a  dog "), ("a cat",)}
    assert parts["val"]["a"] == []
    assert parts["train"]["b"] == ["alone"]
    assert [len(parts[part]["c"]) for part in ("train", "test", "val")] == [1, 1, 0]
    assert [len(parts[part]["d"]) for part in ("train", "test", "val")] == [1, 1, 1]
    # Videos without a held-out sentence make the gallery harder instead of vanishing.
    assert [video.id for video in applied.part("test").videos] == ["a", "b", "c", "d"]
    assert applied.excluded_counts("test") == {}


def test_only_the_declared_overlap_is_allowed() -> None:
    found = annotation({"a": ["x", "y"], "b": ["z", "w"]})
    with pytest.raises(UserError, match="both in train and in val"):
        apply_split(SplitSpec("s", ALL, caption_holdout={"test": 1}), found)
    with pytest.raises(UserError, match=r"both in train and in test.*held_out_captions"):
        apply_split(SplitSpec("s", {"train": "all", "test": "all"}), found)
    kinds = {finding.kind: finding.severity for finding in find_all(SplitSpec("s", ALL), found)}
    assert kinds["same video in two parts"] == "error"
    findings = find_all(SplitSpec("s", ALL, caption_holdout={"test": 1, "val": 1}), found)
    assert {finding.severity for finding in findings} == {"note"}
    assert {finding.kind for finding in findings} == {"same video in two parts, by other captions"}


@pytest.mark.parametrize("holdout", [{"train": 1}, {"test": 0}, {"other": 1}])
def test_wrong_declarations(holdout: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"split\.caption_holdout"):
        SplitSpec("s", ALL, caption_holdout=holdout)


def test_videos_that_do_not_train_cannot_hold_captions_out() -> None:
    found = annotation({"a": ["x", "y"], "b": ["z", "w"]})
    found.splits.update(train=("a",), test=("a", "b"))
    spec = SplitSpec("s", {"train": "train", "test": "test"}, caption_holdout={"test": 1})
    with pytest.raises(UserError, match=r"1 videos that train does not have .*'b'"):
        apply_split(spec, found)


def test_own_folder_and_the_line_beside_its_numbers(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("video,caption\na.mp4,one\na.mp4,two\nb.mp4,three\nc.mp4,four\n")

    spec = SplitSpec("held_out_captions", {"train": "all", "test": "all"}, caption_holdout={"test": 1})
    module = FolderDataModule(name="folder", split=spec, inputs=InputSpec(tokenize), data_dir=str(tmp_path))
    assert len(module.part("train").captions) == 3
    assert len(module.part("test").captions) == 1
    said = "1 caption of each training video; its others were trained on"
    assert module.describe("test")["held_out"] == said
    assert said in protocol_line(module.describe("test"))
    assert "held_out" not in module.describe("train")
