"""Dual Encoding: forward, losses, gradients, optimiser steps, dependence on the padding."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.batch import TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.convert.dual_encoding import from_upstream, to_upstream
from src.models.concept_space import CONCEPTS, LATENT
from src.models.dual_encoding import MEAN, TARGETS, DualEncoding
from src.models.measures import training_measure
from src.models.weights import load_strictly
from src.optim.factories import AdamFactory, RMSpropFactory
from tests.parity.cases import GRADIENT_RTOL, Case, assert_close, assert_gradients

FRAMES = "frames"
ROUNDING = 1e-7
"""Relative distance of neighbouring float32 numbers, about."""


def make_model(config: Mapping[str, Any], words: list[str] | None = None, **options: Any) -> DualEncoding:
    """The model of a golden configuration; only the number of words matters where captions are given as ids."""
    words = words or [f"word{index}" for index in range(config["bow_vocab_size"])]
    concepts = config["tag_vocab_size"]
    same = (
        *("space", "concate", "text_rnn_size", "visual_rnn_size", "text_kernel_num", "visual_kernel_num"),
        *("text_kernel_sizes", "visual_kernel_sizes", "word_dim", "gru_pool", "dropout", "measure", "measure_2"),
        *("margin", "margin_2", "max_violation", "cost_style", "direction"),
    )
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocabulary.json"
        vocabulary.write_text(json.dumps({"words": words}))
        return DualEncoding(
            **{name: config[name] for name in same}
            | {
                "vocabulary": str(vocabulary),
                "experts": {
                    FRAMES: {"dim": config["visual_feat_dim"], "temporal": True, "max_steps": 64},
                    TARGETS: {"dim": concepts},
                },
                "embed_dim": config.get("D") or config["text_mapping_layers"][1],
                "num_concepts": concepts,
            }
            | options
        )


def load_case(model: DualEncoding, case: Case, conference: bool = False) -> None:
    """Fill the model through the converter, and check the way back."""
    state = case.group("param")
    load_strictly(model, from_upstream(state), case.id)
    exported = to_upstream(model.state_dict(), conference)
    assert exported.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(exported[name], value), name


def batches(tensors: Mapping[str, Tensor]) -> tuple[TextBatch, VideoBatch]:
    ids = torch.arange(len(tensors["caption_ids"]))
    text = TextBatch(tensors["caption_ids"], tensors["caption_mask"].bool(), ids, ids)
    features = {FRAMES: tensors["frames"], FRAMES + MEAN: tensors["frames_mean"]}
    if "tags" in tensors:
        features[TARGETS] = tensors["tags"]
    return text, VideoBatch(ids, features=features, feature_masks={FRAMES: tensors["frames_mask"].bool()})


def with_targets(video: VideoEmbedding, tensors: Mapping[str, Tensor]) -> VideoEmbedding:
    """The targets, which the model adds itself in training only."""
    return replace(video, parts={**video.parts, "targets": tensors["tags"]}) if "tags" in tensors else video


def check_forward(case: Case) -> None:
    conference = "reference_override" in case.meta
    model = make_model(case.meta["config"] | ({"space": "latent"} if conference else {}))
    load_case(model, case, conference)
    model.eval()
    inputs, wanted = case.group("in"), case.group("out")
    text_batch, video_batch = batches(inputs)
    text, video = model.encode_text(text_batch), model.encode_video(video_batch)
    losses = model.loss(text, with_targets(video, inputs))
    losses["loss"].backward()
    assert_gradients(to_upstream(dict(model.named_parameters()), conference), case.group("grad"))
    with torch.no_grad():
        values = {"loss": losses["loss"]} | spaces(model, text, video) | intermediate(model, text_batch, video_batch)
        if CONCEPTS in text.parts:
            values |= {"loss_latent": losses["latent"], "loss_concept": losses["concepts"]}
            values |= {"err_combined_w0.6": -model.scorer(text, video)(text, video)}
            for side, p_BK in (("video", video.parts[CONCEPTS]), ("text", text.parts[CONCEPTS])):
                values[f"loss_bce_{side}"] = nn.functional.binary_cross_entropy(p_BK, inputs["tags"])
            tags = len(text) * (values["loss_bce_video"] + values["loss_bce_text"])
            assert_close(losses["tags"], tags, name="tag loss")
    unchecked = wanted.keys() - values.keys()
    assert not unchecked, f"outputs that nothing checks: {sorted(unchecked)}"
    for name, expected in wanted.items():
        assert_close(values[name], expected, name=f"out/{name}")


def spaces(model: DualEncoding, text: TextEmbedding, video: VideoEmbedding) -> dict[str, Tensor]:
    """Embeddings, similarities of the loss, and errors of the evaluation, by space."""
    values = {}
    for space in model.spaces:
        text_BD, video_BD = text.parts[space.part], video.parts[space.part]
        name = {LATENT: "latent", CONCEPTS: "concept"}[space.part]
        s_TV = training_measure(space.measure)(text_BD, video_BD)
        values |= {f"text_{name}": text_BD, f"video_{name}": video_BD}
        values |= {f"sim_{name}_video_x_text": s_TV.T, f"err_{name}_text_x_video": -space.score(text, video)}
    return values


def intermediate(model: DualEncoding, text: TextBatch, video: VideoBatch) -> dict[str, Tensor]:
    """States of the GRUs and what the encoders hand to the spaces."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, args: found.update({name: args[0]})

    hooks = [
        side.register_forward_pre_hook(keep(name))
        for name, side in (("text_features", model.text_spaces), ("video_features", model.video_spaces))
    ]
    model.encode_text(text)
    model.encode_video(video)
    for hook in hooks:
        hook.remove()
    frames_BTD = video.features[FRAMES]
    packed = nn.utils.rnn.pack_padded_sequence(
        model.words(text.tokens_BL), text.mask_BL.sum(1), batch_first=True, enforce_sorted=True
    )
    found["text_gru_packed"] = model.text_encoder.gru(packed)[0].data
    found["video_gru"] = model.video_encoder.gru(frames_BTD)[0]
    return found


