"""`model.ocr=true` on every head and tower: it starts as nothing, then reads, and trains with exact gradients."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from src.batch import PairBatch, TextBatch, VideoBatch, WordBatch
from src.config import compose
from src.errors import UserError
from src.models.clip_ocr import picture
from src.models.clip_retrieval import ClipRetrievalModule
from src.models.heads.base import VideoTokens
from src.tasks import build
from tests.tiny_clip import tiny_arch
from tests.tiny_pairs import FRAMES, HEADS, WORDS, assert_same, pairs, step

MODELS = ("clip4clip", "clip2video", "internvideo", "hf")
REAL_WORDS = ("model.arch=videotext-tiny",)  # a vocabulary, unlike the smallest tower
LENGTHS = (3, 0, 1)  # words of the videos


@cache
def configuration(model: str, head: str, *more: str) -> Any:
    sizes = [f"model.num_frames={FRAMES}", f"model.max_words={WORDS}", "model.ocr=true"]
    tower = [] if model == "hf" else [f"model.arch={tiny_arch()}", "model.pretrained=null"]
    words = ["selection=last", f"model={model}", f"model.head={head}", *tower, *sizes, *more]
    (values,) = compose.preflight(compose.parse(compose.nested_groups_named(words)))
    return OmegaConf.create({"model": values["model"]})


def make(model: str, head: str, *more: str, ocr: bool = True) -> ClipRetrievalModule:
    cfg = OmegaConf.merge(configuration(model, head, *more), {"model": {"ocr": ocr}})
    torch.manual_seed(0)
    made = build.build_model(cfg)  # type: ignore[arg-type]
    assert isinstance(made, ClipRetrievalModule)
    for module in made.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return made.double().train()


def read(made: ClipRetrievalModule, seed: int = 3) -> ClipRetrievalModule:
    """As after some training: the last layer is not zero any more, nor is the query."""
    generator = torch.Generator().manual_seed(seed)
    assert made.ocr is not None
    with torch.no_grad():
        for parameter in (made.ocr.out.weight, made.ocr.fusion.query_token):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return made


def end_token(model: str) -> int:
    return 4095 if model == "hf" else 63


def words_of(model: str, lengths: tuple[int, ...] = LENGTHS, slots: int = 3, pieces: int = 5) -> WordBatch:
    generator = torch.Generator().manual_seed(7)
    size = (len(lengths), slots)
    words_BW = torch.arange(slots) < torch.tensor(lengths)[:, None]
    longest_BW = torch.randint(3, pieces + 1, size, generator=generator)
    mask_BWL = torch.arange(pieces) < longest_BW[..., None]
    tokens_BWL = torch.randint(1, 60, (*size, pieces), generator=generator)
    tokens_BWL[~words_BW] = 5  # the word " "
    tokens_BWL = tokens_BWL.scatter(2, longest_BW[..., None] - 1, end_token(model)).masked_fill(~mask_BWL, 0)
    positions_BWP = torch.rand(*size, 12, generator=generator, dtype=torch.float64) * words_BW[..., None]
    return WordBatch(tokens_BWL, mask_BWL, words_BW, positions_BWP)


def batch_of(model: str, lengths: tuple[int, ...] = LENGTHS) -> PairBatch:
    batch = pairs(len(lengths))
    tokens_BL = torch.where(batch.text.tokens_BL == 63, end_token(model), batch.text.tokens_BL)
    text = TextBatch(tokens_BL, batch.text.mask_BL, batch.text.ids, batch.text.video_ids)
    video = replace(batch.video, words=words_of(model, lengths))
    if model == "hf":
        assert video.frames_BTCHW is not None
        video = replace(video, frames_BTCHW=video.frames_BTCHW.repeat(1, 1, 1, 4, 4))
    return PairBatch(text, video)


def scores(made: ClipRetrievalModule, batch: PairBatch) -> Tensor:
    with torch.no_grad():
        return made.similarity(made.encode_text(batch.text), made.encode_video(batch.video))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("model", MODELS)
def test_starts_as_the_model_without_and_then_reads(model: str, head: str) -> None:
    plain, made, batch = make(model, head, ocr=False).eval(), make(model, head).eval(), batch_of(model)
    added = made.state_dict().keys() - plain.state_dict().keys()
    assert added
    assert all(name.startswith("ocr.") for name in added)
    assert not plain.state_dict().keys() - made.state_dict().keys()
    visual = scores(plain, batch)
    assert torch.equal(scores(made, batch), visual)
    reading = scores(read(made), batch)
    assert torch.equal(reading[:, 1], visual[:, 1]), "a video without words has its visual score"
    assert ((reading - visual).abs().amax(0)[0] > 1e-4).all()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("model", MODELS)
def test_gradients_are_exact_whole_and_those_of_one_piece(model: str, head: str) -> None:
    fresh, batch = make(model, head), batch_of(model)
    assert {n for n, p in fresh.named_parameters() if p.requires_grad} <= step(fresh, batch).keys(), "DDP waits"
    made = read(fresh)
    found = step(made, batch)
    assert_same(step(made, batch, chunks=2), found)
    of_ocr = {name: p for name, p in made.named_parameters() if name.startswith("ocr.")}
    unmoved = [name for name in of_ocr if not found[name].any()]
    assert [name for name in unmoved if not name.endswith("key.bias")] == []  # softmax does not see that one
    assert_slope(made, of_ocr, batch, found)


def assert_slope(
    made: ClipRetrievalModule, parameters: dict[str, Tensor], batch: PairBatch, gradients: dict[str, Tensor]
) -> None:
    """The loss changes along a random direction as the gradient says."""
    generator = torch.Generator().manual_seed(11)
    moves = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in parameters.items()}
    expected = sum(float((gradients[name] * move).sum()) for name, move in moves.items())
    sides = []
    for sign, size in ((1, 1e-6), (-2, 1e-6)):
        with torch.no_grad():
            for name, move in moves.items():
                parameters[name].add_(move, alpha=sign * size)
            sides.append(float(made.loss(made.encode_text(batch.text), made.encode_video(batch.video))["loss"]))
    assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("model", MODELS)
def test_other_videos_repeated_words_and_empty_slots_change_nothing(model: str) -> None:
    made, batch = read(make(model, "meanP")).eval(), batch_of(model)
    together = scores(made, batch)
    for row in range(len(LENGTHS)):
        alone = PairBatch(batch.text, batch.video.map(lambda tensor, row=row: tensor[row : row + 1]))
        torch.testing.assert_close(scores(made, alone)[:, 0], together[:, row])
    words = batch.video.words
    assert words is not None
    wider = WordBatch(
        torch.cat([words.tokens_BWL, words.tokens_BWL[:, :1]], dim=1),
        torch.cat([words.mask_BWL, words.mask_BWL[:, :1]], dim=1),
        torch.cat([words.words_BW, torch.zeros(3, 1, dtype=torch.bool)], dim=1),
        torch.cat([words.positions_BWP, words.positions_BWP[:, :1]], dim=1),
    )
    torch.testing.assert_close(scores(made, PairBatch(batch.text, replace(batch.video, words=wider))), together)


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("clip4clip", REAL_WORDS),
        ("internvideo", REAL_WORDS),
        ("hf", ()),
        ("hf", ("model.path=videotext-tiny-xclip", "model.num_frames=8")),
    ],
)
def test_a_word_is_encoded_as_a_caption_of_that_word(model: str, more: tuple[str, ...]) -> None:
    made = make(model, "meanP", *more).eval()
    tokens_NL, mask_NL = made.tower.tokenizer(WORDS)(["exit", "a", "salida"])
    longest = int(mask_NL.sum(1).max())
    tokens_NL, mask_NL = tokens_NL[:, :longest], mask_NL[:, :longest]
    with torch.no_grad():
        found = made.encode_words(tokens_NL.masked_fill(~mask_NL, 0), mask_NL)  # what stands in padding is forgotten
        expected = made.text_tokens(TextBatch(tokens_NL, mask_NL, torch.arange(3), torch.arange(3))).sentence_BD
    torch.testing.assert_close(found, expected)


def test_asks_the_data_for_words_and_says_when_there_are_none() -> None:
    made = make("clip4clip", "meanP", "model.ocr_words=50", *REAL_WORDS)
    assert made.input_spec.words is not None
    assert made.input_spec.words.max_words == 50
    assert make("clip4clip", "meanP", *REAL_WORDS, ocr=False).input_spec.words is None
    with pytest.raises(UserError, match=r"dataset\.ocr_dir"):
        make("clip4clip", "meanP").encode_video(pairs(2).video)
    with pytest.raises(UserError, match=r"model\.ocr_words=0, expected at least 1"):
        make("clip4clip", "meanP", "model.ocr_words=0")


def test_a_checkpoint_without_ocr_keeps_its_scores(caplog: pytest.LogCaptureFixture) -> None:
    plain, made, batch = make("clip4clip", "wti", ocr=False).eval(), make("clip4clip", "wti").eval(), batch_of("")
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.01)
    content = {"state_dict": plain.state_dict()}
    made.on_load_checkpoint(content)
    made.load_state_dict(content["state_dict"], strict=True)
    assert torch.equal(scores(made, batch), scores(plain, batch))
    assert "without model.ocr=true" in caplog.text
    own = {"state_dict": read(made).state_dict()}
    made.on_load_checkpoint(own)
    assert own["state_dict"]["ocr.out.weight"].any(), "a checkpoint with OCR is taken as it is"


def test_activations_of_one_pass_exist_at_a_time() -> None:
    """What stays for the backward pass does not grow with the pieces of words, nor with repeated words."""
    made = read(make("clip4clip", "meanP"))
    assert made.ocr is not None
    made.ocr.fusion.words_per_pass = 16

    def kept(words: WordBatch) -> int:
        """Numbers with the inner width of the caption encoder's blocks that autograd keeps."""
        sizes: list[int] = []

        def note(tensor: Tensor) -> Tensor:
            if tensor.dim() == 3 and tensor.shape[-1] == 4 * made.tower.text_width:
                sizes.append(tensor.numel())
            return tensor

        tokens = VideoTokens(*(torch.zeros(2, 4, made.tower.embed_dim).double(),), torch.ones(2, 4).bool(),
                             torch.zeros(2, 4, made.tower.embed_dim).double())  # fmt: skip
        assert made.ocr is not None
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            made.ocr(tokens, words)
        return sum(sizes)

    assert kept(words_of("", (200, 150), slots=200)) == 0


def test_picture_is_the_towers_or_the_mean_of_valid_frames() -> None:
    frames_BTD = torch.tensor([[[1.0], [3.0], [50.0]], [[7.0], [8.0], [9.0]]])
    mask_BT = torch.tensor([[True, True, False], [False, False, False]])
    assert picture(VideoTokens(frames_BTD, mask_BT, frames_BTD)).tolist() == [[2.0], [0.0]]
    pooled_BD = torch.tensor([[4.0], [5.0]])
    assert picture(VideoTokens(frames_BTD, mask_BT, frames_BTD, pooled_BD=pooled_BD)) is pooled_BD


def test_a_video_without_frames_stays_zero() -> None:
    made, batch = read(make("clip4clip", "meanP")).eval(), batch_of("clip4clip")
    empty = VideoBatch(
        batch.video.ids, batch.video.frames_BTCHW, torch.zeros_like(batch.video.mask_BT), words=batch.video.words
    )
    with torch.no_grad():
        assert not made.encode_video(empty).parts["video"].any()
