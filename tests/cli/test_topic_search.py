"""The test of dataset=avs: shots are encoded once and searched by the topics of every edition."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from pytorch_lightning import Trainer
from torch import Tensor

from src.batch import ExpertSpec, InputSpec, TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.data.annotation import Judgement
from src.data.benchmarks.avs import AvsDataModule
from src.data.features.writer import StoreWriter
from src.data.splits import SplitSpec
from src.errors import UserError
from src.metrics.infap import evaluate_run
from src.models.base import RetrievalModule, Similarity
from src.models.vocabulary import VocabularyTokenizer
from src.reports.trecvid import read_run
from src.tasks import topic_search
from src.tasks.build import quiet
from src.tasks.outcome import ResultWriter, optimized_value

Cli = Callable[..., Any]
SPLITS = Path(__file__).resolve().parents[2] / "conf" / "split"
WORDS = ("cat", "dog", "rain", "snow")
NUM_SHOTS = 23
TOPICS = {"tv16": {"501": "Find shots of a cat"}, "tv18": {"561": "rain, and a dog", "562": "a dog in snow"}}


class WordModel(RetrievalModule):
    """Counts words; a shot's feature says how much of each word it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = VocabularyTokenizer(WORDS)
        self.galleries: list[tuple[int, int]] = []
        self.encoded = 0

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec(self.tokenizer, experts=(ExpertSpec("words", len(WORDS)),))

    def encode_text(self, batch: TextBatch) -> TextEmbedding:
        bag = self.tokenizer.bag_of_words(batch.tokens_BL)
        return TextEmbedding(batch.ids, {"x": bag}, video_ids=batch.video_ids)

    def encode_video(self, batch: VideoBatch) -> VideoEmbedding:
        self.encoded += len(batch)
        return VideoEmbedding(batch.ids, {"x": batch.features["words"]})

    def similarity(self, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        return text.parts["x"] @ video.parts["x"].T

    def scorer(self, text: TextEmbedding, video: VideoEmbedding) -> Similarity:
        self.galleries.append((len(text), len(video)))
        return self.similarity


def shots() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"shot{30 + n // 5}_{n % 5}": rng.random((1, len(WORDS)), dtype=np.float32) for n in range(NUM_SHOTS)}


def write_avs(root: Path, judged: tuple[str, ...] = ("tv18",)) -> None:
    """Dual Encoding's folder: captions to train and validate, shots, topics, judgements of some editions."""
    for name in ("tgif-msrvtt10k", "tv2016train"):
        (root / name / "TextData").mkdir(parents=True)
        lines = [f"{name}{n}#0 a {WORDS[n % len(WORDS)]} and a {WORDS[n // 2 % len(WORDS)]}" for n in range(8)]
        (root / name / "TextData" / f"{name}.caption.txt").write_text("\n".join(lines) + "\n")
    for folder in ("TextData", "VideoSets"):
        (root / "iacc.3" / folder).mkdir(parents=True)
    (root / "iacc.3" / "VideoSets" / "iacc.3.txt").write_text("\n".join(shots()))
    for edition, topics in TOPICS.items():
        text = "\n".join(f"{topic} {sentence}" for topic, sentence in topics.items())
        (root / "iacc.3" / "TextData" / f"{edition}.avs.txt").write_text(text + "\n")
        lines = [
            f"1{topic} 0 {shot} {1 + n % 2} {n % 3 - 1}"
            for topic in topics
            for n, shot in enumerate(list(shots())[:15])
        ]
        if edition in judged:
            (root / "iacc.3" / "TextData" / f"avs.qrels.{edition}").write_text("\n".join(lines) + "\n")


def write_store(path: Path, items: dict[str, np.ndarray]) -> Path:
    writer = StoreWriter(path, name=path.name, dim=len(WORDS), recipe={}, ids=list(items))
    for shard in writer.pending():
        writer.write_shard(shard, ((i, items[i], None, None) for i in writer.shard_ids(shard)))
    writer.finish()
    return path


