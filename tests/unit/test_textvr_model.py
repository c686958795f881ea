"""TextVR's four modes: what each holds, asks for, learns, and refuses."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save_file

from src.batch import TextBatch, VideoBatch, WordBatch
from src.errors import UserError
from src.metrics.retrieval import evaluate
from src.models.base import RetrievalModule
from src.models.gradient_cache import encode_in_chunks
from src.models.textvr import TextVR
from src.models.word_overlap import WholeWords
from tests.tiny_textvr import make_pairs, make_videos, tiny_textvr, without_dropout

LENGTHS = [6, 0, 3, 1]


def gradients(model: RetrievalModule, chunks: int = 1) -> dict[str, torch.Tensor | None]:
    batch = make_pairs(LENGTHS)
    model.configure_loss(cache_chunks=chunks)
    model.zero_grad()
    with patch.object(model, "log"):
        model.training_step(batch, 0).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def published(model: TextVR) -> dict[str, torch.Tensor]:
    return {name.removeprefix("fusion."): value.clone() for name, value in model.state_dict().items()}


# ---- what each mode holds ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "count"), [("fusion", 249_269_760), ("vision", 180_925_184), ("ocr", 134_892_032), ("offline", 0)]
)
def test_full_size(mode: str, count: int, tmp_path: Path) -> None:
    """Published sizes: DistilBERT's and the ViT's defaults."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "distilbert"}))
    with torch.device("meta"):
        model = TextVR(text_model=str(tmp_path), mode=mode)  # type: ignore[arg-type]
    assert sum(p.numel() for p in model.parameters()) == count


def test_parts_of_the_modes() -> None:
    parts = {
        mode: {name.split(".")[0] for name in published(tiny_textvr(mode=mode))}
        for mode in ("fusion", "vision", "ocr", "offline")
    }
    words = {"query_token", "ocr_model", "fusion_model", "fusion_proj"}
    assert parts["vision"] == {"text_model", "video_model", "txt_proj", "vid_proj"}
    assert parts["ocr"] == words | {"text_model", "txt_proj"}
    assert parts["fusion"] == parts["vision"] | words | {"type_embedding", "ocr_pos_embeds"}
    assert parts["offline"] == set()


def test_what_the_modes_ask_for() -> None:
    fusion, vision, ocr, offline = (
        tiny_textvr(mode=mode, ocr_words=50, ocr_positions="upstream").input_spec
        for mode in ("fusion", "vision", "ocr", "offline")
    )
    assert vision.words is None
    assert vision.frames == fusion.frames
    assert fusion.frames is not None
    assert (ocr.frames, offline.frames) == (None, None)
    assert fusion.words is not None
    assert ocr.words is not None
    assert offline.words is not None
    assert (fusion.words.max_words, fusion.words.rule, fusion.words.position_rule) == (50, "fixed", "upstream")
    assert (fusion.words.positions, ocr.words.positions, offline.words.positions) == (True, False, False)
    assert (offline.words.max_words, offline.words.min_length) == (20, 1)


# ---- learning ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fusion", "vision", "ocr"])
def test_gradient_reaches_every_parameter_that_asks_for_one(mode: str) -> None:
    model = without_dropout(tiny_textvr(mode=mode, time_init="rand"))
    for name, gradient in gradients(model).items():
        asks = model.get_parameter(name).requires_grad
        assert asks == (gradient is not None), name
        assert asks == (not (mode == "fusion" and name.startswith("vid_proj."))), name


def test_bert_reads_captions_with_its_pooler_and_words_without(tmp_path: Path) -> None:
    sizes = {"hidden_size": 96, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 8}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 4000, **sizes}))
    model = without_dropout(tiny_textvr(text_model=str(tmp_path)))
    assert model.text_model is not None
    assert model.fusion is not None
    text = make_pairs(LENGTHS).text
    tokens_BL, mask_BL = text.tokens_BL, text.mask_BL
    pooled_BD, first_BD = model.text_model(tokens_BL, mask_BL), model.fusion.ocr_model(tokens_BL, mask_BL)
    torch.testing.assert_close(model.text_model.pooler.dense(first_BD).tanh(), pooled_BD)  # type: ignore[union-attr,operator]
    unused = ("vid_proj.", "fusion.ocr_model.pooler.")
    for name, gradient in gradients(model).items():
        assert (gradient is None) == name.startswith(unused), name


