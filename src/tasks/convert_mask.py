"""Published caption masks in task=convert: a pickle of video -> 0 or 1 for each caption, to a mask file of ours."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from src.data.caption_mask import write_mask
from src.data.features.pickles import load_pickle
from src.data.features.store import file_sha256
from src.errors import UserError

log = logging.getLogger(__name__)


def convert_mask(cfg: DictConfig) -> None:
    """Write `task.output` (.json) from `task.source` and print how many captions it leaves out.

    Raises:
        UserError: not a pickle of masks.
    """
    source, output = Path(cfg.task.source), Path(cfg.task.output)
    if not source.is_file():
        raise UserError(f"task.source={source} is no file, expected a pickle of caption masks; give the file")
    with source.open("rb") as file:
        content = load_pickle(file, str(source), trust=cfg.task.trust)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{source} holds {type(content).__name__}, expected a dict of video -> 0 or 1 for each caption")
    masks = {str(video): _kept(value, f"{source}: {video!r}") for video, value in content.items()}
    write_mask(output, masks, {"imported": source.name, "sha256": file_sha256(source)})
    total = sum(map(len, masks.values()))
    dropped = total - sum(map(sum, masks.values()))
    empty = sum(not any(kept) for kept in masks.values())
    log.info(
        "caption mask of %s videos: %s of %s captions are left out, all of them for %s videos",
        *(f"{number:,}" for number in (len(masks), dropped, total, empty)),
    )
    log.info("mask: %s", output)


def _kept(value: object, where: str) -> list[bool]:
    """Whether each caption is kept.

    Raises:
        UserError: other values than 0 and 1.
    """
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise UserError(f"{where} is {str(value)[:60]}, expected a 0 or 1 for each caption; is this a caption mask?")
    return array.astype(bool).tolist()
