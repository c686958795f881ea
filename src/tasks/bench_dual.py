"""task=bench, part dual_evaluation: scoring and ranking of Dual Encoding at the published size, one thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.functional import normalize

from src.batch import TextEmbedding, VideoEmbedding
from src.metrics.retrieval import evaluate
from src.models.concept_space import CONCEPTS, LATENT, hybrid_spaces, space_scorer
from src.models.measures import jaccard_tiled
from src.tasks.bench import PeakMemory

LATENT_DIM, NUM_CONCEPTS, ALPHA = 1536, 512, 0.6
SAMPLE = 200  # captions that the direct formula is timed on


def bench_dual_evaluation(cfg: DictConfig) -> dict[str, float]:
    """Both spaces, global normalisation, ranks and mAP of both directions, on made-up embeddings.

    Beside it the Jaccard similarity alone, by the direct formula and by `torch.cdist`, on the first captions and
    multiplied to all of them.
    """
    captions, videos = cfg.task.dual_captions, cfg.task.dual_videos
    generator = torch.Generator().manual_seed(cfg.seed)
    text = TextEmbedding(
        torch.arange(captions), _parts(captions, generator), video_ids=torch.arange(captions) * videos // captions
    )
    video = VideoEmbedding(torch.arange(videos), _parts(videos, generator))
    spaces = hybrid_spaces(ALPHA)
    s_TK, v_VK = text.parts[CONCEPTS], video.parts[CONCEPTS]
    sample_TK = s_TK[:SAMPLE]
    factor = captions / len(sample_TK)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with PeakMemory() as memory:
            seconds, _ = _timed(lambda: evaluate(text, video, space_scorer(spaces, text, video)))
        scoring, _ = _timed(lambda: space_scorer(spaces, text, video))
        ours, _ = _timed(lambda: jaccard_tiled(s_TK, v_VK))
        direct, _ = _timed(lambda: _direct(sample_TK, v_VK))
        distance, _ = _timed(lambda: torch.cdist(sample_TK, v_VK, p=1))
        expected_TV = _direct(sample_TK.double(), v_VK.double())
        deviation = (jaccard_tiled(sample_TK, v_VK).double() - expected_TV).abs().max()
    finally:
        torch.set_num_threads(threads)
    return {
        "captions": captions,
        "videos": videos,
        "CPU-s": seconds,
        "CPU-s of both score matrices": scoring,
        "CPU-s of Jaccard": ours,
        "CPU-s of Jaccard, cdist": distance * factor,
        "CPU-s of Jaccard, direct": direct * factor,
        "MB above embeddings": memory.megabytes,
        "embeddings MB": sum(part.nbytes for item in (text, video) for part in item.parts.values()) / 1e6,
        "deviation x 1e6": 1e6 * float(deviation),
    }


def _parts(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        LATENT: normalize(torch.randn(count, LATENT_DIM, generator=generator), dim=1),
        CONCEPTS: torch.randn(count, NUM_CONCEPTS, generator=generator).sub_(2).sigmoid_(),
    }


def _direct(s_TK: Tensor, v_VK: Tensor) -> Tensor:
    """Minimum and maximum of all pairs at once, 50 captions at a time."""
    blocks = []
    for s_RK in s_TK.split(50):
        least_RV, most_RV = (pick(s_RK[:, None], v_VK).sum(2) for pick in (torch.minimum, torch.maximum))
        blocks.append(least_RV / most_RV)
    return torch.cat(blocks)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    found = work()
    return time.process_time() - started, found