def test_reading_changes_the_video_and_seeing_does() -> None:
    model = tiny_textvr().eval()
    torch.nn.init.normal_(model.fusion.query_token)  # type: ignore[union-attr]
    batch = make_videos(LENGTHS)
    plain = model.encode_video(batch).parts["video"]
    other = make_videos([3, 3, 3, 3])
    read = VideoBatch(batch.ids, batch.frames_BTCHW, batch.mask_BT, words=other.words)
    assert not torch.allclose(model.encode_video(read).parts["video"], plain)
    assert batch.frames_BTCHW is not None
    seen = VideoBatch(batch.ids, 255 - batch.frames_BTCHW, batch.mask_BT, words=batch.words)
    assert not torch.allclose(model.encode_video(seen).parts["video"], plain)


@pytest.mark.parametrize("mode", ["fusion", "ocr"])
def test_cached_gradients(mode: str) -> None:
    model = without_dropout(tiny_textvr(mode=mode).double())
    for chunks in (2, 4):
        for name, gradient in gradients(model, chunks).items():
            expected = gradients(model)[name]
            if expected is not None:
                torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("chunks", [1, 2])
def test_recomputing_words_changes_nothing(chunks: int, half: bool) -> None:
    """Dropout included, in mixed precision, and within chunks that are recomputed themselves."""
    found = []
    for recompute in (False, True):
        model = tiny_textvr(ocr_checkpointing=recompute, ocr_words_per_pass=3).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.3
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            found.append(gradients(model, chunks))
    assert any(name.startswith("fusion.ocr_model.") for name in found[0])
    for name, gradient in found[0].items():
        assert gradient is None or torch.equal(gradient, found[1][name]), name  # type: ignore[arg-type]


def test_a_video_does_not_depend_on_the_others() -> None:
    model, batch = tiny_textvr().eval(), make_videos(LENGTHS)
    whole = model.encode_video(batch).parts["video"]
    pieces = encode_in_chunks(model.encode_video, batch, 4).parts["video"]
    torch.testing.assert_close(pieces, whole)


def test_words_first() -> None:
    """Values pass unchanged into the captions' projection, and a quiet picture moves the result less."""
    moved = {}
    for start in ("published", "words_first"):
        model, batch = tiny_textvr(ocr_start=start).eval(), make_videos(LENGTHS)
        assert batch.frames_BTCHW is not None
        seen = VideoBatch(batch.ids, 255 - batch.frames_BTCHW, batch.mask_BT, words=batch.words)
        plain, other = (model.encode_video(each).parts["video"] for each in (batch, seen))
        moved[start] = ((other - plain).norm() / plain.norm()).item()
    assert 0 < moved["words_first"] < moved["published"] / 2
    assert model.fusion is not None
    assert torch.equal(model.fusion.fusion_proj[1].weight, model.txt_proj[1].weight)
    assert model.fusion.fusion_proj[1].weight is not model.txt_proj[1].weight
    x_SD = torch.randn(3, 96)
    assert torch.equal(model.fusion.fusion_model.value(x_SD), x_SD)


def test_both_text_models_start_alike_and_learn_apart() -> None:
    model = tiny_textvr()
    assert model.fusion is not None
    pairs = [*zip(model.text_model.parameters(), model.fusion.ocr_model.parameters(), strict=True)]
    assert all(torch.equal(caption, word) for caption, word in pairs)
    assert not any(caption is word for caption, word in pairs)


# ---- checkpoints -------------------------------------------------------------------------------------


