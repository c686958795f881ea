"""dataset=textvr on generated files of the published layout, and on the published test file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from src.batch import FrameSpec, InputSpec, WordSpec
from src.data.benchmarks import textvr
from src.data.benchmarks.textvr import TextvrDataModule
from src.data.splits import Counts, SplitSpec
from src.data.word_checks import find_in_words
from src.errors import UserError

SPLITS = Path(__file__).resolve().parents[2] / "conf" / "split"
BOTH = SplitSpec("textvr", parts={"train": "train", "test": "test"})
TEST = SplitSpec("textvr_test", parts={"test": "test"})


def entry(name: str, captions: list[str], split: str, ocr: str | None = None) -> dict[str, Any]:
    infos = [{"caption": text, "caption_info": {"duration": 10.0, "desc_id": k}} for k, text in enumerate(captions)]
    video = {"source": "yc2", "split": split, "Kwai_OCR": ocr or f"{name}.json"}
    return {"path": f"{name}.mp4", "captions_info": infos, "videos_info": video}


TEST_ENTRIES = [entry(f"Games/t{k}", [f"test {k}"], "test") for k in range(3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two train videos with two captions each, three test videos; the OCR of the first train video has moved."""
    train = [
        entry("Cooking/a.b", ["soup", "stew"], "train", "Movie/a.b.json"),
        entry("Driving/c", ["car", "road"], "train"),
    ]
    (tmp_path / "TextVR_train.json").write_text(json.dumps(train))
    (tmp_path / "TextVR_test.json").write_text(json.dumps(TEST_ENTRIES))
    return tmp_path


def make(folder: Path, split: SplitSpec = BOTH, **options: Any) -> TextvrDataModule:
    options = {"inputs": InputSpec(None), "videos_dir": str(folder), "ocr_dir": str(folder / "ocr")} | options
    return TextvrDataModule(name="textvr", split=split, **{"annotations_dir": str(folder)} | options)


def test_parts_domains_and_captions(folder: Path) -> None:
    module = make(folder, SplitSpec("s", parts=BOTH.parts, expected={"train": Counts(2, 4), "test": Counts(3, 3)}))
    train = module.part("train")
    assert [video.id for video in train.videos] == ["Cooking/a.b", "Driving/c"]
    assert [video.tags for video in train.videos] == [(("domain", "Cooking"),), (("domain", "Driving"),)]
    assert [caption.text for caption in train.captions] == ["soup", "stew", "car", "road"]
    assert module.part("test").captions[2].text == "test 2"


@pytest.mark.parametrize("name", ["Video", "Videos", "."])
def test_video_folder_is_called_video_or_videos(folder: Path, name: str) -> None:
    for path in ("Games/t0.mp4", "Games/t1.mp4", "Games/t2.mp4"):
        (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / path).write_bytes(b"x")
    module = make(folder, TEST, inputs=InputSpec(None, FrameSpec(2, 8)))
    assert module.part("test").videos[1].path == folder / name / "Games" / "t1.mp4"


def test_missing_videos(folder: Path) -> None:
    inputs = InputSpec(None, FrameSpec(2, 8))
    with pytest.raises(UserError, match=r"3 of 3 video files are missing \(first: 'Games/t0' at .*Games/t0.mp4\)"):
        make(folder, TEST, inputs=inputs).setup()
    with pytest.raises(UserError, match=r"nowhere is not a folder; get the annotations, the resized videos"):
        make(folder, TEST, inputs=inputs, videos_dir=str(folder / "nowhere")).setup()


def test_missing_ocr_files_are_counted(folder: Path) -> None:
    (folder / "ocr" / "Movie").mkdir(parents=True)
    (folder / "ocr" / "Movie" / "a.b.json").write_text("{}")
    module = make(folder, inputs=InputSpec(None, words=WordSpec(letters)))  # type: ignore[arg-type]
    module.setup()
    assert [video.ocr for video in module.part("train").videos] == ["Movie/a.b.json", "Driving/c.json"]
    assert [module.describe(part)["without_ocr"] for part in ("train", "test")] == [1, 3]
    findings, counts = find_in_words(folder / "ocr", {name: part.videos for name, part in module.applied.parts.items()})
    assert counts == {"train": 1, "test": 0}
    assert [(finding.severity, finding.where, len(finding.items)) for finding in findings] == [
        ("note", "train", 1),
        ("note", "test", 3),
    ]
    assert findings[0].items[0] == f"Driving/c at {folder / 'ocr' / 'Driving' / 'c.json'}"
    # OCR of our own extraction stands under the video's id.
    (folder / "ocr" / "Driving").mkdir()
    (folder / "ocr" / "Driving" / "c.json").write_text("{}")
    assert module.describe("train")["without_ocr"] == 0
    assert "without_ocr" not in make(folder).describe("train")  # a model without words does not care


