"""What the steps vocabulary and concepts of task=prepare have in common: the training captions of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from src.batch import InputSpec
from src.data.annotation import CaptionRecord
from src.data.datamodule import RetrievalDataModule
from src.errors import UserError
from src.models.vocabulary import words_of
from src.tasks.build import build_datamodule


@dataclass(frozen=True)
class TrainingCaptions:
    """The captions that train, in the order of their file: published vocabularies keep the order of appearance.

    Attributes:
        datamodule: of the data set.
        folder: where its vocabulary and concepts go.
    """

    datamodule: RetrievalDataModule
    folder: Path

    @cached_property
    def captions(self) -> tuple[CaptionRecord, ...]:
        part = self.datamodule.part("train")
        if self.datamodule.split.captions.get("train", "all") != "all":
            return tuple(part.captions)
        used = {video.id for video in part.videos}
        # Parts put the captions of a video side by side; the annotation has them as the file does.
        return tuple(c for c in self.datamodule.annotation.captions if c.video_id in used and c.text.strip())

    @cached_property
    def words(self) -> list[list[str]]:
        """Cleaned words of each caption."""
        return [words_of(caption.text) for caption in self.captions]

    @cached_property
    def video_keys(self) -> dict[str, str]:
        """Video id -> under which feature stores know it."""
        return {video.id: video.key for video in self.datamodule.part("train").videos}


def training_captions(cfg: DictConfig) -> TrainingCaptions:
    """The training captions of the configured data set and split; no video is read.

    Raises:
        UserError: the data set cannot be read.
    """
    folder = folder_of(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    return TrainingCaptions(build_datamodule(cfg, InputSpec(tokenizer=None)), folder)


def folder_of(cfg: DictConfig) -> Path:
    """Where the vocabulary and the concepts of the data set go."""
    return Path(cfg.paths.data_dir).expanduser() / cfg.dataset.name


def whole_number(cfg: DictConfig, key: str, least: int) -> int:
    """The value of `task.<key>`.

    Raises:
        UserError: it is no whole number, or too small.
    """
    value = cfg.task[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"found task.{key}={value}, expected a whole number of at least {least}; give task.{key}=…")
    return value


def say(line: str) -> None:
    """Print one line as it is."""
    Console().print(line, markup=False, highlight=False, soft_wrap=True)