@pytest.fixture
def searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """A finished search of the test shots: the model, the run folder, the datamodule and the configuration."""
    write_avs(tmp_path / "avs")
    model = WordModel()
    values = yaml.safe_load((SPLITS / "avs.yaml").read_text()) | {"parts": {"test": "test"}, "expected": {}}
    datamodule = AvsDataModule(
        name="avs",
        split=SplitSpec(**values),
        inputs=model.input_spec,
        rootpath=str(tmp_path / "avs"),
        editions=tuple(TOPICS),
        eval_batch_size=4,
        stores={"words": write_store(tmp_path / "words", shots())},
    )
    cfg = OmegaConf.create(
        {
            "paths": {"run_dir": str(tmp_path / "run")},
            "task": {"name": "evaluate"},
            "model": {"_target_": "WordModel"},
            **{"selection": "val", "ties": "optimistic", "seed": 0, "save_similarity": True, "optimized_metric": None},
        }
    )
    quiet()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    topic_search.test(trainer, model, datamodule, ResultWriter(cfg, checkpoint="none"))
    return {
        "model": model,
        "run": tmp_path / "run",
        "datamodule": datamodule,
        "cfg": cfg,
        "out": capsys.readouterr().out,
    }


def test_run_files_and_metrics_of_every_edition(searched: dict[str, Any]) -> None:
    run: Path = searched["run"]
    gallery = shots()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["protocol"]["num_videos"] == NUM_SHOTS
    assert metrics["protocol"]["judged_topics"] == {"tv16": 0, "tv18": 2}
    assert list(metrics["topics"]) == ["tv18"]  # tv16 has no judgements
    for edition, topics in TOPICS.items():
        lines = (run / "topics" / edition / "id.sent.score.txt").read_text().splitlines()
        for line, (topic, sentence) in zip(lines, topics.items(), strict=True):
            name, *pairs = line.split()
            words = [WORDS.index(word) for word in WORDS if word in sentence]
            expected = {shot: gallery[shot][0, words].sum() for shot in gallery}
            assert name == topic
            assert pairs[::2] == sorted(expected, key=lambda shot: -expected[shot])
            np.testing.assert_allclose([float(score) for score in pairs[1::2]], sorted(expected.values())[::-1], 1e-6)
        assert np.load(run / "topics" / edition / "similarity.npy").shape == (len(topics), NUM_SHOTS)
    assert not (run / "topics" / "tv16" / "perf.txt").exists()
    qrels = searched["datamodule"].annotation.qrels["tv18"]
    assert Judgement("561", "shot30_0", 1, -1) in qrels
    result = evaluate_run(read_run(run / "topics" / "tv18" / "id.sent.score.txt"), qrels)
    assert metrics["topics"]["tv18"] == result.to_json()
    assert 0 < result.all["infAP"] < 1
    perf = (run / "topics" / "tv18" / "perf.txt").read_text()
    assert f"infAP\t\t1562\t\t{result.topics['562']['infAP']:.4f}\n" in perf
    printed = searched["out"]
    assert "tv16: no judgements, run files only" in printed
    assert f"{result.all['infAP']:.4f}" in printed


def test_shots_are_encoded_once_and_editions_scored_apart(searched: dict[str, Any]) -> None:
    assert searched["model"].encoded == NUM_SHOTS
    assert searched["model"].galleries == [(1, NUM_SHOTS), (2, NUM_SHOTS)]


def test_a_sweep_can_follow_infap(searched: dict[str, Any]) -> None:
    cfg = searched["cfg"]
    metrics = json.loads((searched["run"] / "metrics.json").read_text())
    cfg.optimized_metric = "test/topics/tv18/all/infAP"
    assert optimized_value(cfg) == metrics["topics"]["tv18"]["all"]["infAP"]
    cfg.optimized_metric = "val/t2v/R1"
    assert optimized_value(cfg) is None