def letters(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    return torch.ones(len(captions), 2, dtype=torch.int64), torch.ones(len(captions), 2, dtype=torch.bool)


def test_scrambled_file_cannot_be_asked_for_by_name(folder: Path) -> None:
    refused = r"TextVR_test_rand.json pairs captions with the wrong videos .* at chance: R@1"
    for name in ("test_rand", "TextVR_test_rand", "TextVR_test_rand.json"):
        for part in ("val", "test"):
            with pytest.raises(UserError, match=refused):
                make(folder, SplitSpec("mine", parts={**BOTH.parts, part: name})).setup()
    (folder / "TextVR_test_rand.json").write_text("[]")
    with pytest.raises(UserError, match=refused):
        make(folder, TEST, annotations_dir=str(folder / "TextVR_test_rand.json")).setup()


def test_scrambled_test_file_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = [TEST_ENTRIES[k] for k in (1, 2, 0)]
    scrambled = [
        video | {"captions_info": true["captions_info"]} for video, true in zip(videos, TEST_ENTRIES, strict=True)
    ]
    (folder / "TextVR_test_rand.json").write_text(json.dumps(scrambled))
    # The unscrambled one is used when it is there.
    assert make(folder, TEST).part("test").captions[0].video_id == "Games/t0"
    # Under the right name it is known by its captions, which are those of the true file.
    (folder / "TextVR_test.json").rename(folder / "true.json")
    with pytest.raises(
        UserError, match=r"TextVR_test_rand.json pairs captions with the wrong videos .* at chance: R@1"
    ):
        make(folder, TEST).setup()
    (folder / "TextVR_test_rand.json").rename(folder / "TextVR_test.json")
    monkeypatch.setattr(textvr, "TEST_CAPTIONS", textvr._digest([f"test {k}" for k in range(3)]))
    monkeypatch.setattr(textvr, "TEST_PAIRS", textvr._digest([f"Games/t{k}\ttest {k}" for k in range(3)]))
    for entries in (scrambled, scrambled[::-1]):  # in whatever order
        (folder / "TextVR_test.json").write_text(json.dumps(entries))
        with pytest.raises(UserError, match=r"TextVR_test.json pairs captions with the wrong videos"):
            make(folder, TEST).setup()
    # As train file, too, for a split that validates on a part of it.
    (folder / "TextVR_test.json").rename(folder / "TextVR_train.json")
    (folder / "true.json").rename(folder / "TextVR_test.json")
    with pytest.raises(UserError, match=r"TextVR_train.json pairs captions with the wrong videos"):
        make(folder).setup()
    (folder / "TextVR_train.json").unlink()
    make(folder, TEST).setup()


def test_missing_and_damaged_files(folder: Path, tmp_path: Path) -> None:
    (folder / "TextVR_train.json").unlink()
    make(folder, TEST).setup()  # an evaluation does without
    with pytest.raises(UserError, match=r"\(train\) needs TextVR_train.json, not found in .*split=textvr_test"):
        make(folder).setup()
    (folder / "TextVR_test.json").write_text("[")
    with pytest.raises(UserError, match=r"TextVR_test.json is damaged .*fetch it again"):
        make(folder, TEST).setup()
    with pytest.raises(UserError, match=r"none is not a folder; get the annotations.*Kwai_VideoOCR/<domain>/<id>.json"):
        make(tmp_path / "none", TEST).setup()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "../../etc/passwd"}, "found path '../../etc/passwd', expected <domain>/<file>"),
        ({"path": "/Games/x.mp4"}, "expected <domain>/<file>"),
        ({"videos_info": {"Kwai_OCR": "/etc/passwd"}}, "found Kwai_OCR '/etc/passwd'"),
        ({"videos_info": {}}, "found Kwai_OCR None"),
        ({"captions_info": [{}]}, "captions_info is no list of captions"),
    ],
)
def test_entries_of_another_layout(folder: Path, changes: dict[str, Any], message: str) -> None:
    (folder / "TextVR_test.json").write_text(json.dumps([TEST_ENTRIES[0], TEST_ENTRIES[1] | changes]))
    with pytest.raises(UserError, match=rf"TextVR_test.json, entry 1: .*{message}"):
        make(folder, TEST).setup()


@pytest.mark.real
def test_published_test_file(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "annotations" / "textvr"
    values = yaml.safe_load((SPLITS / "textvr_test.yaml").read_text())
    part = make(source, SplitSpec(**values)).part("test")
    assert (len(part.videos), len(part.captions)) == (2727, 2727)
    domains = [dict(video.tags)["domain"] for video in part.videos]
    assert {name: domains.count(name) for name in sorted(set(domains))} == {
        "Activity": 1244,
        "Cooking": 115,
        "Driving": 134,
        "Games": 77,
        "News_Movie": 113,
        "Sports": 119,
        "Street_View_Indoor": 510,
        "Street_View_Outdoor": 415,
    }
    assert len({caption.text for caption in part.captions}) == 2454
    assert yaml.safe_load((SPLITS / "textvr.yaml").read_text())["expected"] == values["expected"]

    entries = json.loads((source / "TextVR_test.json").read_text())
    moved = [entry | {key: entries[k - 1][key] for key in ("path", "videos_info")} for k, entry in enumerate(entries)]
    (tmp_path / "TextVR_test.json").write_text(json.dumps(moved))
    with pytest.raises(UserError, match="pairs captions with the wrong videos"):
        make(tmp_path, SplitSpec(**values)).setup()
