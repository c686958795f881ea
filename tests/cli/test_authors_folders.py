"""Data in the Dual Encoding authors' folders: one command from the files to the metrics."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from src.convert.dual_encoding import read_vocabulary_words
from src.data.features.bigfile import bigfile_source
from src.data.features.store import FeatureStore
from tests.parity.cases import ROOT

Cli = Callable[..., Any]
GOLDEN = ROOT / "tests" / "golden" / "dual_encoding" / "pipeline_onefolder" / "root"
TOY = GOLDEN / "toy"
PARTS = ("train", "val", "test")
TINY = (
    *("dataset.feature=feat", "experts.frames.dim=9", "dataset.batch_size=8", "dataset.num_workers=0"),
    *("model.text_rnn_size=5", "model.visual_rnn_size=6", "model.text_kernel_num=4", "model.visual_kernel_num=3"),
    *("model.embed_dim=8", "model.word_dim=12", "trainer.max_epochs=1", "trainer.accelerator=cpu"),
)


def caption_file(part: str) -> Path:
    return TOY / "TextData" / f"toy{part}.caption.txt"


def videos_of(part: str) -> list[str]:
    return list(dict.fromkeys(line.split("#")[0] for line in caption_file(part).read_text().splitlines()))


def write_bigfile(folder: Path, rows: dict[str, np.ndarray]) -> None:
    """The four files of a feature folder: video -> its vectors (frames, dim)."""
    folder.mkdir(parents=True)
    frames = {video: [f"{video}_{i}" for i in range(len(of))] for video, of in rows.items()}
    content = np.concatenate(list(rows.values())).astype("<f4")
    content.tofile(folder / "feature.bin")
    (folder / "shape.txt").write_text(f"{len(content)} {content.shape[1]}")
    (folder / "id.txt").write_text(" ".join(frame for of_video in frames.values() for frame in of_video))
    (folder / "video2frames.txt").write_text(repr(frames))


def check_results(run: Path) -> None:
    found = json.loads((run / "metrics.json").read_text())
    assert 0 < found["t2v"]["R10"] <= 100
    assert 0 < found["v2t"]["mAP"] <= 100
    assert (run / "report" / "index.html").is_file()


def test_one_folder_by_one_command(cli: Cli, tmp_path: Path) -> None:
    where = (f"dataset.rootpath={GOLDEN}", "dataset.collection=toy", f"paths.data_dir={tmp_path / 'data'}")
    experiment = ("experiment=dual_encoding_onefolder", "model.num_concepts=10")
    outcome = cli(*experiment, *where, *TINY, tiny=False).succeeded()
    check_results(tmp_path / "run")

    made = tmp_path / "data" / "visualsearch_toy"
    assert len(FeatureStore.open(made / "features" / "feat")) == len(bigfile_source(TOY / "FeatureData" / "feat").ids)
    published = read_vocabulary_words(TOY / "TextData" / "vocabulary" / "bow" / "word_vocab_5.pkl")
    assert json.loads((made / "vocabulary.json").read_text())["words"] == list(published)
    tags = TOY / "TextData" / "tags"
    concepts = json.loads((made / "concepts.json").read_text())["concepts"]
    assert concepts == json.loads((tags / "video_label_th_1" / "tag_vocab_10.json").read_text())
    lines = outcome.out.splitlines()
    for step in ("features", "vocabulary", "concepts"):
        assert f"{step}: not there yet, made now" in lines
    assert f"concepts: published labels of {tags}" in lines


def test_several_folders_by_one_command(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "root"
    source = bigfile_source(TOY / "FeatureData" / "feat")
    for part in PARTS:
        write_bigfile(
            root / f"my{part}" / "FeatureData" / "feat",
            {video: rows for video in videos_of(part) for rows in source.read([video]) if not isinstance(rows, str)},
        )
        text = root / f"my{part}" / "TextData" / f"my{part}.caption.txt"
        text.parent.mkdir()
        shutil.copy(caption_file(part), text)
    where = (f"dataset.rootpath={root}", f"paths.data_dir={tmp_path / 'data'}")
    collections = tuple(f"dataset.{part}_collection=my{part}" for part in PARTS)
    experiment = ("experiment=dual_encoding_multifolder", "model.num_concepts=5")
    outcome = cli(*experiment, *where, *collections, *TINY, tiny=False).succeeded()
    check_results(tmp_path / "run")

    made = tmp_path / "data" / "visualsearch_mytrain"
    store = FeatureStore.open(made / "features" / "feat")
    assert set(store.ids) == {video for part in PARTS for video in videos_of(part)}
    video = videos_of("test")[-1]
    np.testing.assert_array_equal(store.rows([video])[0], next(source.read([video])))
    concepts = json.loads((made / "concepts.json").read_text())
    assert (concepts["tagger"], len(concepts["concepts"])) == ("wordnet", 5)
    assert "tagger=wordnet, which approximates the published tagger=nltk" in outcome.out


def test_features_are_converted_by_hand(cli: Cli, tmp_path: Path) -> None:
    feat, store = TOY / "FeatureData" / "feat", tmp_path / "store"
    outcome = cli("task=convert", f"task.source={feat}", f"task.output={store}", "dtype=float16", tiny=False)
    source, made = bigfile_source(feat), FeatureStore.open(store)
    assert f"{made.num_rows:,}" in outcome.succeeded().out
    assert made.ids == source.ids
    for item, rows in zip(source.ids, source.read(source.ids), strict=True):
        np.testing.assert_array_equal(made.rows([item])[0], np.asarray(rows).astype(np.float16))
