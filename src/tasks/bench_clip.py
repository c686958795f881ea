"""task=bench, parts clip_step and clip_scores: CLIP2Video beside the bare towers, and beside re-encoding per block."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig
from torch import Tensor

from src.batch import PairBatch, TextBatch, VideoBatch
from src.models.clip2video import Clip2Video
from src.models.clip_tower import ClipTower, normalise_frames
from src.models.heads.base import TextTokens
from src.optim.factories import AdamWFactory
from src.tasks.bench import seconds_of

B = TypeVar("B", TextBatch, VideoBatch)
WORDS = 32  # per caption, start and end included
TOWERS, STEP = WAYS = ("bare towers", "step")


def bench_clip_step(cfg: DictConfig) -> dict[str, float]:
    """A training step of CLIP2Video beside forward and backward pass of its towers called directly, in turn.

    The towers get frames that are normalised already, and captions cut to the same 32 positions; ours starts from
    uint8. The update (AdamW on all parameters) is measured by itself: towers alone are not updated.
    """
    torch.manual_seed(cfg.seed)
    model = Clip2Video(arch=cfg.task.clip_arch, num_frames=cfg.task.clip_frames, max_words=WORDS).train()
    batch = made_up_pairs(model, cfg.task.clip_batch, torch.Generator().manual_seed(cfg.seed))
    assert batch.video.frames_BTCHW is not None
    tower = model.tower
    assert isinstance(tower, ClipTower)
    pixels = normalise_frames(batch.video.frames_BTCHW, tower.mean, tower.std).flatten(0, 1)
    ways: dict[str, Callable[[], object]] = {
        TOWERS: lambda: _bare_towers(tower.clip, pixels, batch.text.tokens_BL).backward(),
        STEP: lambda: _loss(model, batch).backward(),
    }
    optimizer = AdamWFactory(lr=1e-7).build(model.named_parameters(), 0)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in (*WAYS, "optimiser")}
    for repetition in range(1 + cfg.task.clip_steps):  # the first one allocates
        turn = repetition % 2
        for name in WAYS[turn:] + WAYS[:turn]:
            model.zero_grad()
            spent = {name: seconds_of(ways[name])}
            if name == STEP:
                spent["optimiser"] = seconds_of(optimizer.step)
            for part, numbers in spent.items() if repetition else ():
                seconds[part].append(numbers)
    return _step_summary(model, cfg.task.clip_batch, seconds)


def _step_summary(model: Clip2Video, batch: int, seconds: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
    found: dict[str, float] = {
        "batch": batch,
        "frames": model.frames.num_frames,
        "parameters": sum(p.numel() for p in model.parameters()),
        "of the towers": sum(p.numel() for name, p in model.named_parameters() if name.startswith("tower.")),
    }
    for kind, column in (("s", 0), ("CPU-s", 1)):
        median = {name: statistics.median(spent[column] for spent in rows) for name, rows in seconds.items()}
        found |= {f"{name} {kind}": value for name, value in median.items()}
        found[f"step / bare towers, {kind}"] = median[STEP] / median[TOWERS]
        found[f"step with optimiser / bare towers, {kind}"] = (median[STEP] + median["optimiser"]) / median[TOWERS]
    return found


def _loss(model: Clip2Video, batch: PairBatch) -> Tensor:
    return model.loss(model.encode_text(batch.text), model.encode_video(batch.video))["loss"]


def _bare_towers(clip: Any, pixels_NCHW: Tensor, tokens_BL: Tensor) -> Tensor:
    """open_clip's modules one after the other; its `encode_text` would insist on 77 positions."""
    length = tokens_BL.shape[1]
    x_BLD = clip.token_embedding(tokens_BL) + clip.positional_embedding[:length]
    x_BLD = clip.ln_final(clip.transformer(x_BLD, attn_mask=clip.attn_mask[:length, :length]))
    text_BD = x_BLD[torch.arange(len(x_BLD)), tokens_BL.argmax(1)] @ clip.text_projection
    return clip.encode_image(pixels_NCHW).square().sum() + text_BD.square().sum()


