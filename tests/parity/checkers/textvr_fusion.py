"""TextVR: words and picture in one attention, words alone, and the count of shared words."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from src.batch import TextBatch, VideoBatch, WordBatch
from src.models.textvr import Mode, TextVR
from src.models.weights import load_strictly
from src.models.word_overlap import WORDS_OF_VIDEO, WholeWords, shared_words
from tests.parity.cases import Case, assert_close, assert_gradients
from tests.parity.checkers.textvr_models import text_folder

MODES: dict[str, Mode] = {"textvr_fusion": "fusion", "textvr_ocr": "ocr"}


def model_of(case: Case) -> TextVR:
    """The case's model with its weights; without dropout, as the golden values were computed."""
    sizes = case.meta["config"]
    with tempfile.TemporaryDirectory() as folder:
        model = TextVR(
            text_model=text_folder(Path(folder), sizes, "distilbert"),
            mode=MODES[case.name],
            image_size=sizes["img"],
            patch_size=sizes["patch"],
            width=sizes["D"],
            depth=sizes["depth"],
            heads=sizes["heads"],
            num_frames=sizes["frames"],
            max_words=sizes["L"],
            ocr_pieces=sizes["OL"],
            projection_dim=sizes["P"],
            ocr_words_per_pass=5,
        )
    load_strictly(model, model.own_names(case.group("param")), case.id)
    return model.eval()


def batches(case: Case) -> tuple[TextBatch, VideoBatch]:
    tensors = case.group("in")
    count, slots, _ = tensors["ocr_input_ids"].shape
    ids = torch.arange(count)
    text = TextBatch(tensors["input_ids"], tensors["attention_mask"].bool(), ids=ids, video_ids=ids)
    words = WordBatch(
        tensors["ocr_input_ids"],
        tensors["ocr_attention_mask"].bool(),
        words_BW=torch.arange(slots) < tensors["ocr_valid_l"][:, None],
        positions_BWP=tensors.get("ocr_pos", torch.zeros(count, slots, 12)),
    )
    video = tensors.get("video")
    mask_BT = None if video is None else torch.ones(video.shape[:2], dtype=torch.bool)
    return text, VideoBatch(ids=ids, frames_BTCHW=video, mask_BT=mask_BT, words=words)


def steps_of(model: TextVR, batch: VideoBatch) -> dict[str, Tensor]:
    """What upstream also returns, or computes on the way, under the names of the golden file."""
    if model.video_model is None:
        return {}
    assert model.fusion is not None
    assert model.vid_proj is not None
    assert batch.words is not None
    features_BV = model.video_features(batch)
    words_BWD = model.fusion.encode_words(batch.words)
    lengths = batch.words.words_BW.sum(dim=1).clamp(min=1).tolist()
    steps = {f"ocr_feats_item{row}": words_BWD[row, :length] for row, length in enumerate(lengths)}
    return steps | {"video_feats": features_BV, "video_embed_unused": model.vid_proj(features_BV)}


def check_network(case: Case) -> None:
    model = model_of(case)
    text_batch, video_batch = batches(case)
    text, video = model.encode_text(text_batch), model.encode_video(video_batch)
    found = steps_of(model, video_batch)
    if "video_embed_unused" in found:
        picture = {"video": found["video_embed_unused"]}
        found["sim_text_videoembed"] = model.similarity(text, type(video)(ids=video.ids, parts=picture))
    loss = model.loss(text, video)["loss"]
    name = "fusion_embed" if model.video_model is not None else "ocr_embed"
    found |= {
        "text_embed": text.parts["text"],
        name: video.parts["video"],
        "sim": model.similarity(text, video),
        "loss": loss,
    }
    outputs = case.group("out")
    assert outputs.keys() == found.keys()
    for key, expected in outputs.items():
        assert_close(found[key], expected, name=key)
    loss.backward()
    parameters = dict(model.named_parameters())
    assert_gradients(parameters, model.own_names(case.group("grad")))
    assert sorted(name for name, p in parameters.items() if p.grad is None) == sorted(
        case.meta["params_without_gradient"]
    )


def best_words(words: Sequence[str], scores: Sequence[str]) -> str:
    """The 20 best places; upstream compares scores as text, and repeated words take places."""
    order = sorted(range(len(words)), key=lambda place: scores[place], reverse=True)
    return " ".join(words[place] for place in order[:WORDS_OF_VIDEO])


def check_overlap(case: Case) -> None:
    """Upstream's rows are videos."""
    tokenizer = WholeWords(64)
    text_TL, _ = tokenizer(case.meta["captions"])
    video_VK, _ = tokenizer([best_words(video["gt_ocr"], video["gt_ocr_score"]) for video in case.meta["ocr"]])
    assert shared_words(text_TL, video_VK).T.tolist() == case.meta["sims"]


CHECKERS = {"textvr": {"textvr_fusion": check_network, "textvr_ocr": check_network, "offline_match": check_overlap}}
