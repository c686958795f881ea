"""task=score: matrices of scores on disk, and those that are the bank of a re-scoring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from src.errors import UserError
from src.metrics.rescoring import Banks, Rescoring
from src.tasks.build import build_rescoring

BLOCK = 1024  # rows of a bank read at a time


def read_matrix(path: Path, key: str = "similarity") -> np.ndarray:
    """Open a similarity matrix without loading it; `key` names it in messages.

    Raises:
        UserError: no such file, no npy file, or not a float matrix.
    """
    if not path.is_file():
        raise UserError(f"{key}: {path} does not exist, expected a .npy file; check the path")
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        # Of a file that is no array at all numpy speaks of pickled data and how to trust it.
        reason = "it holds Python objects or no array" if "pickle" in str(error) else error
        raise UserError(f"{key}: {path} is not a readable .npy file ({reason}); write it with numpy.save") from None
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or 0 in matrix.shape:
        shape = getattr(matrix, "shape", "an archive")
        raise UserError(
            f"{key}: found {shape} in {path}, expected one matrix (captions, videos); write it alone with numpy.save"
        )
    if matrix.dtype not in (np.float16, np.float32, np.float64):
        raise UserError(
            f"{key}: found {matrix.dtype} in {path}, expected float16, float32 or float64; "
            "convert it with matrix.astype('float32')"
        )
    return matrix


def read_banks(cfg: DictConfig, shape: tuple[int, ...], rows_K: torch.Tensor) -> Banks | None:
    """The banks of a matrix of scores, read from disk block by block; None = its own queries.

    Args:
        cfg: names the files and the method.
        shape: of the matrix.
        rows_K: rows of the matrix that are captions.

    Raises:
        UserError: a file cannot be read or does not fit the matrix, or the method asks for another bank.
    """
    method = build_rescoring(cfg)
    captions, videos = (_path(cfg, key) for key in ("querybank", "videobank"))
    if method is not None:
        method.check(shape[1])
    _check_bank(method, captions, videos)
    if captions is None or method is None:
        return None
    queries = _bank_matrix(captions, "task.querybank", shape, axis=1)
    blocks = (torch.from_numpy(np.array(queries[n : n + BLOCK])) for n in range(0, len(queries), BLOCK))
    shown = None
    if videos is not None:
        other, kept = _bank_matrix(videos, "task.videobank", shape, axis=0), rows_K.numpy()
        columns = range(0, other.shape[1], BLOCK)
        shown = (torch.from_numpy(np.ascontiguousarray(other[:, n : n + BLOCK][kept].T)) for n in columns)
    return Banks(f"queries of {captions.name}", blocks, shown)


def _check_bank(method: Rescoring | None, captions: Path | None, videos: Path | None) -> None:
    named = "task.querybank" if captions is not None else "task.videobank" if videos is not None else None
    if method is None or method.fixed_bank:
        if named is not None:
            chosen = "none" if method is None else method.name
            raise UserError(
                f"{named} is a bank, but rescoring={chosen} uses none; "
                "add rescoring=qb_norm, inverted_softmax or sinkhorn, or drop the bank"
            )
        return
    if method.bank == "test" and named is not None:
        raise UserError(f"found rescoring.bank=test and {named}, expected one bank; drop one of them")
    if method.bank in ("train", "val") and captions is None:
        raise UserError(
            f"rescoring.bank={method.bank}: a matrix has no other part, expected task.querybank=FILE.npy with the "
            "scores of the bank's captions; give it, or drop rescoring.bank for the matrix's own (transductive)"
        )
    if videos is not None and captions is None:
        raise UserError("task.videobank needs the bank's captions beside it; give task.querybank=FILE.npy, too")
    if method.video_bank and videos is None:
        raise UserError("rescoring.video_bank: a matrix has no other videos; give task.videobank=FILE.npy, or drop it")


def _bank_matrix(path: Path, key: str, shape: tuple[int, ...], axis: int) -> np.ndarray:
    scores = read_matrix(path, key)
    if scores.shape[axis] != shape[axis]:
        lines, items = (("rows", "captions"), ("columns", "videos"))[axis]
        raise UserError(
            f"{key}: found {scores.shape[axis]} {lines} in {path}, expected {shape[axis]}, the {items} of the matrix "
            "in its order"
        )
    return scores


def _path(cfg: DictConfig, key: str) -> Path | None:
    value = cfg.task.get(key)
    return Path(value) if value is not None else None