def test_published_and_own_names_load(tmp_path: Path) -> None:
    model = tiny_textvr()
    save_file(published(model), tmp_path / "published.safetensors")
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    for name in ("published", "own"):
        torch.manual_seed(1)
        found = tiny_textvr(pretrained=str(tmp_path / f"{name}.safetensors")).state_dict()
        assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())


def test_words_first_after_frozen_in_time(tmp_path: Path) -> None:
    """The words' part starts from what the checkpoint says about captions, and a whole checkpoint stays as it is."""
    path, frozen = str(tmp_path / "frozen.safetensors"), tiny_textvr(mode="vision")
    save_file(published(frozen), path)
    torch.manual_seed(7)
    found = tiny_textvr(pretrained=path, pretrained_parts="frozen", ocr_start="words_first").state_dict()
    for name, value in frozen.text_model.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(found[f"fusion.ocr_model.{name}"], value)
    assert torch.equal(found["fusion.fusion_proj.1.weight"], frozen.state_dict()["txt_proj.1.weight"])
    quiet = frozen.state_dict()["video_model.norm.weight"] * 0.1
    torch.testing.assert_close(found["video_model.norm.weight"], quiet)
    fusion = tiny_textvr()
    save_file(published(fusion), path)
    same = tiny_textvr(pretrained=path, ocr_start="words_first").state_dict()
    assert all(torch.equal(same[name], value) for name, value in fusion.state_dict().items())


def test_a_checkpoint_without_the_words_part_is_refused_unless_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Upstream would leave the words' part random without a word."""
    path = str(tmp_path / "frozen.safetensors")
    frozen = tiny_textvr(mode="vision")
    save_file(published(frozen), path)
    with pytest.raises(UserError, match=r"holds nothing that reads words.*model\.pretrained_parts=frozen"):
        tiny_textvr(pretrained=path)
    del (state := published(frozen))["txt_proj.1.bias"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"1 missing: txt_proj\.1\.bias"):
        tiny_textvr(pretrained=str(tmp_path / "part.safetensors"), pretrained_parts="frozen")
    with caplog.at_level(logging.INFO):
        found = tiny_textvr(pretrained=path, pretrained_parts="frozen").state_dict()
    assert "start afresh" in caplog.text
    assert "fusion.query_token" in caplog.text
    assert all(torch.equal(found[key], value) for key, value in frozen.state_dict().items())
    torch.manual_seed(7)
    partly = TextVR(**_options(path, "video"))
    tower = partly.state_dict()
    assert torch.equal(tower["video_model.cls_token"], frozen.state_dict()["video_model.cls_token"])
    assert not torch.equal(tower["txt_proj.1.weight"], frozen.state_dict()["txt_proj.1.weight"])
    ocr = tiny_textvr(mode="ocr", pretrained=path, pretrained_parts="frozen").state_dict()
    assert torch.equal(ocr["txt_proj.1.weight"], frozen.state_dict()["txt_proj.1.weight"])
    # Such a model is for training: an evaluation asks for weights.
    assert "pretrained_parts=video leaves layers" in partly.starts_random
    assert "pretrained_parts=frozen" in tiny_textvr(pretrained=path, pretrained_parts="frozen").starts_random
    assert not tiny_textvr(mode="vision", pretrained=path, pretrained_parts="frozen").starts_random
    assert not tiny_textvr(mode="vision", pretrained=path).starts_random


def _options(path: str, parts: str) -> dict[str, object]:
    sizes = {"vit": "videotext-tiny", "image_size": 16, "patch_size": 8, "depth": 1, "num_frames": 2}
    return {
        "text_model": "videotext-tiny",
        "projection_dim": 24,
        "pretrained": path,
        "pretrained_parts": parts,
        **sizes,
    }


