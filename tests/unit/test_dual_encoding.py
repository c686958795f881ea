"""Dual Encoding: options, batches, padding, word vectors, converter."""

from __future__ import annotations

import argparse
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor, nn

from src.batch import TextBatch, VideoBatch
from src.convert.dual_encoding import (
    from_upstream,
    options_of,
    published_layout,
    read_vocabulary_words,
    to_upstream,
)
from src.errors import UserError
from src.models.dual_encoding import MEAN, DualEncoding
from src.models.recurrent import Layout, RecurrentEncoder
from src.models.vocabulary import SPECIAL
from src.models.weights import read_state_dict
from src.tasks import convert
from tests.tiny_dual import CONCEPTS, FRAMES, SMALL, WORDS, make, texts, videos


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.json"
    path.write_text(json.dumps({"words": WORDS}))
    return str(path)


def encoder(packed: bool, masked: bool, pool: Any) -> RecurrentEncoder:
    torch.manual_seed(0)
    made = RecurrentEncoder(5, 3, 4, (1, 2, 4), pool=pool, dropout=0.0, packed=packed, masked=masked)
    return made.double()


def by_the_library(made: RecurrentEncoder, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
    """The same encoder in plain calls of torch, one item at a time where it is masked or packed."""
    rows = []
    for x_TD, length in zip(x_BTD, lengths_B.tolist(), strict=True):
        steps = length if made.packed else len(x_TD)
        states_TH = made.gru(x_TD[None, :steps])[0][0, :length]
        if not made.masked:
            states_TH = nn.functional.pad(states_TH, (0, 0, 0, len(x_TD) - length))
        mean = made.pool == "mean"
        pooled = [states_TH.sum(0) / length if mean else states_TH.amax(0)]
        for conv in made.windows:
            k = conv.weight.shape[2]
            out = nn.functional.conv2d(states_TH[None, None], conv.weight, conv.bias, padding=(k - 1, 0))
            pooled.append(out.relu().amax((0, 2, 3)))
        rows.append(torch.cat(pooled))
    return torch.stack(rows)


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize(("packed", "masked"), [(False, False), (True, False), (True, True)])
def test_encoder_equals_plain_calls(packed: bool, masked: bool, pool: str) -> None:
    made = encoder(packed, masked, pool)
    lengths_B = torch.tensor([4, 1, 7, 2, 7])
    x_BTD = torch.randn(5, 7, 5, dtype=torch.float64)
    x_BTD = (x_BTD * (torch.arange(7) < lengths_B[:, None])[..., None]).requires_grad_()
    weights = torch.randn(5, made.output_dim, dtype=torch.float64)
    results = []
    for run in (made(x_BTD, lengths_B), by_the_library(made, x_BTD, lengths_B)):
        made.zero_grad()
        x_BTD.grad = None
        (run * weights).sum().backward()
        gradients = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
        assert x_BTD.grad is not None
        results.append(({"out": run.detach(), "x": x_BTD.grad.clone()}) | gradients)
    ours, plain = results
    assert ours.keys() == plain.keys() == {"out", "x", *dict(made.named_parameters())}
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_library_calls() -> None:
    """What accelerators run instead."""
    made = encoder(True, True, "mean")
    layout = Layout(torch.tensor([4, 1, 7]))
    x_BTD = layout.unpack(layout.pack(torch.randn(3, 7, 5, dtype=torch.float64)))
    states_BTH = made._states(x_BTD, layout, None)
    torch.testing.assert_close(made._library_states(x_BTD, layout), states_BTH)
    padded = torch.cat([made._convolved_padded(states_BTH, layout, conv) for conv in made._convolutions()], 1)
    torch.testing.assert_close(padded, made._convolved(states_BTH, layout))


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), data=st.data())
@settings(max_examples=30, deadline=None)
def test_masked_embeddings_do_not_depend_on_the_batch(vocabulary: str, lengths: list[int], data: st.DataObject) -> None:
    model = make(vocabulary, padding="masked").eval()
    video = videos(lengths)
    text = texts(model, [" ".join(WORDS[i % 5] for i in range(length)) for length in lengths])
    some = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8), label="another batch")
    extra = data.draw(st.integers(0, 3), label="more padding")
    rows = torch.tensor(some)

    def pad(x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, 0, 0, extra)) if x.ndim == 3 else nn.functional.pad(x, (0, extra))

    other = VideoBatch(
        rows,
        features={n: pad(x[rows]) if x.ndim == 3 else x[rows] for n, x in video.features.items()},
        feature_masks={n: pad(mask[rows]) for n, mask in video.feature_masks.items()},
    )
    other_text = TextBatch(pad(text.tokens_BL[rows]), pad(text.mask_BL[rows]), rows, rows)
    with torch.no_grad():
        for part in ("latent", "concepts"):
            whole = model.encode_video(video).parts[part][rows]
            torch.testing.assert_close(model.encode_video(other).parts[part], whole, rtol=1e-5, atol=1e-6)
            whole = model.encode_text(text).parts[part][rows]
            torch.testing.assert_close(model.encode_text(other_text).parts[part], whole, rtol=1e-5, atol=1e-6)


