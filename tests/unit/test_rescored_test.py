"""task=evaluate with re-scoring, and how often a whole evaluation encodes each item."""

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
from src.metrics.rescoring import Banks, rescore
from src.metrics.retrieval import MatrixScore, evaluate_matrix
from src.metrics.score_blocks import Scores
from src.models.base import RetrievalModule
from src.models.vocabulary import VocabularyTokenizer
from src.tasks import rescoring
from src.tasks.build import build_rescoring, quiet
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


TARGETS = {
    "qb_norm": "qb_norm.QbNorm",
    "inverted_softmax": "qb_norm.InvertedSoftmax",
    "sinkhorn": "sinkhorn.Sinkhorn",
    "dsl": "dual_softmax.DualSoftmax",
}


def config(folder: Path, method: str | None = None, **settings: Any) -> DictConfig:
    (folder / "run").mkdir(exist_ok=True)  # as the command line does
    chosen = {} if method is None else {"_target_": f"src.metrics.{TARGETS[method]}", **settings}
    keys = {"selection": "val", "ties": "average", "seed": 0, "save_similarity": True, "optimized_metric": None}
    keys["ckpt_path"] = None
    paths, task = {"run_dir": str(folder / "run")}, {"name": "evaluate"}
    return OmegaConf.create(
        {"paths": paths, "task": task, "model": {"_target_": "Counting"}, "rescoring": chosen, **keys}
    )


def metrics_of(model: Counting, cfg: DictConfig, data: MsrvttDataModule) -> dict[str, Any]:
    quiet()
    model.configure_evaluation(ties=cfg.ties, topk=10)
    writer = ResultWriter(cfg, checkpoint="none")
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    rescoring.test(Trainer(accelerator="cpu", callbacks=[writer], **options), model, data, writer)
    return json.loads((Path(cfg.paths.run_dir) / "metrics.json").read_text())


def bags(model: Counting, data: MsrvttDataModule, part: str) -> Tensor:
    tokens, _ = model.tokenizer([caption.text for caption in data.part(part).captions])
    return model.tokenizer.bag_of_words(tokens)


@pytest.mark.parametrize(
    ("method", "settings", "queries"),
    [
        ("qb_norm", {"bank": "train", "beta": 2.0}, 90),
        ("qb_norm", {"bank": "val", "beta": 2.0, "video_bank": True}, 24),
        ("qb_norm", {"beta": 2.0}, 90),
        ("inverted_softmax", {"bank": "train", "beta": 0.5, "video_bank": True}, 90),
        ("sinkhorn", {"bank": "val", "iterations": 3}, 24),
        ("sinkhorn", {}, 0),
        ("qb_norm", {"bank": "test"}, 0),
        ("dsl", {}, 0),
    ],
)
def test_a_test_is_rescored(tmp_path: Path, method: str, settings: dict[str, Any], queries: int) -> None:
    """As its matrix is; everything is encoded once, and the plain numbers are those of a plain test."""
    cfg = config(tmp_path, method, **settings)
    model, plain_model = Counting(), Counting()
    data = module(tmp_path, {"train": 30, "validate": 8, "test": 20}, captions=3)
    found = metrics_of(model, cfg, data)
    rescored = found.pop("rescored")
    part = {90: "train", 24: "val"}.get(queries)
    assert rescored["settings"].get("bank_queries", 0) == queries
    assert rescored["transductive"] == (part is None)
    assert found["protocol"]["rescoring"] == "none"
    matrix = np.load(tmp_path / "run" / "similarity.npy")
    assert matrix.shape == (60, 20)
    owner = torch.arange(60) // 3
    banks = None
    if part is not None:
        text, video = (embedding.parts["x"] for embedding in model.embeddings["test"])
        shown = next(iter(data.eval_dataloaders(part)[0])).features["words"]
        with_videos = [shown @ text.T] if settings.get("video_bank") else None
        banks = Banks(f"captions of {part}", [bags(model, data, part) @ video.T], with_videos)
    chosen = build_rescoring(cfg)
    assert chosen is not None
    expected_plain = evaluate_matrix(matrix, owner, 20, ties="average")
    expected = rescore(chosen, Scores(MatrixScore(matrix), owner, 20), expected_plain, banks).to_json()
    assert found["t2v"] == pytest.approx(expected_plain.t2v)
    assert found["v2t"] == pytest.approx(expected_plain.v2t)
    assert rescored["t2v"] == pytest.approx(expected["t2v"])
    assert rescored["v2t"] == (None if expected["v2t"] is None else pytest.approx(expected["v2t"]))
    assert (rescored["v2t"] is None) == (part is not None and not settings.get("video_bank"))
    assert rescored["t2v"] != found["t2v"]
    shown_videos = Counter(range(len(data.part(part).videos))) if part and settings.get("video_bank") else Counter()
    assert model.videos == Counter(range(20)) + shown_videos, "each once"
    assert model.texts == Counter(range(60)) + Counter(range(queries))
    alone = metrics_of(plain_model, config(tmp_path), data)
    assert {**alone, "timing": 0} == {**found, "timing": 0}


def test_rescored_numbers_are_logged_under_their_own_names(tmp_path: Path) -> None:
    model, cfg = Counting(), config(tmp_path, "dsl")
    data = module(tmp_path, {"train": 3, "validate": 3, "test": 12}, captions=1)
    quiet()
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    writer = ResultWriter(cfg, checkpoint="none")
    trainer = Trainer(accelerator="cpu", callbacks=[writer], **options)
    rescoring.test(trainer, model, data, writer)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert logged["test/rescored/v2t/MnR"] == pytest.approx(metrics["rescored"]["v2t"]["MnR"])
    assert logged["test/v2t/MnR"] == pytest.approx(metrics["v2t"]["MnR"])


def test_mistakes_show_before_anything_is_encoded(tmp_path: Path) -> None:
    model = Counting()
    data = module(tmp_path, {"train": 3, "validate": 3, "test": 12}, captions=1)
    for method, settings, message in (
        ("qb_norm", {"beta": -1.0}, "expected a positive number"),
        ("qb_norm", {"k": 13}, "found 13, expected 1 to 12"),
        ("inverted_softmax", {"bank": "rest"}, "has no rest part"),
        ("dsl", {"temperature": 0.0}, "expected a positive number"),
    ):
        with pytest.raises(UserError, match=message):
            metrics_of(model, config(tmp_path, method, **settings), data)
    assert not model.videos


def check_counts(tmp_path: Path, sizes: dict[str, int], captions: int) -> None:
    model = Counting()
    found = metrics_of(model, config(tmp_path), module(tmp_path, sizes, captions))
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
    found = metrics_of(model, config(tmp_path, "qb_norm", video_bank=True) if bank else config(tmp_path), data)
    assert found["protocol"]["num_captions"] == 33
    assert found["captions_without_feature"] == 3
    if bank:
        assert found["rescored"]["settings"]["bank_queries"] == 35
        assert found["rescored"]["settings"]["bank_videos"] == 12
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