def test_blocks_do_not_change_the_scores(searched: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = WordModel()
    text = TextEmbedding(torch.arange(5), {"x": torch.rand(5, 4)}, video_ids=torch.full((5,), -1))
    video = VideoEmbedding(torch.arange(7), {"x": torch.rand(7, 4)})
    whole = topic_search.score_topics(model, text, video, list("abcde"))
    monkeypatch.setattr(topic_search, "TOPICS", 2)
    monkeypatch.setattr(topic_search, "SHOTS", 3)
    np.testing.assert_allclose(topic_search.score_topics(model, text, video, list("abcde")), whole, rtol=1e-6)
    broken = VideoEmbedding(video.ids, {"x": torch.full((7, 4), torch.nan)})
    with pytest.raises(UserError, match="NaN in the scores of topics a, b, c, d, e"):
        topic_search.score_topics(model, text, broken, list("abcde"))


def test_topics_have_no_precomputed_text_features(tmp_path: Path) -> None:
    write_avs(tmp_path / "avs")
    values = yaml.safe_load((SPLITS / "avs.yaml").read_text()) | {"parts": {"test": "test"}, "expected": {}}
    datamodule = AvsDataModule(
        name="avs",
        split=SplitSpec(**values),
        inputs=InputSpec(None, text_features=(ExpertSpec("t5", 4),)),
        rootpath=str(tmp_path / "avs"),
        editions=tuple(TOPICS),
    )
    with pytest.raises(UserError, match=r"precomputed text features \(t5\), but topics have none"):
        datamodule.search_dataloaders()


SMALL = (
    *("model=dual_encoding", "model.space=latent", "model.text_rnn_size=4", "model.visual_rnn_size=4"),
    *("model.text_kernel_num=4", "model.visual_kernel_num=4", "model.word_dim=4", "model.embed_dim=8"),
    *("optimizer=adam", "scheduler=none", "trainer=cpu", "trainer.max_epochs=1", "trainer.enable_progress_bar=false"),
)


def avs_overrides(tmp_path: Path) -> list[str]:
    """The command line of an ad-hoc search on the made folder, with a small model."""
    write_avs(tmp_path / "avs", judged=("tv16", "tv18"))
    ids = [f"{name}{n}" for name in ("tgif-msrvtt10k", "tv2016train") for n in range(8)]
    rng = np.random.default_rng(1)
    frames = {i: rng.random((3, len(WORDS)), dtype=np.float32) for i in ids}
    store = write_store(tmp_path / "frames", {**frames, **shots()})
    (tmp_path / "vocabulary.json").write_text(json.dumps({"words": [*WORDS, "a", "and"]}))
    return [
        *("dataset=avs", f"dataset.rootpath={tmp_path}/avs", "dataset.editions=[tv16,tv18]", "~split.expected"),
        *("dataset.num_workers=0", "dataset.batch_size=4", f"dataset.cache_dir={tmp_path}/cache"),
        *("experts=resnet152", f"experts.resnet152.dim={len(WORDS)}", f"experts.resnet152.path={store}"),
        *(*SMALL, f"model.vocabulary={tmp_path}/vocabulary.json"),
    ]


def test_train_search_evaluate_and_score_by_command(cli: Cli, tmp_path: Path) -> None:
    words = avs_overrides(tmp_path)
    fitted = cli(*words, "task=fit", name="fit", tiny=False).succeeded()
    assert "tv18       2" in fitted.out
    best = f"ckpt_path={tmp_path}/fit/checkpoints/best.ckpt"
    asked = ("task=evaluate", best, "task.submission.team=ME", "~split.parts.train", "~split.parts.val")
    cli(*words, *asked, name="evaluate", tiny=False).succeeded()
    fit, evaluated = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("fit", "evaluate"))
    assert evaluated["topics"] == fit["topics"]
    assert evaluated["protocol"]["judged_topics"] == {"tv16": 1, "tv18": 2}
    run = tmp_path / "evaluate" / "topics" / "tv18" / "id.sent.score.txt"
    assert Path(f"{run}.treceval").read_text().splitlines()[0].endswith(" 1 9999 ME")
    qrels = tmp_path / "avs" / "iacc.3" / "TextData" / "avs.qrels.tv18"
    scored = cli("task=score", f"run_file={run}.xml", f"qrels={qrels}", name="score", tiny=False).succeeded()
    infap = f"{evaluated['topics']['tv18']['all']['infAP']:.4f}"
    assert any(line.split()[:2] == ["all", infap] for line in scored.out.splitlines())
    assert (tmp_path / "score" / "perf.txt").read_text() == run.with_name("perf.txt").read_text()


def test_training_without_the_gallery(cli: Cli, tmp_path: Path) -> None:
    outcome = cli(*avs_overrides(tmp_path), "task=fit", "~split.parts.test", tiny=False).succeeded()
    assert "nothing was tested: the split has no test part" in outcome.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run_file=nowhere.txt"], "run_file=nowhere.txt does not exist"),
        (["run_file=README.md"], "task=score run_file=README.md has no judgements; give qrels=FILE"),
        (["run_file=README.md", "qrels=README.md"], "README.md, line 1"),
    ],
)
def test_mistakes_in_scoring_a_run(cli: Cli, words: list[str], message: str) -> None:
    assert message in cli("task=score", *words, tiny=False).failed_with(2)