def test_upstream_embeddings_depend_on_the_longest_of_the_batch_only(vocabulary: str) -> None:
    model = make(vocabulary).eval()
    video = videos([3, 9])
    alone = video.map(lambda x: x[:1])
    with torch.no_grad():
        short = model.encode_video(alone).parts["latent"]
        assert (short - model.encode_video(video).parts["latent"][:1]).abs().max() > 1e-3
        # Columns behind the longest item are no padding that the reference would see.
        cut = VideoBatch(
            alone.ids,
            features={n: x[:, :3] if x.ndim == 3 else x for n, x in alone.features.items()},
            feature_masks={n: mask[:, :3] for n, mask in alone.feature_masks.items()},
        )
        torch.testing.assert_close(model.encode_video(cut).parts["latent"], short)


@pytest.mark.parametrize("padding", ["upstream", "masked"])
@pytest.mark.parametrize("space", ["hybrid", "latent", "concept"])
@pytest.mark.parametrize("concate", ["full", "reduced"])
def test_every_variant_trains(vocabulary: str, padding: str, space: str, concate: str) -> None:
    model = make(vocabulary, padding=padding, space=space, concate=concate, gru_pool="max").train()
    text = model.encode_text(texts(model, ["two dogs", "a red car runs", "dog"]))
    losses = model.loss(text, model.encode_video(videos([2, 5, 1])))
    parts = {"hybrid": {"latent", "concepts", "tags"}, "latent": {"latent"}, "concept": {"concepts", "tags"}}[space]
    assert losses.keys() == {"loss"} | parts
    torch.testing.assert_close(losses["loss"], sum(losses[part] for part in parts))
    losses["loss"].backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    scores = model.similarity(text, model.eval().encode_video(videos([2, 5, 1, 4])))
    assert scores.shape == (3, 4)


def test_input_spec(vocabulary: str) -> None:
    two = {"a": {"dim": 8, "temporal": True, "max_steps": 64, "store": "shared", "path": None}, **FRAMES, **CONCEPTS}
    specs = {spec.name: spec for spec in make(vocabulary, two).input_spec.experts}
    assert list(specs) == ["a", "frames", "a.mean", "frames.mean", "concepts"]
    assert specs["a.mean"].store == "shared"
    assert specs["frames.mean"].store == "frames"
    assert not specs["frames.mean"].temporal
    assert specs["frames"].max_steps == 64
    assert [spec.name for spec in make(vocabulary, two, space="latent").input_spec.experts][-1] == "frames.mean"


