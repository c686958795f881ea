"""dataset=webvid and dataset=cc3m on generated tables and files of the published layouts."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from src.batch import FrameSpec, InputSpec
from src.data import streamed
from src.data.benchmarks.cc3m import FILES, Cc3mDataModule
from src.data.benchmarks.webvid import WebvidDataModule
from src.data.caption_tokens import CaptionTokens, TokensOnDemand
from src.data.columns import TextColumn, occurrence
from src.data.splits import SplitSpec
from src.data.stream_checks import find_in_listings
from src.errors import UserError
from src.tasks import check_data

PARTS = {"train": "train", "test": "val_1k"}
FRAMES = InputSpec(None, FrameSpec(4, 16))
SPLITS = Path(__file__).resolve().parents[2] / "conf" / "split"


def webvid_table(rows: int, start: int = 0) -> pd.DataFrame:
    """A table with the published columns; every seventh row lacks a value."""
    numbers = range(start, start + rows)
    table = pd.DataFrame(
        {
            "videoid": [1_000 + n for n in numbers],
            "contentUrl": [f"https://host/{n}.mp4" for n in numbers],
            "duration": ["PT00H00M12S" for _ in numbers],
            "page_dir": [f"{n // 5 * 5:06d}_{n // 5 * 5 + 5:06d}" for n in numbers],
            "name": [f'clip "{n}", ' + "é" * (n % 700) for n in numbers],
        }
    )
    table.loc[3::7, "duration"] = None
    return table


def whole(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Id, folder and caption of the rows that the published loader keeps."""
    kept = table.dropna()
    return list(zip(kept["videoid"].astype(str), kept["page_dir"], kept["name"].str[:350], strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tables of 40 train and 1,500 val rows."""
    (tmp_path / "metadata").mkdir()
    webvid_table(40).to_csv(tmp_path / "metadata" / "results_2M_train.csv", index=False)
    webvid_table(1_500, start=100).to_csv(tmp_path / "metadata" / "results_2M_val.csv", index=False)
    return tmp_path


def webvid(folder: Path, inputs: InputSpec = InputSpec(None), **split: Any) -> WebvidDataModule:  # noqa: B008
    return WebvidDataModule(
        name="webvid",
        split=SplitSpec("webvid", **{"parts": PARTS} | split),
        inputs=inputs,
        annotations_dir=str(folder / "metadata"),
        videos_dir=str(folder / "videos"),
        batch_size=4,
    )


def letters(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """A tokeniser: code points of the first twenty characters."""
    ids = [[ord(letter) for letter in caption[:20]] for caption in captions]
    tokens_NL = torch.tensor([row + [0] * (20 - len(row)) for row in ids])
    return tokens_NL, tokens_NL > 0


def add_videos(folder: Path, module: WebvidDataModule, part: str, count: int) -> None:
    """Files for the first videos of a part."""
    for video in module.part(part).videos[:count]:
        assert video.path is not None
        video.path.parent.mkdir(parents=True, exist_ok=True)
        video.path.touch()


@pytest.mark.parametrize("chunk", [50_000, 7])
def test_webvid_has_the_rows_of_the_published_loader(folder: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("src.data.listing.CHUNK", chunk)
    module = webvid(folder)
    published = {"train": webvid_table(40), "test": webvid_table(1_500, 100).sample(1_000, random_state=0)}
    for part, table in published.items():
        found, expected = module.part(part), whole(table)
        assert [(c.video_id, c.text) for c in found.captions] == [(i, text) for i, _, text in expected]
        paths = [folder / "videos" / page / f"{i}.mp4" for i, page, _ in expected]
        assert [video.path for video in found.videos] == paths
        assert list(found.video_index) == list(range(len(expected)))
        assert module.describe(part)["captions_per_video"] == 1
    assert max(len(caption.text) for caption in module.part("test").captions) == 350
    val = webvid(folder, parts={"test": "val"}).part("test")
    assert len(val.videos) == len(webvid_table(1_500, 100).dropna())
    # The annotation says the same, row by row.
    annotation = module.annotation
    assert list(annotation.splits["val_1k"]) == [video.id for video in module.part("test").videos]
    assert [video.id for video in annotation.videos[:3]] == [video.id for video in module.part("train").videos[:3]]
    annotation.check("webvid")


def test_missing_files_are_counted_and_listed(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    add_videos(folder, webvid(folder), "train", 9)
    add_videos(folder, webvid(folder), "test", 1_000)
    with pytest.raises(UserError, match=r"of train are missing \(first: '1011' at .*split.subset=available"):
        webvid(folder, FRAMES).setup()
    monkeypatch.setattr(streamed, "LISTED", 5)
    module = webvid(folder, FRAMES, subset="available")
    module.setup()
    train = len(webvid_table(40).dropna())
    assert [video.id for video in module.part("train").videos] == [i for i, _, _ in whole(webvid_table(40))[:9]]
    assert module.describe("train")["excluded"] == {"missing video": train - 9}
    assert [problem.kind for problem in module.problems] == ["missing video"] * 5
    findings, rows = find_in_listings(module, tmp_path / "run")
    assert [(f.severity, f.kind, f.where) for f in findings if f.kind.startswith("missing")] == [
        ("note", "missing file", "train")
    ]
    assert len((tmp_path / "run" / "missing_train.txt").read_text().splitlines()) == train - 9
    assert [rows[0][key] for key in ("part", "videos", "files")] == ["train", train, 9]
    assert not (tmp_path / "run" / "missing_test.txt").exists()
    for page in ("000000_000005", "000005_000010"):
        shutil.rmtree(folder / "videos" / page)
    gone = webvid(folder, FRAMES, subset="available")
    with pytest.raises(UserError, match=r"no video of the train part is usable \(34 x missing video\)"):
        gone.part("train")


def test_task_check_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_videos(folder, webvid(folder), "test", 1_000)
    cfg = OmegaConf.create(
        {
            "seed": 0,
            "model": {"experts": None},
            "experts": {"specs": []},
            "text": {"specs": []},
            "task": {"decode": True},
            "paths": {"run_dir": str(folder / "run")},
        }
    )
    module = webvid(folder, FRAMES)
    with pytest.raises(UserError, match=r"34 missing file \(train\); every item is listed in .*check_data.json"):
        check_data._finish(cfg, module, *find_in_listings(module, folder / "run"))
    assert "row without a value" in capsys.readouterr().out


def test_training_batches_tokenise_what_they_need(folder: Path) -> None:
    inputs = InputSpec(letters)  # type: ignore[arg-type]
    module = webvid(folder, inputs)
    module.setup()
    batches = list(module.train_dataloader())
    assert len(batches) == len(module.part("train").captions) // 4
    texts = {index: caption.text for index, caption in enumerate(module.part("train").captions)}
    for batch in batches:
        tokens_BL, mask_BL = letters([texts[index] for index in batch.text.ids.tolist()])
        length = batch.text.tokens_BL.shape[1]
        assert torch.equal(batch.text.tokens_BL, tokens_BL[:, :length])
        assert not mask_BL[:, length:].any()
    tokens = module._tokens_of(module.part("train"))
    assert isinstance(tokens, TokensOnDemand)
    stored = CaptionTokens(list(texts.values()), letters)  # type: ignore[arg-type]
    assert torch.equal(tokens.lengths(), stored.lengths())
    ids = torch.tensor([3, 1])
    one, other = tokens.batch(ids, ids), stored.batch(ids, ids)
    assert torch.equal(one.tokens_BL, other.tokens_BL)
    assert torch.equal(one.mask_BL, other.mask_BL)
    assert not isinstance(module._tokens_of(module.part("test")), TokensOnDemand)


def test_val_holdout_and_named_again(folder: Path) -> None:
    table = webvid_table(40)
    table.loc[5, "videoid"] = table.loc[4, "videoid"]
    table.loc[6, "name"] = "\u00a0 "
    table.to_csv(folder / "metadata" / "results_2M_train.csv", index=False)
    module = webvid(folder, val_holdout=10)
    train, val = module.part("train"), module.part("val")
    ids = [video.id for part in (train, val) for video in part.videos]
    assert len(set(ids)) == len(ids) == len(table.dropna()) - 1
    blank = {part: module.applied.excluded_counts(part).get("empty caption", 0) for part in ("train", "val")}
    assert sum(blank.values()) == 1
    assert len(val.videos) + blank["val"] == 10
    twice = next(v for part in (train, val) for v in part.videos if v.id == "1004@2")
    assert (twice.key, twice.path) == ("1004", folder / "videos" / "000005_000010" / "1004.mp4")
    with pytest.raises(UserError, match="val_holdout=34, but train has 34 videos"):
        webvid(folder, val_holdout=34).setup()


def test_what_is_wrong_is_said(folder: Path) -> None:
    with pytest.raises(UserError, match=r"uses the list 'dev', expected train, val or val_1k"):
        webvid(folder, parts={"test": "dev"}).setup()
    with pytest.raises(UserError, match=r"has one caption, expected all or first"):
        webvid(folder, captions={"train": "paragraph"}).setup()
    with pytest.raises(UserError, match=r"train has 34 videos and 34 captions, expected 3 videos"):
        webvid(folder, expected={"train": {"videos": 3, "captions": 3}}).setup()
    again = webvid_table(1_500, start=20)
    again.to_csv(folder / "metadata" / "results_2M_val.csv", index=False)
    with pytest.raises(UserError, match=r"videos are both in train and in test \(first: "):
        webvid(folder).setup()
    again.drop(columns="page_dir").to_csv(folder / "metadata" / "results_2M_val.csv", index=False)
    with pytest.raises(UserError, match=r"results_2M_val.csv has no column page_dir \(found videoid, contentUrl"):
        webvid(folder).setup()
    (folder / "metadata" / "results_2M_val.csv").write_bytes(b"videoid,name,page_dir\n1,caf\xe9,a\n")
    with pytest.raises(UserError, match=r"results_2M_val.csv is damaged"):
        webvid(folder).setup()
    (folder / "metadata" / "results_2M_val.csv").unlink()
    with pytest.raises(UserError, match=r"needs results_2M_val.csv, not found in .*DATA/webvid/metadata"):
        webvid(folder).setup()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six train and three validation images in five formats; two addresses share a name."""
    (tmp_path / "annotations").mkdir()
    formats = ("JPEG", "PNG", "WEBP", "GIF", "TIFF")
    for part, table, count in (("training", "train", 6), ("validation", "val", 3)):
        (tmp_path / "images" / part).mkdir(parents=True)
        addresses = [f"http://host/{part}/{n}.jpg" for n in range(count)]
        captions: list[str | None] = [f"{part} picture {n}" for n in range(count)]
        for n, address in enumerate(addresses):
            picture = Image.fromarray(np.full((24, 32, 3), 40 * n, dtype=np.uint8))
            name = str(zlib.crc32(address.encode()) & 0xFFFFFFFF)
            picture.save(tmp_path / "images" / part / name, format=formats[n % len(formats)])
        rows = {"caption": [*captions, None, "again"], "thumbnailUrl": [*addresses, "http://x", addresses[0]]}
        pd.DataFrame(rows).to_csv(tmp_path / "annotations" / FILES[table], index=False)
    return tmp_path


def test_cc3m_images_are_videos_of_one_frame(images: Path, tmp_path: Path) -> None:
    module = Cc3mDataModule(
        name="cc3m",
        split=SplitSpec("cc3m", parts=PARTS),
        inputs=InputSpec(letters, FrameSpec(4, 16, "frozen")),  # type: ignore[arg-type]
        annotations_dir=str(images / "annotations"),
        videos_dir=str(images / "images"),
        batch_size=7,
        problems_file=tmp_path / "problems.jsonl",
    )
    train = module.part("train")
    name = str(zlib.crc32(b"http://host/training/0.jpg"))
    assert train.videos[0].path == images / "images" / "training" / name
    assert [train.videos[k].id for k in (0, 6)] == [f"training/{name}", f"training/{name}@2"]
    assert train.videos[6].path == train.videos[0].path
    assert [caption.text for caption in train.captions] == [*(f"training picture {n}" for n in range(6)), "again"]
    (batch,) = module.train_dataloader()
    assert batch.video.mask_BT is not None
    assert batch.video.mask_BT.tolist() == [[True, False, False, False]] * 7
    for row, index in enumerate(batch.text.ids.tolist()):
        shade = 0 if index == 6 else 40 * index
        assert (batch.video.frames_BTCHW[row, 0].float() - shade).abs().max() <= 1
    assert module.problems == []
    findings, rows = find_in_listings(module, tmp_path / "run")
    assert {finding.kind for finding in findings} == {"file named again", "row without a value"}
    assert [row["files"] for row in rows] == [7, 4]


def test_an_image_that_cannot_be_read_is_a_problem(images: Path, tmp_path: Path) -> None:
    path = images / "images" / "validation" / str(zlib.crc32(b"http://host/validation/0.jpg"))
    path.write_bytes(path.read_bytes()[:-200])
    module = Cc3mDataModule(
        name="cc3m",
        split=SplitSpec("cc3m", parts={"test": "val"}),
        inputs=FRAMES,
        annotations_dir=str(images / "annotations"),
        videos_dir=str(images / "images"),
    )
    (batch,) = module.eval_dataloaders("test")[0]
    assert batch.ids.tolist() == [1, 2]
    assert {problem.kind for problem in module.problems} == {"unreadable video"}
    assert "not a readable picture" in module.problems[0].reason


def test_columns() -> None:
    texts = ["", "a", "日本 ", "b" * 1_000, "\ud800"]
    column = TextColumn.of([texts[:2], [], texts[2:]])
    assert (list(column), column[-1], column[1:3]) == (texts, texts[-1], texts[1:3])
    assert list(TextColumn.of([])) == []
    with pytest.raises(IndexError):
        column[5]
    values = np.array([3, 1, 3, 3, 1], dtype=np.uint64)
    assert occurrence(values).tolist() == [0, 0, 1, 2, 1]
    assert occurrence(values[:0]).tolist() == []


@pytest.mark.parametrize("name", ["webvid", "cc3m"])
def test_the_published_splits(name: str) -> None:
    values = yaml.safe_load((SPLITS / f"{name}.yaml").read_text())
    assert SplitSpec(**values).parts == PARTS
