"""Shapes & Signs: the embedded benchmark, rendered on first use (docs/toy.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from src.data.annotation import Annotation, CaptionRecord, VideoRecord
from src.data.datamodule import RetrievalDataModule
from src.data.splits import PARTS
from src.data.toy import ToyParams, ensure_built
from src.data.toy.build import ANNOTATION


@dataclass(eq=False, kw_only=True, repr=False)
class ToyDataModule(RetrievalDataModule):
    """Short clips whose captions can only be told apart by one of five skills.

    Attributes:
        data_dir: folder of all toy benchmarks; each set of the options below has a sub-folder, named by a
            fingerprint of them.
        num_train: clips of the training part, a multiple of 10.
        num_val: clips of the validation part, a multiple of 10.
        num_test: clips of the test part, a multiple of 10.
        frame_size: side of the square clips, pixels.
        fps: frames per second.
        duration_s: seconds per clip.
        captions_per_clip: wordings per clip, at most 6.
        content_seed: of the scenes; `seed` is that of the training.
        render_threads: threads that render and encode on first use.
    """

    data_dir: str
    num_train: int = 600
    num_val: int = 100
    num_test: int = 200
    frame_size: int = 96
    fps: int = 8
    duration_s: float = 2.0
    captions_per_clip: int = 5
    content_seed: int = 0
    render_threads: int = 2

    @property
    def params(self) -> ToyParams:
        """What decides the content."""
        return ToyParams(
            num_train=self.num_train,
            num_val=self.num_val,
            num_test=self.num_test,
            frame_size=self.frame_size,
            fps=self.fps,
            duration_s=self.duration_s,
            captions_per_clip=self.captions_per_clip,
            seed=self.content_seed,
        )

    def read(self) -> Annotation:
        return read_annotation(ensure_built(self.params, Path(self.data_dir).expanduser(), self.render_threads))


def read_annotation(folder: Path) -> Annotation:
    """The annotation of a generated benchmark; pairs become groups, and the skill is a tag."""
    entries = json.loads((folder / ANNOTATION).read_text())["videos"]
    videos = tuple(
        VideoRecord(entry["id"], folder / entry["file"], group=entry["group"], tags=(("skill", entry["skill"]),))
        for entry in entries
    )
    captions = tuple(CaptionRecord(entry["id"], text) for entry in entries for text in entry["captions"])
    splits = {part: tuple(entry["id"] for entry in entries if entry["part"] == part) for part in PARTS}
    return Annotation(videos, captions, {part: ids for part, ids in splits.items() if ids})