def test_experts_side_by_side(vocabulary: str) -> None:
    """Two experts of one video count as one with both vectors; a lacking one is zeros."""
    both, one = videos([4, 2], dim=8), videos([4, 2], dim=8, seed=1)
    features = {"a": both.features["frames"], "b": one.features["frames"]}
    features |= {f"{name}{MEAN}": batch.features["frames" + MEAN] for name, batch in (("a", both), ("b", one))}
    masks = dict.fromkeys(("a", "b"), both.feature_masks["frames"])
    experts = dict.fromkeys(("a", "b"), FRAMES["frames"])
    model = make(vocabulary, experts, space="latent").eval()
    wide = make(vocabulary, {"frames": {"dim": 16, "temporal": True}}, space="latent").eval()
    joined = {name: torch.cat([features[f"a{end}"], features[f"b{end}"]], -1) for name, end in (("frames", ""),)}
    joined["frames" + MEAN] = torch.cat([features["a" + MEAN], features["b" + MEAN]], -1)
    with torch.no_grad():
        got = model.encode_video(VideoBatch(both.ids, features=features, feature_masks=masks))
        want = wide.encode_video(VideoBatch(both.ids, features=joined, feature_masks={"frames": masks["a"]}))
        torch.testing.assert_close(got.parts["latent"], want.parts["latent"])
        # Video 1 lacks b: b's columns are zeros, and a still has its frames.
        features["b"], features["b" + MEAN] = features["b"].clone(), features["b" + MEAN].clone()
        features["b"][1], features["b" + MEAN][1] = 0, 0
        masks["b"] = masks["b"].clone()
        masks["b"][1] = False
        present_BE = torch.tensor([[True, True, True, True], [True, False, True, False]])
        batch = VideoBatch(both.ids, features=features, feature_masks=masks, present_BE=present_BE)
        names = list(features)
        assert [names.index(name) for name in ("a", "b")] == [0, 1]
        frames_BTD, lengths_B, _ = model._frames(batch)
        assert lengths_B.tolist() == [4, 2]
        assert frames_BTD[1, :2, :8].abs().min() > 0


@pytest.mark.parametrize("padding", ["upstream", "masked"])
def test_lower_precision_changes_little(vocabulary: str, padding: str) -> None:
    model = make(vocabulary, padding=padding, dropout=0.0).train()
    text, video = texts(model, ["two dogs", "a red car runs", "dog"]), videos([2, 5, 1])
    exact = model.loss(model.encode_text(text), model.encode_video(video))["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = (model.encode_text(text), model.encode_video(video))
    loss = model.loss(*rounded)["loss"]
    loss.backward()
    torch.testing.assert_close(loss, exact, rtol=1e-3, atol=0)


def test_video_without_frames_has_an_embedding(vocabulary: str) -> None:
    model = make(vocabulary, padding="masked").eval()
    assert model.encode_video(videos([3, 0])).parts["latent"].isfinite().all()


def test_word_vectors(vocabulary: str, tmp_path: Path) -> None:
    vectors = np.full((5, 6), 9.0, dtype=np.float32)
    found = np.array([True, False, True, True, True])
    np.save(tmp_path / "vocabulary.npy", vectors)
    np.save(tmp_path / "vocabulary_found.npy", found)
    weight = make(vocabulary, word_vectors=str(tmp_path / "vocabulary.npy")).words.weight
    given = torch.cat([torch.zeros(len(SPECIAL), dtype=torch.bool), torch.from_numpy(found)])
    assert (weight[given] == 9).all()
    assert 0.1 < weight[~given].abs().max() <= 1
    assert make(vocabulary).words.weight.abs().max() <= 0.1
    with pytest.raises(UserError, match="shape"):
        make(vocabulary, word_dim=4, word_vectors=str(tmp_path / "vocabulary.npy"))
    with pytest.raises(UserError, match=r"no \.npy file"):
        make(vocabulary, word_vectors=str(tmp_path))


def test_mistakes_are_said(vocabulary: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no vocabulary at"):
        make(str(tmp_path / "none.json"))
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(UserError, match="holds no list"):
        make(str(tmp_path / "other.json"))
    with pytest.raises(UserError, match="experts has none"):
        make(vocabulary, CONCEPTS)
    with pytest.raises(UserError, match="temporal"):
        make(vocabulary, {"frames": {"dim": 8}})
    with pytest.raises(UserError, match=re.escape("expected model.num_concepts=5")):
        make(vocabulary, FRAMES | {"concepts": {"dim": 6}})
    model = make(vocabulary, FRAMES).train()
    text = model.encode_text(texts(model, ["dog", "car"]))
    with pytest.raises(UserError, match="concept space is trained on"):
        model.loss(text, model.encode_video(videos([2, 3])))
    with pytest.raises(UserError, match="1 pair"):
        model.encode_text(texts(model, ["dog"]))


# ---- published files ------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["hybrid", "latent"])
@pytest.mark.parametrize("concate", ["full", "reduced"])
def test_names_both_ways_and_options(vocabulary: str, space: str, concate: str) -> None:
    model = make(vocabulary, space=space, concate=concate)
    state = model.state_dict()
    names = to_upstream(state)
    lists = published_layout(names)
    assert len(lists) == 4
    numbered = {f"{index}.{name}": value for index, part in enumerate(lists) for name, value in part.items()}
    for upstream in (names, numbered):
        back = from_upstream(upstream)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], state[name]) for name in state)
    told = options_of(state)
    sizes = SMALL if space == "hybrid" else {k: v for k, v in SMALL.items() if k != "num_concepts"}
    kernels = {"text_kernel_sizes": [2, 3, 4], "visual_kernel_sizes": [2, 3, 4, 5]}
    assert told == sizes | kernels | {"space": space, "concate": concate, "words": 5, "frame_dim": 8}


