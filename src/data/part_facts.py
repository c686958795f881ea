"""What a run says of a part of its split: the protocol facts of a number, and what was left out."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from src.data.held_out import in_words
from src.data.splits import AppliedSplit, SplitPart, SplitSpec
from src.data.video import Problem


def part_facts(name: str, split: SplitSpec, part: SplitPart) -> dict[str, Any]:
    """What a number in a table depends on besides the model.

    Args:
        name: of the data set.
        split: that was applied.
        part: of it.
    """
    per_video = part.captions_per_video()
    same = len(set(per_video)) == 1
    return {
        "dataset": name,
        "split": split.name,
        "subset": split.subset,
        "part": part.name,
        "num_videos": len(part.videos),
        "num_captions": len(part.captions),
        "captions_per_video": per_video[0] if same else round(len(part.captions) / max(len(per_video), 1), 2),
        "caption_policy": split.captions.get(part.name, "all"),
        "val_holdout": split.val_holdout,
    } | in_words(split.caption_holdout.get(part.name))


def all_problems(applied: AppliedSplit, used_parts: Collection[str], met: Iterable[Problem]) -> list[Problem]:
    """What is missing, each once: left out by the split from the parts that were used, then what was met in reading."""
    met = list(met)
    lost = {problem.video_id for problem in met}
    parts = applied.parts.values() if lost else ()
    part_of = {video.id: part.name for part in parts for video in part.videos if video.id in lost}
    left_out = [
        Problem(item.video_id, item.path, item.detail, item.kind, item.part)
        for item in applied.excluded
        if item.part in used_parts
    ]
    found = [replace(problem, part=part_of.get(problem.video_id, "")) for problem in met]
    return list(dict.fromkeys(left_out + found))
