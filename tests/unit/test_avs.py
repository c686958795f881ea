"""dataset=avs on files written in Dual Encoding's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from src.batch import InputSpec
from src.data.annotation import Judgement, TopicRecord
from src.data.benchmarks.avs import AvsDataModule
from src.data.splits import SplitSpec
from src.errors import UserError
from tests.conftest import SHARED

SPLITS = Path(__file__).resolve().parents[2] / "conf" / "split"
SHOTS = ("shot30_2", "shot30_10", "shot7_1")


def write_features(folder: Path, frames: dict[str, list[str]], dims: int = 4) -> None:
    ids = [frame for of_video in frames.values() for frame in of_video]
    folder.mkdir(parents=True)
    np.zeros((len(ids), dims), "<f4").tofile(folder / "feature.bin")
    (folder / "shape.txt").write_text(f"{len(ids)} {dims}")
    (folder / "id.txt").write_text(" ".join(ids))
    (folder / "video2frames.txt").write_text(repr(frames))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    captions = {
        "tgif-msrvtt10k": "tgif1#0 a cat\nvideo2#enc#0 a dog\nvideo2#enc#1 dogs\n",
        "tv2016train": "s1#0 rain\n",
    }
    for name, text in captions.items():
        (tmp_path / name / "TextData").mkdir(parents=True)
        (tmp_path / name / "TextData" / f"{name}.caption.txt").write_text(text)
    write_features(tmp_path / "tgif-msrvtt10k" / "FeatureData" / "f", {"tgif1": ["tgif1_0"], "video2": ["video2_0"]})
    write_features(tmp_path / "tv2016train" / "FeatureData" / "f", {"s1": ["s1_0"]})
    write_features(tmp_path / "iacc.3" / "FeatureData" / "f", {shot: [f"{shot}_0"] for shot in SHOTS})
    text = tmp_path / "iacc.3" / "TextData"
    text.mkdir()
    for k, edition in enumerate(("tv16", "tv17", "tv18")):
        (text / f"{edition}.avs.txt").write_text(f"5{k}1 Find shots of a cat\n5{k}2 Find shots of rain\n")
        (text / f"avs.qrels.{edition}").write_text(
            f"15{k}1 0 shot30_2 1 1\n15{k}1 0 shot7_1 2 -1\n5{k}2 0 shot7_1 1 0\n"
        )
    (tmp_path / "iacc.3" / "VideoSets").mkdir()
    (tmp_path / "iacc.3" / "VideoSets" / "iacc.3.txt").write_text("\n".join(SHOTS))
    return tmp_path


def make(root: Path, **changes: Any) -> AvsDataModule:
    values = yaml.safe_load((SPLITS / "avs.yaml").read_text()) | {"expected": {}} | changes
    return AvsDataModule(name="avs", split=SplitSpec(**values), inputs=InputSpec(None), rootpath=str(root))


def test_parts_topics_and_judgements(root: Path) -> None:
    module = make(root)
    train = module.part("train")
    assert [(caption.video_id, caption.text) for caption in train.captions] == [
        ("tgif1", "a cat"),
        ("video2", "a dog"),
        ("video2", "dogs"),
    ]
    test = module.part("test")
    assert tuple(video.id for video in test.videos) == SHOTS
    assert test.captions == ()
    assert module.annotation.topics["tv17"] == (
        TopicRecord("511", "Find shots of a cat"),
        TopicRecord("512", "Find shots of rain"),
    )
    # TRECVID writes topic 511 as 1511 in its judgements.
    assert module.annotation.qrels["tv17"] == (
        Judgement("511", "shot30_2", 1, 1),
        Judgement("511", "shot7_1", 2, -1),
        Judgement("512", "shot7_1", 1, 0),
    )
    assert list(module.annotation.topics) == ["tv16", "tv17", "tv18"]
    assert module.own_findings() == []
    videos, captions = module.test_dataloader()
    assert (sum(map(len, videos)), sum(map(len, captions))) == (3, 0)


def test_shots_of_the_frame_list_where_there_is_no_shot_list(root: Path) -> None:
    (root / "iacc.3" / "VideoSets" / "iacc.3.txt").unlink()
    assert tuple(video.id for video in make(root).part("test").videos) == SHOTS
    (root / "iacc.3" / "FeatureData" / "f" / "video2frames.txt").unlink()
    with pytest.raises(
        UserError, match=r"no .*iacc.3.txt and no video2frames.txt in .*FeatureData; get tgif-msrvtt10k"
    ):
        make(root).setup()


def test_training_needs_no_shots(root: Path) -> None:
    (root / "iacc.3").rename(root / "elsewhere")
    parts = {"train": "train", "val": "val"}
    module = make(root, parts=parts, captions={})
    assert len(module.part("val").captions) == 1
    assert module.annotation.topics == {}
    assert module.own_findings() == []


def test_published_counts_are_checked(root: Path) -> None:
    expected = yaml.safe_load((SPLITS / "avs.yaml").read_text())["expected"]
    with pytest.raises(
        UserError, match="train has 2 videos and 3 captions, expected 110855 videos and 324534 captions"
    ):
        make(root, expected=expected).setup()
    with pytest.raises(UserError, match="test has 3 videos and 0 captions, expected 335944 videos and 0 captions"):
        make(root, expected={"test": expected["test"]}).setup()


def test_findings_of_topics_and_judgements(root: Path) -> None:
    text = root / "iacc.3" / "TextData"
    (text / "avs.qrels.tv16").write_text("1501 0 shot99_1 1 1\n1777 0 shot7_1 1 0\n")
    (text / "avs.qrels.tv18").unlink()
    found = {(finding.kind, finding.where): finding.items for finding in make(root).own_findings()}
    assert found == {
        ("topic without judgements", "tv16"): ("502",),
        ("judgements of an unknown topic", "tv16"): ("1777",),
        ("judged shot that is not in the gallery", "tv16"): ("shot99_1",),
        ("topic without judgements", "tv18"): ("521", "522"),
    }


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("avs.qrels.tv16", "1501 0 shot1 1\n", r"avs.qrels.tv16, line 1: found '1501 0 shot1 1', expected '<topic> 0"),
        ("avs.qrels.tv16", "\n1501 0 shot1 1 7\n", "avs.qrels.tv16, line 2: found"),
        ("tv16.avs.txt", "501\n", "tv16.avs.txt, line 1: topic '501' has no sentence"),
        ("tv16.avs.txt", "501 a\n501 b\n", "tv16.avs.txt, line 2: topic '501' occurs twice"),
    ],
)
def test_damaged_topic_files(root: Path, file: str, content: str, message: str) -> None:
    (root / "iacc.3" / "TextData" / file).write_text(content)
    with pytest.raises(UserError, match=message):
        make(root).setup()


def test_missing_files_say_what_to_get(root: Path, tmp_path: Path) -> None:
    (root / "iacc.3" / "TextData" / "tv18.avs.txt").unlink()
    with pytest.raises(UserError, match=r"no tv18.avs.txt in .*iacc.3-avs-topics.tar.gz.*dataset.editions="):
        make(root).setup()
    (root / "tv2016train" / "TextData" / "tv2016train.caption.txt").unlink()
    with pytest.raises(
        UserError, match=r"no tv2016train/TextData/tv2016train.caption.txt in .*; get tgif-msrvtt10k-sent"
    ):
        make(root).setup()
    with pytest.raises(UserError, match=r"dataset.rootpath=.*none is not a folder; get tgif-msrvtt10k-sent"):
        make(tmp_path / "none").setup()


@pytest.mark.real
def test_folder_made_for_the_reference() -> None:
    root = SHARED / "golden" / "dual_encoding" / "infap" / "root"
    split = SplitSpec("avs", parts={"test": "test"}, captions={"test": "none"})
    module = AvsDataModule(name="avs", split=split, inputs=InputSpec(None), rootpath=str(root), editions=("tv18",))
    shots = (root / "iacc.3" / "VideoSets" / "iacc.3.txt").read_text().split()
    assert [video.id for video in module.part("test").videos] == shots
    assert [topic.id for topic in module.annotation.topics["tv18"]] == ["561", "562"]
    judgements = module.annotation.qrels["tv18"]
    assert len(judgements) == len((root / "iacc.3" / "TextData" / "avs.qrels.tv18").read_text().splitlines())
    assert {judgement.topic for judgement in judgements} == {"561", "562"}  # 1561 and 1562 in the file
    assert {judgement.relevance for judgement in judgements} == {-1, 0, 1}