def test_a_fusion_checkpoint_without_its_words(tmp_path: Path) -> None:
    path = str(tmp_path / "fusion.safetensors")
    save_file(published(tiny_textvr()), path)
    with pytest.raises(UserError, match=r"reads words, model\.mode=vision does not.*pretrained_parts=frozen"):
        tiny_textvr(mode="vision", pretrained=path)
    tiny_textvr(mode="vision", pretrained=path, pretrained_parts="frozen")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 48}, "set model.width=96"),
        ({"ocr_words": 0}, "found model.ocr_words=0"),
        ({"mode": "offline", "max_words": 0}, "max_words=0, expected at least 1"),
        ({"mode": "offline", "pretrained": "m.pth"}, "model.mode=offline has no parameters, found model.pretrained="),
        ({"mode": "ocr", "pretrained": "m.pth", "pretrained_parts": "video"}, "model.mode=ocr has none"),
        ({"ocr_heads": 5}, "set model.ocr_heads"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        tiny_textvr(**options)


@pytest.mark.parametrize("mode", ["fusion", "vision", "ocr"])
def test_weights_in_half_precision(mode: str) -> None:
    """Of `model.bfloat16()`, for applications; embeddings, and so the loss, are in 32 bits."""
    full, half = without_dropout(tiny_textvr(mode=mode)), without_dropout(tiny_textvr(mode=mode).bfloat16())
    batch = make_pairs(LENGTHS)
    found = half.encode_video(batch.video).parts["video"]
    assert found.dtype is half.encode_text(batch.text).parts["text"].dtype is torch.float32
    torch.testing.assert_close(found, full.encode_video(batch.video).parts["video"], atol=0.1, rtol=0.1)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients(half).values())


# ---- without parameters ------------------------------------------------------------------------------

CAPTIONS = ["a sign that says bakery", "the bakery on High street", "nothing"]
SIGNS = [["bakery", "high", "street"], ["garage"], []]


def offline_batches() -> tuple[TextBatch, VideoBatch]:
    """As the data makes them with the model's tokenizers, captions cut to the longest."""
    spec = tiny_textvr(mode="offline").input_spec
    assert isinstance(spec.tokenizer, WholeWords)
    assert spec.words is not None
    tokens_BL, mask_BL = spec.tokenizer(CAPTIONS)
    text = TextBatch(tokens_BL[:, :4], mask_BL[:, :4], torch.arange(3), torch.tensor([0, 0, 1]))
    rows = [spec.words.tokenizer([*words, *[" "] * (3 - len(words))]) for words in SIGNS]
    words = WordBatch(
        torch.stack([tokens for tokens, _ in rows]),
        torch.stack([mask for _, mask in rows]),
        torch.arange(3) < torch.tensor([len(words) for words in SIGNS])[:, None],
        torch.zeros(3, 3, 12),
    )
    return text, VideoBatch(torch.arange(3), words=words)


def test_shared_words_are_the_score() -> None:
    model = tiny_textvr(mode="offline")
    text_batch, video_batch = offline_batches()
    text, video = model.encode_text(text_batch), model.encode_video(video_batch)
    assert model.similarity(text, video).tolist() == [[1, 0, 0], [3, 0, 0], [0, 0, 0]]
    result = evaluate(text, video, model.similarity, ties="average", topk=1)
    assert result.scalars("test")["test/t2v/R1"] == pytest.approx(200 / 3)
    # Pieces of any size fit together.
    halves = [model.encode_video(video_batch.map(lambda t, rows=rows: t[rows])) for rows in (slice(1), slice(1, 3))]
    assert torch.equal(type(video).cat(halves).parts["video"], video.parts["video"])


def test_nothing_to_train_and_no_lucky_ties() -> None:
    model = tiny_textvr(mode="offline")
    with pytest.raises(UserError, match=r"task=evaluate task\.random_weights=true"):
        model.configure_optimizers()
    with pytest.raises(UserError, match="ties=average"):
        model.configure_evaluation("optimistic", 10)
    model.configure_evaluation("average", 10)
    tiny_textvr().configure_evaluation("optimistic", 10)