def made_up_pairs(model: Clip2Video, size: int, generator: torch.Generator) -> PairBatch:
    """Random pixels and words without padding."""
    ids, vocabulary = torch.arange(size), model.tower.clip.token_embedding.num_embeddings
    tokens_BL = torch.randint(1, vocabulary - 1, (size, WORDS), generator=generator)
    tokens_BL[:, -1] = vocabulary - 1
    side, time_ = model.tower.image_size, model.frames.num_frames
    frames = torch.randint(0, 256, (size, time_, 3, side, side), dtype=torch.uint8, generator=generator)
    text = TextBatch(tokens_BL, torch.ones_like(tokens_BL, dtype=torch.bool), ids, ids)
    return PairBatch(text, VideoBatch(ids, frames, torch.ones(size, time_, dtype=torch.bool)))


class BehindTowers(Clip2Video):
    """CLIP2Video on what its towers gave: `frames` of a batch are their vectors, as are the `words` of captions."""

    def encode_frames(self, batch: VideoBatch) -> tuple[Tensor, Tensor]:
        assert batch.frames_BTCHW is not None
        assert batch.mask_BT is not None
        return batch.frames_BTCHW, batch.mask_BT

    def text_tokens(self, batch: TextBatch) -> TextTokens:
        words_BLD = batch.features["words"]
        return TextTokens(words_BLD[:, -1], batch.mask_BL, words_BLD)


@torch.no_grad()
def bench_clip_scores(cfg: DictConfig) -> dict[str, float]:
    """Scores of all captions and videos from random vectors of the towers: each item encoded once, or once per block.

    The published evaluation walks over blocks of captions and, for each, over blocks of videos; every pair of blocks
    runs difference block, temporal transformers and alignment block of its videos and captions anew. Both ways run
    our layers here, on one thread.

    Source: CLIP2Video evaluation loop @ e941318 (`_run_on_single_gpu`), by its description.
    """
    items, block = cfg.task.scores_items, cfg.task.scores_block
    torch.manual_seed(cfg.seed)
    model = BehindTowers(arch=cfg.task.clip_arch, num_frames=cfg.task.clip_frames, max_words=WORDS).eval()
    text, video = _features(items, cfg.task.clip_frames, model.tower.embed_dim)
    rows = [slice(start, start + block) for start in range(0, items, block)]
    texts, videos = [_piece(text, r) for r in rows], [_piece(video, r) for r in rows]
    scores: dict[str, Tensor] = {}

    def once() -> None:
        encoded = [model.encode_text(piece) for piece in texts], [model.encode_video(piece) for piece in videos]
        scores["once"] = model.similarity(type(encoded[0][0]).cat(encoded[0]), type(encoded[1][0]).cat(encoded[1]))

    def per_block() -> None:
        scores["per block"] = torch.cat([torch.cat([_score(model, t, v) for v in videos], 1) for t in texts])

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model.similarity(model.encode_text(texts[0]), model.encode_video(videos[0]))  # allocates
        before = seconds_of(once)[1]
        blocks = seconds_of(per_block)[1]
        ours = (before + seconds_of(once)[1]) / 2  # before and after: the machine's speed may change within a run
    finally:
        torch.set_num_threads(threads)
    deviation = float((scores["once"] - scores["per block"]).abs().max() / scores["once"].abs().max())
    return {
        "captions": items,
        "videos": items,
        "pairs of blocks": len(rows) ** 2,
        "encoded once CPU-s": ours,
        "encoded per block CPU-s": blocks,
        "per block / once": blocks / ours,
        "deviation x 1e6": 1e6 * deviation,
    }


def _piece(batch: B, rows: slice) -> B:
    return batch.map(lambda tensor: tensor[rows])


def _score(model: BehindTowers, text: TextBatch, video: VideoBatch) -> Tensor:
    return model.similarity(model.encode_text(text), model.encode_video(video))


def _features(items: int, frames: int, width: int) -> tuple[TextBatch, VideoBatch]:
    """Random vectors of words and frames, from a generator of its own; all captions and videos at full length."""
    generator, ids = torch.Generator().manual_seed(0), torch.arange(items)
    words = torch.randn(items, WORDS, width, generator=generator)
    tokens_BL = torch.zeros(items, WORDS, dtype=torch.int64)
    text = TextBatch(tokens_BL, torch.ones_like(tokens_BL, dtype=torch.bool), ids, ids, features={"words": words})
    vectors = torch.randn(items, frames, width, generator=generator)
    return text, VideoBatch(ids, vectors, torch.ones(items, frames, dtype=torch.bool))