def train_steps(case: Case, seed: int) -> dict[str, Tensor]:
    """Everything that the case holds of its two steps; the start is moved by float32's rounding, as `seed` says."""
    config = case.meta["config"]
    factory = {"adam": AdamFactory, "rmsprop": RMSpropFactory}[config["optimizer"]](lr=config["learning_rate"])
    model = make_model(config).train()
    load_strictly(model, from_upstream(case.group("param")), case.id)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + ROUNDING * torch.randn(parameter.shape, generator=generator))
    optimizer = factory.build(list(model.named_parameters()), total_steps=2)
    found = {}
    for step in range(2):
        text, video = batches(case.group(f"in/step{step}"))
        optimizer.zero_grad()
        loss = model.loss(model.encode_text(text), model.encode_video(video))["loss"]
        loss.backward()
        if config["grad_clip"] > 0:
            nn.utils.clip_grad_norm_(model.parameters(), config["grad_clip"])
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found[f"out/step{step}/loss"] = loss.detach()
        found[f"out/step{step}/clipped_grad_norm"] = nn.utils.get_total_norm(gradients.values())
        found |= {f"grad/step{step}/{name}": gradient for name, gradient in to_upstream(gradients).items()}
        optimizer.step()
    return found | {f"out/after/{name}": value for name, value in to_upstream(model.state_dict()).items()}


def check_train_steps(case: Case) -> None:
    """Two optimiser steps, compared as far as they do not hang on rounding.

    Batch normalisation removes a shift that all items share, so the gradient of every bias before it is zero but for
    rounding, which Adam and RMSprop divide by its own size: these biases move by whole steps in a direction that
    rounding decides. So the steps are run from several starts that differ by as much as float32 rounds; where these
    runs differ, the golden value has to lie among them, everywhere else it has to be met to the usual tolerance.
    """
    runs = [train_steps(case, seed) for seed in range(24)]
    wanted = {n: v for n, v in case.tensors.items() if n.startswith(("out/", "grad/")) and v.is_floating_point()}
    assert {n for n in runs[0] if n.startswith("out/") and runs[0][n].is_floating_point()} == {
        n for n in wanted if n.startswith("out/")
    }
    largest = max(float(value.abs().max()) for name, value in wanted.items() if name.startswith("grad/"))
    entries = decided = 0
    for name, expected in wanted.items():
        found = torch.stack([run[name] for run in runs]).double()
        least, greatest = found.amin(0), found.amax(0)
        scale = max(float(expected.abs().max()), 1e-2 * largest if name.startswith("grad/") else 0.0)
        off = ((least + greatest) / 2 - expected).abs() - (greatest - least)
        assert float(off.max()) <= GRADIENT_RTOL * scale, f"{name}: off by {float(off.max()) / scale:.2e}"
        entries += expected.numel()
        decided += int((greatest - least < GRADIENT_RTOL * scale).sum())
        if "step0" in name:
            assert_close(found[0], expected, GRADIENT_RTOL, name, floor=scale)
    assert decided > 0.7 * entries, f"only {decided} of {entries} entries do not hang on rounding"
    for name, counter in case.group("out/after").items():
        if not counter.is_floating_point():
            assert torch.equal(runs[0][f"out/after/{name}"], counter), name


def check_padding(case: Case) -> None:
    """Upstream's embeddings depend on the batch; masked ones are those of upstream one by one, in any batch."""
    inputs, wanted = case.group("in"), case.group("out")
    text, video = batches(inputs)
    for padding, kinds in (("upstream", ("batched", "one_by_one")), ("masked", ("one_by_one", "one_by_one"))):
        model = make_model(case.meta["config"], padding=padding).eval()
        load_case(model, case)
        with torch.no_grad():
            alone = [torch.tensor([index]) for index in range(len(text))]
            for kind, groups in zip(kinds, ([torch.arange(len(text))], alone), strict=True):
                texts = [model.encode_text(text.map(lambda x, g=group: x[g])).parts[LATENT] for group in groups]
                videos = [model.encode_video(video.map(lambda x, g=group: x[g])).parts[LATENT] for group in groups]
                assert_close(torch.cat(texts), wanted[f"text_{kind}"], name=f"{padding} text {kind}")
                assert_close(torch.cat(videos), wanted[f"video_{kind}"], name=f"{padding} video {kind}")


CHECKERS = {
    "dual_encoding": {
        "hybrid_*": check_forward,
        "latent_*": check_forward,
        "conference2019_full": check_forward,
        "train_steps_*": check_train_steps,
        "padding_dependence": check_padding,
    }
}
