"""dataset=msrvtt on generated files of the published layout, and on the published files where they are at hand."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from src.batch import FrameSpec, InputSpec
from src.data.benchmarks.msrvtt import MsrvttDataModule
from src.data.splits import Counts, SplitSpec
from src.errors import UserError

SPLITS = Path(__file__).resolve().parents[2] / "conf" / "split"
FULL = {"train": "train_full", "val": "val_full", "test": "test_full"}


def tokenize(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    return torch.ones(len(captions), 2, dtype=torch.int64), torch.ones(len(captions), 2, dtype=torch.bool)


def document(numbers: range, split: str) -> dict[str, Any]:
    videos = [{"video_id": f"video{k}", "category": k % 2, "split": split, "url": "", "id": k} for k in numbers]
    # Captions of one video stand apart, as in the published file.
    sentences = [
        {"video_id": f"video{k}", "caption": f"caption {j} of {k}", "sen_id": 0} for j in (0, 1) for k in numbers
    ]
    return {"info": {}, "videos": videos, "sentences": sentences}


def joined(*documents: dict[str, Any]) -> dict[str, Any]:
    return {key: [item for one in documents for item in one[key]] for key in ("videos", "sentences")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train video0-5, validate video6-7, test video8-11, zipped as published; 1k-A: video9 and video11."""
    root = tmp_path / "annotations"
    root.mkdir()
    train_val = joined(document(range(6), "train"), document(range(6, 8), "validate"))
    with zipfile.ZipFile(root / "train_val_annotation.zip", "w") as archive:
        archive.writestr("category.txt", "music\t0\r\npeople\t1\r\n")
        archive.writestr("train_val_videodatainfo.json", json.dumps(train_val))
    with zipfile.ZipFile(root / "test_videodatainfo.json.zip", "w") as archive:
        archive.writestr("test_videodatainfo.json", json.dumps(document(range(8, 12), "test")))
        archive.writestr("__MACOSX/._test_videodatainfo.json", "x")
    (root / "MSRVTT_JSFUSION_test.csv").write_text(
        'key,vid_key,video_id,sentence\nret0,msr11,video11,"a, b"\nret1,msr9,video9,c\n'
    )
    (root / "MSRVTT_train.9k.csv").write_text(
        "video_id\n" + "".join(f"video{k}\n" for k in (0, 1, 2, 3, 4, 5, 6, 7, 8, 10))
    )
    return root


def make(folder: Path, split: SplitSpec, **options: Any) -> MsrvttDataModule:
    options = {"inputs": InputSpec(tokenize), "videos_dir": str(folder.parent / "videos")} | options
    return MsrvttDataModule(name="msrvtt", split=split, annotations_dir=str(folder), **options)


def one_ka(**options: Any) -> SplitSpec:
    return SplitSpec("1ka", parts={"train": "train_9k", "test": "test_1ka"}, captions={"test": "file"}, **options)


def test_full_split_comes_from_the_annotation_itself(folder: Path) -> None:
    module = make(folder, SplitSpec("full", parts=FULL, expected={"train": Counts(6, 12), "val": Counts(2, 4)}))
    test = module.part("test")
    assert [video.id for video in test.videos] == ["video8", "video9", "video10", "video11"]
    assert [caption.text for caption in test.captions[:3]] == ["caption 0 of 8", "caption 1 of 8", "caption 0 of 9"]
    # category.txt is in the first archive only, yet names the categories of both.
    assert module.part("train").videos[1].tags == test.videos[1].tags == (("category", "people"),)


def test_merged_file_gives_the_same_as_the_two_archives(folder: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    merged.mkdir()
    everything = joined(document(range(6), "train"), document(range(6, 8), "validate"), document(range(8, 12), "test"))
    (merged / "MSRVTT_data.json").write_text(json.dumps(everything))
    spec = SplitSpec("full", parts=FULL)
    for part in FULL:
        mine, theirs = make(merged, spec).part(part), make(folder, spec).part(part)
        assert mine.captions == theirs.captions
        assert [video.id for video in mine.videos] == [video.id for video in theirs.videos]


def test_1ka_queries_are_the_sentences_of_the_csv(folder: Path) -> None:
    module = make(folder, one_ka(expected={"train": Counts(10, 20), "test": Counts(2, 2)}))
    test = module.part("test")
    assert [(caption.video_id, caption.text) for caption in test.captions] == [("video11", "a, b"), ("video9", "c")]
    assert module.describe() == {
        "dataset": "msrvtt",
        "split": "1ka",
        "subset": "full",
        "part": "test",
        "num_videos": 2,
        "num_captions": 2,
        "captions_per_video": 1,
        "caption_policy": "file",
        "val_holdout": 0,
        "excluded": {},
        "without_expert": {},
    }
    with pytest.raises(UserError, match="selection=test or selection=last"):
        module.val_dataloader()


def test_val_holdout(folder: Path) -> None:
    module = make(folder, one_ka(val_holdout=3))
    assert (len(module.part("train").videos), len(module.part("val").videos)) == (7, 3)


def test_missing_files_say_what_to_get_and_where(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"nowhere is not a folder; get the MSR-VTT videos and train_val_annotation.zip"
    ):
        make(tmp_path / "nowhere", one_ka()).setup()
    (folder / "MSRVTT_JSFUSION_test.csv").unlink()
    with pytest.raises(UserError, match=r"\(test\) needs MSRVTT_JSFUSION_test.csv or val_list_jsfusion.txt, not found"):
        make(folder, one_ka()).setup()
    (folder / "test_videodatainfo.json.zip").unlink()
    with pytest.raises(
        UserError, match=r"no test_videodatainfo.json or test_videodatainfo.json.zip in .*MSRVTT_data.json"
    ):
        make(folder, one_ka()).setup()


def test_damaged_archive(folder: Path) -> None:
    archive = folder / "train_val_annotation.zip"
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"train_val_annotation.zip is damaged .*fetch it again"):
        make(folder, one_ka()).setup()


