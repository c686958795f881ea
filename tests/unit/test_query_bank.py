"""task=evaluate with QB-Norm, and how often a whole evaluation encodes each item."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer
from torch import Tensor

from src.batch import ExpertSpec, InputSpec, TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.data.benchmarks.msrvtt import MsrvttDataModule
from src.data.features.writer import StoreWriter
from src.data.splits import SplitSpec
from src.errors import UserError
from src.metrics.qb_norm import QueryBank, evaluate_matrix_with_bank
from src.metrics.retrieval import MatrixScore, evaluate_matrix
from src.models.base import RetrievalModule
from src.models.vocabulary import VocabularyTokenizer
from src.tasks import query_bank, topic_search
from src.tasks.build import quiet
from src.tasks.outcome import ResultWriter

WORDS = tuple("abcdefgh")
PARTS = {"train": "train_full", "val": "val_full", "test": "test_full"}


class Counting(RetrievalModule):
    """Bags of words against the words of a video; counts how often each item is encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = VocabularyTokenizer(WORDS)
        self.weight = torch.nn.Parameter(torch.ones(3, 4))
        self.texts: Counter[int] = Counter()
        self.videos: Counter[int] = Counter()

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec(self.tokenizer, experts=(ExpertSpec("words", len(WORDS)),))

    def encode_text(self, batch: TextBatch) -> TextEmbedding:
        self.texts.update(batch.ids.tolist())
        bag = self.tokenizer.bag_of_words(batch.tokens_BL)
        return TextEmbedding(batch.ids, {"x": bag}, video_ids=batch.video_ids)

    def encode_video(self, batch: VideoBatch) -> VideoEmbedding:
        self.videos.update(batch.ids.tolist())
        return VideoEmbedding(batch.ids, {"x": batch.features["words"]})

    def similarity(self, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        return text.parts["x"] @ video.parts["x"].T


def write_store(path: Path, items: Mapping[str, np.ndarray | None]) -> None:
    writer = StoreWriter(path, name=path.name, dim=len(WORDS), recipe={}, ids=list(items))
    for shard in writer.pending():
        writer.write_shard(shard, ((i, items[i], "not there", None) for i in writer.shard_ids(shard)))
    writer.finish()


def module(folder: Path, sizes: dict[str, int], captions: int) -> MsrvttDataModule:
    """A data set in the published layout: random words, and videos that show some of them too strongly."""
    rng = np.random.default_rng(0)
    videos, sentences = [], []
    for part, size in sizes.items():
        for n in range(size):
            videos.append({"video_id": f"{part}{n}", "split": part})
            words = [" ".join(rng.choice(WORDS, 4)) for _ in range(captions)]
            sentences += [{"video_id": f"{part}{n}", "caption": text} for text in words]
    (folder / "annotations").mkdir(parents=True)
    document = json.dumps({"videos": videos, "sentences": sentences})
    (folder / "annotations" / "MSRVTT_data.json").write_text(document)
    names = [video["video_id"] for video in videos]
    shown = (rng.random((len(names), len(WORDS))) + rng.random((len(names), 1))).astype(np.float32)
    write_store(folder / "words", {name: rows[None] for name, rows in zip(names, shown, strict=True)})
    return MsrvttDataModule(
        name="msrvtt",
        split=SplitSpec("full", parts=PARTS),
        inputs=Counting().input_spec,
        annotations_dir=str(folder / "annotations"),
        videos_dir=str(folder),
        eval_batch_size=64,
        stores={"words": folder / "words"},
    )


def config(folder: Path, **qb_norm: Any) -> DictConfig:
    (folder / "run").mkdir(exist_ok=True)  # as the command line does
    task = {"name": "evaluate", "qb_norm": {"beta": 2.0, "k": 1, "bank": "train", **qb_norm}}
    keys = {"selection": "val", "ties": "average", "seed": 0, "save_similarity": True, "optimized_metric": None}
    return OmegaConf.create(
        {"paths": {"run_dir": str(folder / "run")}, "task": task, "model": {"_target_": "Counting"}, **keys}
    )


def metrics_of(model: Counting, cfg: DictConfig, data: MsrvttDataModule, test: Any) -> dict[str, Any]:
    quiet()
    model.configure_evaluation(ties=cfg.ties, topk=10)
    writer = ResultWriter(cfg, checkpoint="none")
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    test(Trainer(accelerator="cpu", callbacks=[writer], **options), model, data, writer)
    return json.loads((Path(cfg.paths.run_dir) / "metrics.json").read_text())


@pytest.mark.parametrize("bank", ["train", "val"])
def test_captions_of_another_part_rescore_the_test(tmp_path: Path, bank: str) -> None:
    model, cfg = Counting(), config(tmp_path, bank=bank)
    data = module(tmp_path, {"train": 30, "validate": 8, "test": 20}, captions=3)
    found = metrics_of(model, cfg, data, query_bank.test)
    queries = {"train": 90, "val": 24}[bank]
    assert found["qb_norm"]["bank_queries"] == queries
    assert found["protocol"]["rescoring"] == f"QB-Norm t2v only (beta 2, k 1, bank {queries} captions of {bank})"
    # The same from matrices: that of the bank is made of its words.
    matrix = np.load(tmp_path / "run" / "similarity.npy")
    assert matrix.shape == (60, 20)
    tokens, _ = model.tokenizer([caption.text for caption in data.part(bank).captions])
    video = model.embeddings["test"][1].parts["x"]
    tally = QueryBank.of([model.tokenizer.bag_of_words(tokens) @ video.T], 20, 2.0)
    expected = evaluate_matrix_with_bank(MatrixScore(matrix), torch.arange(60) // 3, 20, tally, ties="average")
    assert found["t2v"] == pytest.approx(expected.result.t2v)
    assert found["qb_norm"]["raw_t2v"] == pytest.approx(expected.raw.t2v)
    assert found["v2t"] == pytest.approx(expected.raw.v2t)
    assert expected.result.t2v != expected.raw.t2v
    assert found["parameters"] == 12
    assert model.videos == Counter(range(20)), "each test video once, no video of the bank"
    assert model.texts == Counter(range(60)) + Counter(range(queries))


def test_mistakes_show_before_anything_is_encoded(tmp_path: Path) -> None:
    model = Counting()
    data = module(tmp_path, {"train": 3, "validate": 3, "test": 12}, captions=1)
    for settings, message in (
        ({"beta": -1.0}, "expected a positive number"),
        ({"k": 13}, "found 13, expected 1 to 12"),
        ({"bank": "rest"}, "has no rest part"),
    ):
        with pytest.raises(UserError, match=message):
            metrics_of(model, config(tmp_path, **settings), data, query_bank.test)
    assert not model.videos


def check_counts(tmp_path: Path, sizes: dict[str, int], captions: int) -> None:
    model = Counting()
    found = metrics_of(model, config(tmp_path), module(tmp_path, sizes, captions), topic_search.test)
    assert found["protocol"]["num_captions"] == sizes["test"] * captions
    assert set(model.texts.values()) == set(model.videos.values()) == {1}
    assert (len(model.texts), len(model.videos)) == (sizes["test"] * captions, sizes["test"])


def test_an_evaluation_encodes_everything_once(tmp_path: Path) -> None:
    check_counts(tmp_path, {"train": 2, "validate": 2, "test": 150}, captions=20)


class FeatureText(Counting):
    """The same, but reads precomputed features of captions in place of words."""

    @property
    def input_spec(self) -> InputSpec:
        specs = {name: (ExpertSpec(name, len(WORDS)),) for name in ("words", "captions")}
        return InputSpec(None, experts=specs["words"], text_features=specs["captions"])

    def encode_text(self, batch: TextBatch) -> TextEmbedding:
        return TextEmbedding(batch.ids, {"x": batch.features["captions"]}, video_ids=batch.video_ids)


@pytest.mark.parametrize("bank", [False, True])
def test_captions_without_features_are_no_queries(tmp_path: Path, bank: bool) -> None:
    """MSR-VTT's published features lack six captions of the test part."""
    model = FeatureText()
    data = module(tmp_path, {"train": 12, "validate": 2, "test": 12}, captions=3)
    keys = [key for part in ("train", "test") for caption in data.part(part).captions for key in caption.keys]
    lacking = {keys[5], keys[40], keys[41], keys[71]}  # one of the training part
    rng = np.random.default_rng(1)
    items = {key: rng.random((1, len(WORDS)), dtype=np.float32) for key in keys}
    write_store(tmp_path / "captions", {key: None if key in lacking else rows for key, rows in items.items()})
    data.inputs, data.stores = model.input_spec, {**data.stores, "captions": tmp_path / "captions"}
    cfg = config(tmp_path)
    found = metrics_of(model, cfg, data, query_bank.test if bank else topic_search.test)
    assert found["protocol"]["num_captions"] == 33
    assert found["captions_without_feature"] == 3
    if bank:
        assert found["qb_norm"]["bank_queries"] == 35
    else:
        matrix = np.load(tmp_path / "run" / "similarity.npy")
        kept = torch.tensor([n for n, key in enumerate(keys[36:]) if key not in lacking])
        expected = evaluate_matrix(matrix, kept // 3, 12, ties="average")
        assert found["t2v"] == pytest.approx(expected.t2v)
        assert found["v2t"] == pytest.approx(expected.v2t)


@pytest.mark.slow
def test_an_evaluation_of_the_full_test_part_encodes_everything_once(tmp_path: Path) -> None:
    """2,990 videos with 20 captions: 62,790 items, each encoded once."""
    split = yaml.safe_load((Path(__file__).resolve().parents[2] / "conf/split/msrvtt_full.yaml").read_text())
    check_counts(tmp_path, {"train": 2, "validate": 2, "test": split["expected"]["test"]["videos"]}, captions=20)