def test_published_sizes(tmp_path: Path) -> None:
    """The published model on MSR-VTT, with 7,807 words."""
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps({"words": [f"w{index}" for index in range(7807)]}))
    with torch.device("meta"):
        experts = {"frames": {"dim": 4096, "temporal": True}, "concepts": {"dim": 512}}
        model = DualEncoding(vocabulary=str(path), experts=experts)
    assert sum(p.numel() for p in model.parameters()) == 69_168_604
    shapes = {name: tuple(value.shape) for name, value in to_upstream(model.state_dict()).items()}
    assert shapes["vid_encoding.convs1.3.weight"] == (512, 1, 5, 1024)
    assert shapes["vid_mapping.mapping.fc1.weight"] == (1536, 7168)
    assert shapes["text_mapping.tag_fc.weight"] == (512, 7807 + 2560)


def test_conference_layout(vocabulary: str) -> None:
    """Two dicts, and no batch counters in files of PyTorch 0.3."""
    state = make(vocabulary, space="latent").state_dict()
    lists = published_layout(to_upstream(state, conference=True))
    assert len(lists) == 2
    assert "visual_mapping.fc1.weight" in lists[0]
    old = {
        f"{index}.{name}": value
        for index, part in enumerate(lists)
        for name, value in part.items()
        if "num_batches" not in name
    }
    back = from_upstream(old)
    assert back.keys() == state.keys()
    with pytest.raises(UserError, match="no name in Dual Encoding"):
        to_upstream(make(vocabulary).state_dict(), conference=True)
    with pytest.raises(UserError, match="do not belong"):
        from_upstream(old | {"0.other.weight": torch.zeros(1)})


def config(vocabulary: str, folder: Path, **task: Any) -> Any:
    model = {
        "_target_": "src.models.dual_encoding.DualEncoding",
        **{"needs": ["features"], "vocabulary": vocabulary, "experts": FRAMES | CONCEPTS, "space": "hybrid"},
        **{"concate": "full", "text_kernel_sizes": [2, 3, 4], "visual_kernel_sizes": [2, 3, 4, 5], **SMALL},
    }
    options = {"source": None, "output": None, "format": "ours", "trust": False} | task
    return OmegaConf.create({"task": options, "paths": {"run_dir": str(folder)}, "model": model})


def test_a_model_of_ours_becomes_a_published_file(vocabulary: str, tmp_path: Path) -> None:
    state = make(vocabulary).state_dict()
    source, back = tmp_path / "best.ckpt", tmp_path / "back.pth.tar"
    torch.save({"state_dict": state}, source)
    convert.run(config(vocabulary, tmp_path, source=str(source), output=str(back), format="upstream"))
    with torch.serialization.safe_globals([argparse.Namespace]):
        exported = torch.load(back, weights_only=True)
    for got, want in zip(exported["model"], published_layout(to_upstream(state)), strict=True):
        assert got.keys() == want.keys()
        assert all(torch.equal(got[name], want[name]) for name in want)
    assert exported["opt"].visual_feat_dim == 8
    assert exported["opt"].model == "dual_encoding_hybrid"
    assert not hasattr(exported["opt"], "vocabulary"), "no paths of this machine"
    assert exported["opt"].text_mapping_layers == [2 * 3 + 3 * 2 + 5, 7]
    assert {"epoch", "model", "best_rsum", "opt", "Eiters"} == exported.keys()


