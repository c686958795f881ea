"""task=prepare task.steps=[denoise]: which training captions a teacher finds hard, to a caption mask.

A caption is left out when the teacher ranks its own video below the threshold among all training videos. The published
masks came without the program that made them: the rule is inferred from their names (denoise-less100), unverified.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from src.batch import InputSpec
from src.data.caption_mask import number_of, write_mask
from src.data.datamodule import RetrievalDataModule
from src.data.teachers import TeacherSource
from src.errors import UserError
from src.tasks.build import build_datamodule, experts_of
from src.tasks.prepare_text import folder_of, say, whole_number

ROWS = 512  # captions at a time
RULE = "left out when the rank of its own video among the training videos exceeds rank_threshold"
CAVEAT = "inferred from the names of the published masks, unverified"


def run(cfg: DictConfig) -> None:
    """Write the mask and print how many captions it leaves out.

    Raises:
        UserError: no teacher, one of another split, or captions that are paragraphs.
    """
    threshold = whole_number(cfg, "rank_threshold", 1)
    if cfg.task.teacher is None:
        raise UserError(
            "task.steps=[denoise] found no task.teacher=, expected scores of a trained model; make them by "
            "task=extract extractor=teacher ckpt_path=RUN and give task.teacher=teacher.NAME"
        )
    datamodule = build_datamodule(cfg, InputSpec(tokenizer=None, experts=experts_of(cfg)))
    name = str(cfg.task.teacher)
    folder = Path(name).expanduser() if "/" in name else folder_of(cfg) / "features" / name
    part = datamodule.part("train")
    source = TeacherSource([name], {name: folder}, part, split=datamodule.split.name, whole_rows=True)
    source.check()
    ranks_N = own_ranks(source, part.video_index)
    kept = _masks(datamodule, ranks_N <= threshold)
    output = Path(cfg.task.output or folder_of(cfg) / f"caption_mask_less{threshold}.json").expanduser()
    origin = {"rule": RULE, "caveat": CAVEAT, "rank_threshold": threshold, "teacher": name}
    origin |= {"teacher_fingerprint": source.stores[name].fingerprint}
    origin |= {"dataset": datamodule.name, "split": datamodule.split.name}
    write_mask(output, kept, origin)
    dropped = int((ranks_N > threshold).sum())
    empty = sum(not any(of_video) for of_video in kept.values())
    say(
        f"denoise: {dropped} of {len(ranks_N)} training captions ({dropped / len(ranks_N):.1%}) are left out: {name} "
        f"ranks their video below {threshold} of {len(part.videos)}; median rank {np.median(ranks_N):g}"
    )
    if empty:
        say(f"denoise: {empty} videos keep no caption, so training goes without them")
    say(f"denoise: the rule is {CAVEAT}")
    say(f"denoise: use it with dataset.caption_mask={output}")


def own_ranks(source: TeacherSource, video_index: Sequence[int]) -> np.ndarray:
    """float64 (N,): rank of each caption's own video among all videos, 1 = best; the mean place of those tied with it.

    Args:
        source: one teacher, with whole rows.
        video_index: the video of each caption.
    """
    ranks = []
    for start in range(0, len(video_index), ROWS):
        own = video_index[start : start + ROWS]
        (s_BV,) = (s.float() for s in source.batch(range(start, start + len(own)), own).scores.values())
        own_B1 = s_BV.gather(1, torch.tensor(own)[:, None])
        higher_B, equal_B = (s_BV > own_B1).sum(1), (s_BV == own_B1).sum(1)
        ranks.append((1 + higher_B + (equal_B - 1) / 2).double().numpy())
    return np.concatenate(ranks)


def _masks(datamodule: RetrievalDataModule, kept_N: np.ndarray) -> dict[str, list[bool]]:
    """Digits of all captions of the training videos; those that the part does not use count as kept."""
    part = datamodule.part("train")
    counts = Counter(caption.video_id for caption in datamodule.annotation.captions)
    masks = {video.id: [True] * counts[video.id] for video in part.videos}
    for caption, kept in zip(part.captions, kept_N.tolist(), strict=True):
        masks[caption.video_id][number_of(caption)] = kept
    return masks