def test_damaged_lists_and_entries(folder: Path) -> None:
    path = folder / "MSRVTT_JSFUSION_test.csv"
    published = path.read_bytes()
    path.write_bytes(published + b"\xff")
    with pytest.raises(UserError, match=r"MSRVTT_JSFUSION_test.csv is not UTF-8"):
        make(folder, one_ka()).setup()
    path.write_bytes(published.rstrip().rpartition(b",")[0])
    with pytest.raises(UserError, match=r"MSRVTT_JSFUSION_test.csv has a row that ends too early"):
        make(folder, one_ka()).setup()
    (folder / "MSRVTT_data.json").write_text('{"videos": [{"id": "video0"}], "sentences": []}')
    with pytest.raises(UserError, match=r"MSRVTT_data.json: videos has \"\{'id': 'video0'\}\", expected video_id"):
        make(folder, one_ka()).setup()


def test_list_of_ids_without_sentences_cannot_be_1ka_queries(folder: Path) -> None:
    (folder / "MSRVTT_JSFUSION_test.csv").unlink()
    (folder / "val_list_jsfusion.txt").write_text("video11\nvideo9")
    with pytest.raises(UserError, match=r"captions.test=file, but the list 'test_1ka' comes without captions"):
        make(folder, one_ka()).setup()


def test_duplicate_video_ids_in_the_annotation(folder: Path, tmp_path: Path) -> None:
    twice = joined(document(range(6), "train"), document(range(6), "train"))
    (folder / "MSRVTT_data.json").write_text(json.dumps(twice))
    with pytest.raises(UserError, match=r"6 video ids occur more than once \(first: 'video0', 2 times\)"):
        make(folder, SplitSpec("s", parts={"train": "train_full"})).setup()


def test_video_files_at_any_depth_mp4_first(folder: Path) -> None:
    videos = folder.parent / "videos"
    for name in ("TestVideo/video9.webm", "TestVideo/video9.mp4", "video11.webm", "readme.txt"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).write_bytes(b"x")
    frames = InputSpec(tokenize, FrameSpec(2, 8))
    spec = SplitSpec("t", parts={"test": "test_full"}, subset="available", expected={"test": Counts(4, 8)})
    module = make(folder, spec, inputs=frames)
    assert [video.path for video in module.part("test").videos] == [
        videos / "TestVideo" / "video9.mp4",
        videos / "video11.webm",
    ]
    assert module.describe()["excluded"] == {"missing video": 2}
    with pytest.raises(UserError, match=r"2 of 4 video files are missing \(first: 'video8' at .*video8.mp4\)"):
        make(folder, SplitSpec("t", parts={"test": "test_full"}), inputs=frames).setup()
    with pytest.raises(UserError, match=r"nothing is not a folder; get the MSR-VTT videos"):
        make(folder, one_ka(), inputs=frames, videos_dir=str(folder / "nothing")).setup()


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("msrvtt", {"train": (9000, 180_000), "test": (1000, 1000)}),
        ("msrvtt_1ka_7k", {"train": (7010, 140_200), "test": (1000, 1000)}),
        ("msrvtt_full", {"train": (6513, 130_260), "val": (497, 9940), "test": (2990, 59_800)}),
        ("msrvtt_1kb_miech", {"train": (6656, 133_120), "test": (1000, 1000)}),
    ],
)
def test_published_files(name: str, numbers: dict[str, tuple[int, int]], shared_data: Path) -> None:
    spec = SplitSpec(**yaml.safe_load((SPLITS / f"{name}.yaml").read_text()))
    module = make(shared_data / "annotations" / "msrvtt", spec)
    found = {part: (len(module.part(part).videos), len(module.part(part).captions)) for part in spec.parts}
    assert found == numbers
    assert set(spec.expected) == set(numbers)  # the yaml guards every part
    if name == "msrvtt":
        first = module.part("test").captions[0]
        assert (first.video_id, first.text) == ("video9770", "a person is connecting something to system")
        assert len({caption.text for caption in module.part("test").captions}) == 995