def test_convert_names_the_options(vocabulary: str, tmp_path: Path) -> None:
    source = tmp_path / "model_best.pth.tar"
    state = make(vocabulary, space="latent", text_rnn_size=9).state_dict()
    torch.save({"model": published_layout(to_upstream(state))}, source)
    with pytest.raises(UserError, match=re.escape("add model.space=latent model.text_rnn_size=9")):
        convert.run(config(vocabulary, tmp_path, source=str(source)))
    with pytest.raises(UserError, match=r"ends in \.safetensors"):
        convert.run(config(vocabulary, tmp_path, source=str(source), output=str(tmp_path / "x.pth.tar")))


class _Code:
    def __reduce__(self) -> Any:
        return (print, ("ran",))


def test_files_that_could_run_code_are_refused(
    vocabulary: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "model_best.pth.tar"
    torch.save({"model": published_layout(to_upstream(make(vocabulary).state_dict())), "opt": _Code()}, source)
    with pytest.raises(UserError, match=r"task\.trust=true"):
        read_state_dict(source)
    assert "ran" not in capsys.readouterr().out
    assert len(read_state_dict(source, trust=True)) > 40


def test_strings_of_python_2(vocabulary: str, tmp_path: Path) -> None:
    """Legacy files that Python 2 wrote hold byte strings, of which some are not UTF-8."""
    source = tmp_path / "model_best.pth.tar"
    content = {"model": [{"rnn.weight": torch.ones(2)}], "opt": {"name": "caf#"}}
    torch.save(content, source, pickle_protocol=2, _use_new_zipfile_serialization=False)
    data = re.sub(rb"X([\x01-\x7f])\x00\x00\x00", rb"U\1", source.read_bytes()).replace(b"caf#", b"caf\xe9")
    source.write_bytes(data)
    assert torch.equal(read_state_dict(source, trust=True)["0.rnn.weight"], torch.ones(2))


class Vocabulary:
    """As the reference's class: pickled by name, with these attributes."""

    def __init__(self, words: list[str]) -> None:
        self.word2idx = {word: index for index, word in enumerate(words)}
        self.idx2word = dict(enumerate(words))
        self.idx = len(words)
        self.text_style = "bow"


def vocabulary_pickle(path: Path, content: Any, protocol: int = 2) -> Path:
    raw = pickle.dumps(content, protocol=protocol)
    path.write_bytes(raw.replace(f"c{__name__}\n".encode(), b"c__main__\n"))
    return path


@pytest.mark.parametrize("special", [(), SPECIAL])
def test_vocabulary_pickle(tmp_path: Path, special: tuple[str, ...]) -> None:
    path = vocabulary_pickle(tmp_path / "word_vocab_5.pkl", Vocabulary([*special, *WORDS]))
    assert read_vocabulary_words(path) == list(WORDS)
    convert.run(config("none", tmp_path, source=str(path), output=str(tmp_path / "vocabulary.json")))
    assert make(str(tmp_path / "vocabulary.json")).tokenizer.words == WORDS


def test_vocabulary_pickle_that_is_none(tmp_path: Path) -> None:
    bad = Vocabulary(list(WORDS))
    bad.text_style = _Code()
    path = vocabulary_pickle(tmp_path / "code.pkl", bad)
    with pytest.raises(UserError, match="asks for"):
        read_vocabulary_words(path)
    gaps = Vocabulary(list(WORDS))
    gaps.word2idx["more"] = 9
    with pytest.raises(UserError, match="does not number"):
        read_vocabulary_words(vocabulary_pickle(tmp_path / "gaps.pkl", gaps))
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(UserError, match="no vocabulary"):
        read_vocabulary_words(path)
