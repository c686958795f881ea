"""The loss of a validation, and runs that are selected and stopped by it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from src.batch import TextEmbedding, VideoEmbedding
from src.callbacks import MovableCheckpoint
from src.callbacks.early_stop import EarlyStop
from src.errors import UserError
from src.losses.norm_softmax import NormSoftmaxLoss
from src.metrics.order import better
from src.models.validation_loss import validation_loss

Pairs = tuple[TextEmbedding, VideoEmbedding]


def embeddings(owners: list[int], videos: list[int]) -> Pairs:
    """Captions of the videos `owners`, the number of each in its part x; videos likewise."""
    numbers = torch.arange(len(owners), dtype=torch.float64)[:, None]
    ids = torch.tensor(videos)
    text = TextEmbedding(torch.arange(len(owners)), {"x": numbers}, video_ids=torch.tensor(owners))
    return text, VideoEmbedding(ids, {"x": ids.double()[:, None]})


def seen(text: TextEmbedding, video: VideoEmbedding, batch_size: int) -> list[list[tuple[int, int]]]:
    batches = []

    def loss(text: TextEmbedding, video: VideoEmbedding) -> dict[str, Tensor]:
        assert torch.equal(text.video_ids, video.ids), "row i of both is one pair"
        batches.append(list(zip(text.ids.tolist(), video.ids.tolist(), strict=True)))
        return {"loss": torch.tensor(float(len(batches)))}

    value = validation_loss(loss, text, video, batch_size)
    assert value.item() == sum(range(1, len(batches) + 1)) / len(batches)
    return batches


def test_every_video_comes_once_with_its_first_caption() -> None:
    # Videos 3 and 9 have several captions, 5 none; the videos of captions 0 and 6 could not be read.
    text, video = embeddings([4, 9, 9, 3, 7, 3, 8], [9, 3, 5, 7])
    batches = seen(text, video, 2)
    assert sorted(pair for batch in batches for pair in batch) == [(1, 9), (3, 3), (4, 7)]


def test_batches_are_of_about_equal_size_and_always_the_same() -> None:
    pairs = embeddings(list(range(9)), list(range(9)))
    batches = seen(*pairs, 4)
    assert [len(batch) for batch in batches] == [3, 3, 3], "not 4, 4 and 1, whose loss is another one"
    assert [pair for batch in batches for pair in batch] != [(i, i) for i in range(9)]
    assert seen(*pairs, 4) == batches
    assert len(seen(*pairs, 9)) == 1


def test_is_the_training_loss_of_the_batch() -> None:
    text, video = embeddings(list(range(8)), list(range(8)))
    loss = NormSoftmaxLoss()
    value = validation_loss(lambda t, v: {"loss": loss(lambda a, b: torch.zeros(len(a), len(b)), t, v)}, text, video, 4)
    assert value.item() == pytest.approx(2 * math.log(4))


def test_no_pair_at_all() -> None:
    with pytest.raises(UserError, match="no caption of the validation describes"):
        seen(*embeddings([1, 2], [3]), 4)


@pytest.mark.parametrize(
    ("metric", "mode"),
    [("val/loss", "min"), ("val/t2v/MnR", "min"), ("val/v2t/MdR", "min"), ("val/t2v/R1", "max"), ("val/SumR", "max")],
)
def test_which_value_is_better(metric: str, mode: str) -> None:
    assert better(metric) == mode
    stop = EarlyStop(metric)
    assert stop.mode == mode
    assert stop.best_score.item() == (math.inf if mode == "min" else 0.0)


class Scripted(LightningModule):
    """Its validation gives scripted losses."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.losses, self.epochs = losses, 0
        self.weight = nn.Parameter(torch.zeros(1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=1.0)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.weight.sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.losses[self.current_epoch])

    def on_train_epoch_end(self) -> None:
        self.epochs += 1


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")
@pytest.mark.parametrize(("ties", "epochs", "kept"), [("first", 5, 1), ("last", 7, 3)])
def test_the_lowest_loss_is_kept_and_stops_the_run(tmp_path: Path, ties: Any, epochs: int, kept: int) -> None:
    common: dict[str, Any] = {"dirpath": tmp_path, "enable_version_counter": False, "save_on_train_epoch_end": True}
    best = MovableCheckpoint(
        filename="best", monitor="val/loss", mode=better("val/loss"), later_wins=ties == "last", **common
    )
    model = Scripted([4.0, 2.0, 3.0, 2.0, 2.5, 2.25, 2.125, 2.5, 1.0])
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=9,
        callbacks=[EarlyStop("val/loss", patience=3, ties=ties), best],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    data = DataLoader(torch.zeros(1, 1), batch_size=1)
    trainer.fit(model, data, data)
    assert model.epochs == epochs
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == kept