@pytest.mark.real
def test_published_files_with_a_changed_count(shared_data: Path) -> None:
    values = yaml.safe_load((SPLITS / "msrvtt_full.yaml").read_text())
    values["expected"]["val"]["captions"] = 9941
    with pytest.raises(UserError, match="val has 497 videos and 9940 captions, expected 497 videos and 9941 captions"):
        make(shared_data / "annotations" / "msrvtt", SplitSpec(**values)).setup()


@pytest.mark.real
def test_the_seven_clips_at_hand_are_an_available_subset(shared_data: Path) -> None:
    values = yaml.safe_load((SPLITS / "msrvtt_full.yaml").read_text()) | {"subset": "available"}
    module = make(
        shared_data / "annotations" / "msrvtt",
        SplitSpec(**values),
        inputs=InputSpec(tokenize, FrameSpec(num_frames=2, image_size=16)),
        videos_dir=str(shared_data / "clips" / "msrvtt"),
    )
    facts = module.describe()
    assert (facts["num_videos"], facts["num_captions"], facts["excluded"]) == (7, 140, {"missing video": 2983})
    videos, _ = module.test_dataloader()
    assert [len(batch) for batch in videos] == [7]


def test_1ka_queries_may_come_from_the_caption_index(folder: Path) -> None:
    (folder / "MSRVTT_JSFUSION_test.csv").unlink()
    (folder / "val_list_jsfusion.txt").write_text("video11\nvideo9")
    index = folder / "jsfusion_val_caption_idx.pkl"
    index.write_bytes(pickle.dumps({"video9": 1, "video11": 0}))
    test = make(folder, one_ka()).part("test")
    assert [caption.text for caption in test.captions] == ["caption 0 of 11", "caption 1 of 9"]
    for broken in ({"video9": 1}, {"video9": 2, "video11": 0}, []):
        index.write_bytes(pickle.dumps(broken))
        with pytest.raises(UserError, match=r"jsfusion_val_caption_idx.pkl: video\d+ has .*expected the position"):
            make(folder, one_ka()).setup()


def test_lists_of_dual_encoding(folder: Path) -> None:
    spec = SplitSpec(**yaml.safe_load((SPLITS / "msrvtt_1k_yu.yaml").read_text()) | {"expected": {}})
    with pytest.raises(
        UserError, match=r"\(train\) needs msrvtt10kyutrain.caption.txt, .*in the feature archives of Dual Encoding"
    ):
        make(folder, spec).setup()
    lines = {
        "train": "".join(f"video{k}#{n} a sentence\n" for k in range(4) for n in range(2)),
        "val": "video8#1 its only query\n",
        "test": "video11.mp4#enc#0 another query\nvideo9#0 and one\n",
    }
    for part, text in lines.items():
        file = folder / f"msrvtt10kyu{part}" / "TextData" / f"msrvtt10kyu{part}.caption.txt"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    module = make(folder, spec)
    assert [video.id for video in module.part("train").videos] == ["video0", "video1", "video2", "video3"]
    assert module.part("train").captions[0].text == "caption 0 of 0"  # all captions of the annotation
    assert [caption.text for caption in module.part("val").captions] == ["its only query"]
    assert [(c.video_id, c.text) for c in module.part("test").captions] == [
        ("video11", "another query"),
        ("video9", "and one"),
    ]


def test_val_list_of_miech_split(folder: Path) -> None:
    for name, numbers in (("train", (0, 1)), ("test", (9, 10))):
        (folder / f"{name}_list_miech.txt").write_text("\n".join(f"video{k}" for k in numbers))
    (folder / "msrvtt10kmiechval.caption.txt").write_text("video6#3 a query\n")
    spec = SplitSpec(**yaml.safe_load((SPLITS / "msrvtt_1kb_miech_val.yaml").read_text()) | {"expected": {}})
    module = make(folder, spec)
    assert [caption.text for caption in module.part("val").captions] == ["a query"]
    assert [caption.text for caption in module.part("test").captions] == ["caption 0 of 9", "caption 0 of 10"]


@pytest.mark.real
def test_caption_index_agrees_with_the_csv(shared_data: Path, tmp_path: Path) -> None:
    """The csv was tidied (blanks, 35 sentences); letter for letter the two name the same captions."""
    published = shared_data / "annotations" / "msrvtt"
    for name in ("test_videodatainfo.json.zip", "train_val_annotation.zip", "jsfusion_val_caption_idx.pkl"):
        (tmp_path / name).symlink_to(published / name)
    (tmp_path / "val_list_jsfusion.txt").symlink_to(published / "val_list_jsfusion.txt")
    spec = SplitSpec("1ka", parts={"test": "test_1ka"}, captions={"test": "file"})
    by_index = {c.video_id: c.text for c in make(tmp_path, spec).part("test").captions}
    by_table = {c.video_id: c.text for c in make(published, spec).part("test").captions}
    assert len(by_index) == 1000
    assert sum(by_index[video_id] == text for video_id, text in by_table.items()) == 965
    for video_id, text in by_table.items():
        assert letters(by_index[video_id]) == letters(text), video_id


def letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())
