"""The test of dataset=avs: shots are encoded once and searched by the topics of every edition."""

from __future__ import annotations

import csv
import json
import re
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
from src.config import compose
from src.data.annotation import Judgement
from src.data.benchmarks.avs import AvsDataModule
from src.data.features.writer import StoreWriter
from src.data.splits import SplitSpec
from src.errors import UserError
from src.metrics.infap import SearchResult, evaluate_run
from src.models.base import RetrievalModule, Similarity
from src.models.vocabulary import VocabularyTokenizer
from src.reports.trecvid import read_run
from src.tasks import prepare, score, topic_search
from src.tasks.build import quiet
from src.tasks.outcome import ResultWriter, optimized_value
from src.tasks.score import score_run

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
        self.text_batches: list[tuple[list[int], int, int]] = []

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec(self.tokenizer, experts=(ExpertSpec("words", len(WORDS)),))

    def encode_text(self, batch: TextBatch) -> TextEmbedding:
        self.text_batches.append((batch.ids.tolist(), batch.tokens_BL.shape[1], int(batch.mask_BL.sum(1).max())))
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
    assert f"infAP\t\t1562\t\t{perf_value(result, '562')}\n" in perf
    page = (run / "report" / "index.html").read_text()
    assert all(text in page for text in ("rain, and a dog", "Find shots of a cat", perf_value(result, "562")))
    printed = searched["out"]
    assert "tv16: no judgements, run files only" in printed
    assert f"{result.all['infAP']:.4f}" in printed


def perf_value(result: SearchResult, topic: str) -> str:
    return f"{result.topics[topic]['infAP']:.4f}"


def test_shots_are_encoded_once_and_editions_scored_apart(searched: dict[str, Any]) -> None:
    assert searched["model"].encoded == NUM_SHOTS
    assert searched["model"].galleries == [(1, NUM_SHOTS), (2, NUM_SHOTS)]
    batches = searched["model"].text_batches
    assert [ids for ids, _, _ in batches] == [[0], [1, 2]]
    assert all(padded == longest for _, padded, longest in batches)
    assert len({padded for _, padded, _ in batches}) == 2, "else this test says nothing of the padding"


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


FRAMES = "resnext101_resnet152"
SMALL = (
    *("model.text_rnn_size=4", "model.visual_rnn_size=4", "model.text_kernel_num=4", "model.visual_kernel_num=4"),
    *("model.word_dim=4", "model.embed_dim=8", "model.num_concepts=3", "model.word_vectors=null"),
    *("trainer=cpu", "trainer.max_epochs=1", "trainer.enable_progress_bar=false"),
)


def avs_overrides(tmp_path: Path) -> list[str]:
    """The command line of the published recipe on the made folders, with a small model."""
    write_avs(tmp_path / "root", judged=("tv16", "tv18"))
    ids = [f"{name}{n}" for name in ("tgif-msrvtt10k", "tv2016train") for n in range(8)]
    rng = np.random.default_rng(1)
    frames = {video_id: rng.random((2 + n % 3, len(WORDS)), dtype=np.float32) for n, video_id in enumerate(ids)}
    store = write_store(tmp_path / "frames", {**frames, **shots()})
    words = [
        *("experiment=dual_encoding_avs", f"paths.data_dir={tmp_path}", f"dataset.rootpath={tmp_path}/root"),
        *("dataset.editions=[tv16,tv18]", "~split.expected", "dataset.num_workers=0", "dataset.batch_size=4"),
        *("dataset.eval_batch_size=4", f"experts.{FRAMES}.dim={len(WORDS)}", f"experts.{FRAMES}.path={store}"),
        *("experts.concepts.dim=3", *SMALL),
    ]
    options = ("task.steps=[vocabulary,concepts]", "task.min_count=1", "task.tagger=wordnet")
    (values,) = compose.preflight(compose.parse(["task=prepare", *words, *options]))
    prepare.run(OmegaConf.create(values))
    return words


def run_file(path: Path) -> tuple[list[list[str]], list[float]]:
    """Topic and shots of each line of a score file, and all its scores."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return [[fields[0], *fields[1::2]] for fields in lines], [float(s) for fields in lines for s in fields[2::2]]


def test_the_published_recipe_trains_searches_and_is_searched_again_by_two_processes(cli: Cli, tmp_path: Path) -> None:
    words = avs_overrides(tmp_path)
    fitted = cli(*words, "task=fit", name="fit", tiny=False).succeeded()
    assert "tv18       2" in fitted.out
    with (tmp_path / "fit" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert 0 <= float(row["val/SumR"]) <= 600  # of tv2016train
    best = f"ckpt_path={tmp_path}/fit/checkpoints/best.ckpt"
    asked = ("task=evaluate", best, "task.submission.team=ME", "~split.parts.train", "~split.parts.val")
    two = cli(*words, *asked, "trainer=ddp_cpu", name="evaluate", tiny=False).succeeded()
    assert two.out.count("report: ") == 1
    fit, evaluated = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("fit", "evaluate"))
    assert evaluated["topics"] == fit["topics"]
    assert evaluated["protocol"]["num_videos"] == NUM_SHOTS
    assert evaluated["protocol"]["judged_topics"] == {"tv16": 1, "tv18": 2}
    for outcome in (fitted, two):  # validation: 0.6 and jaccard
        assert "search 0.8 latent cosine + 0.2 concepts cosine" in outcome.out
    for edition in TOPICS:
        path = Path("topics") / edition / "id.sent.score.txt"
        (order, scores), (expected_order, expected) = (run_file(tmp_path / n / path) for n in ("evaluate", "fit"))
        assert order == expected_order
        np.testing.assert_allclose(scores, expected, atol=1e-6)
    run = tmp_path / "evaluate" / "topics" / "tv18" / "id.sent.score.txt"
    assert Path(f"{run}.treceval").read_text().splitlines()[0].endswith(" 1 9999 ME")
    score_anew(tmp_path, run, evaluated["topics"]["tv18"]["all"]["infAP"])


def score_anew(tmp_path: Path, run: Path, infap: float) -> None:
    """task=score of each written file gives the evaluation of the search, and a page."""
    qrels = tmp_path / "root" / "iacc.3" / "TextData" / "avs.qrels.tv18"
    for suffix in ("", ".xml", ".treceval"):
        folder = tmp_path / f"score{suffix}"
        assert score_run(Path(f"{run}{suffix}"), qrels, folder) == infap
        assert (folder / "perf.txt").read_text() == run.with_name("perf.txt").read_text()
        assert "1561" in (folder / "report" / "index.html").read_text()


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
def test_mistakes_in_scoring_a_run(tmp_path: Path, words: list[str], message: str) -> None:
    asked = compose.task_keys_named(["task=score", *words, f"paths.run_dir={tmp_path}"])
    with pytest.raises(UserError, match=re.escape(message)):
        score.run(OmegaConf.create(compose.preflight(compose.parse(asked))[0]))
