"""Checkpoints of Dual Encoding belong to their words and concepts; published files come back as they were."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from src.convert.dual_encoding import COUNTER, published_layout, read_vocabulary_words, to_upstream, vocabulary_pickle
from src.errors import UserError
from src.models.dual_encoding import DualEncoding
from src.tasks import convert
from src.tasks.checkpoint import load_weights, read_checkpoint
from src.tasks.exports import write_exports
from tests.tiny_dual import CONCEPTS, FRAMES, SMALL, WORDS, make

NAMES = ["dog", "run", "car", "red", "two"]
OPT: dict[str, Any] = {"space": "hybrid", "gru_pool": "mean", "measure": "cosine", "measure_2": "jaccard"}


@pytest.fixture
def vocabulary(tmp_path: Path) -> str:
    return words_file(tmp_path, "vocabulary", list(WORDS))


def words_file(folder: Path, name: str, words: list[str], key: str = "words") -> str:
    path = folder / f"{name}.json"
    path.write_text(json.dumps({key: words}))
    return str(path)


def save(model: DualEncoding, path: Path) -> Path:
    """As the trainer does."""
    content: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(content)
    torch.save(content, path)
    return path


def config(vocabulary: str, folder: Path, model: dict[str, Any] | None = None, **task: Any) -> Any:
    options = {
        "_target_": "src.models.dual_encoding.DualEncoding",
        **{"needs": ["features"], "vocabulary": vocabulary, "experts": FRAMES | CONCEPTS, "space": "hybrid"},
        **{"concate": "full", "text_kernel_sizes": [2, 3, 4], "visual_kernel_sizes": [2, 3, 4, 5], **SMALL},
        **{"gru_pool": "mean", "measure": "cosine", "measure_2": "jaccard", "padding": "upstream"},
    }
    options |= model or {}
    asked = {"source": None, "output": None, "format": "ours", "trust": False} | task
    return OmegaConf.create({"task": asked, "paths": {"run_dir": str(folder)}, "model": options})


# ---- words and concepts ---------------------------------------------------------------------------


def test_weights_of_another_vocabulary_are_refused(vocabulary: str, tmp_path: Path) -> None:
    path = save(make(vocabulary), tmp_path / "best.ckpt")
    load_weights(make(vocabulary), path)
    other = words_file(tmp_path, "other", ["dog", "runs", "red", "car", "two"])
    expected = "model.vocabulary: found 5 words with 'red' at place 2, expected the 5 .* 'car' there"
    with pytest.raises(UserError, match=expected):
        load_weights(make(other), path)
    longer = words_file(tmp_path, "longer", [*WORDS, "cat"])
    with pytest.raises(UserError, match=r"found 6 words with 'cat' at place 5, expected the 5 .* none there"):
        load_weights(make(longer), path)


def test_weights_of_other_concepts_are_refused(vocabulary: str, tmp_path: Path) -> None:
    concepts = words_file(tmp_path, "concepts", NAMES, "concepts")
    path = save(make(vocabulary, concept_list=concepts), tmp_path / "best.ckpt")
    load_weights(make(vocabulary, concept_list=concepts), path)
    mixed = words_file(tmp_path, "mixed", NAMES[::-1], "concepts")
    with pytest.raises(UserError, match=r"model.concept_list: found 5 words with 'two' at place 0, expected .* 'dog'"):
        load_weights(make(vocabulary, concept_list=mixed), path)
    unnamed = make(vocabulary, concept_list=str(tmp_path / "none.json"))
    load_weights(unnamed, path)
    assert unnamed.concept_names == tuple(NAMES), "taken over"
    cfg = OmegaConf.create({"paths": {"run_dir": str(tmp_path)}, "task": {"concepts": mixed}})
    with pytest.raises(UserError, match=r"task.concepts: found 5 words with 'two' at place 0"):
        write_exports(cfg, None, (None, None), unnamed)  # type: ignore[arg-type]
    latent = save(make(vocabulary, space="latent", concept_list=concepts), tmp_path / "latent.ckpt")
    assert list(read_checkpoint(latent)["words"]) == ["vocabulary"]


def test_a_list_of_concepts_has_to_fit(vocabulary: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"names 2 concepts, expected model.num_concepts=5"):
        make(vocabulary, concept_list=words_file(tmp_path, "two", ["a", "b"], "concepts"))
    with pytest.raises(UserError, match="holds no list of concepts"):
        make(vocabulary, concept_list=words_file(tmp_path, "bad", [1], "concepts"))  # type: ignore[list-item]
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON file"):
        make(vocabulary, concept_list=str(tmp_path / "broken.json"))


def test_weights_that_name_no_words_load(vocabulary: str, tmp_path: Path) -> None:
    saved, model = make(vocabulary).state_dict(), make(vocabulary)
    saved["words.weight"] = torch.full_like(saved["words.weight"], 0.5)
    torch.save({"state_dict": saved}, tmp_path / "old.ckpt")
    load_weights(model, tmp_path / "old.ckpt")
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_converted_weights_belong_to_their_words(vocabulary: str, tmp_path: Path) -> None:
    source, ours = published(vocabulary, tmp_path), tmp_path / "ours.safetensors"
    concepts = words_file(tmp_path, "concepts", NAMES, "concepts")
    convert.run(config(vocabulary, tmp_path, {"concept_list": concepts}, source=str(source), output=str(ours)))
    assert read_checkpoint(ours)["words"] == {"vocabulary": list(WORDS), "concepts": NAMES}
    load_weights(make(vocabulary), ours)
    other = words_file(tmp_path, "other", list(WORDS[::-1]))
    with pytest.raises(UserError, match=r"model.vocabulary: found 5 words with 'two'"):
        load_weights(make(other), ours)
    with pytest.raises(UserError, match=r"model.vocabulary: found 5 words with 'two'"):
        convert.run(config(other, tmp_path, source=str(ours), output=str(tmp_path / "x.pth.tar"), format="upstream"))
    (tmp_path / "damaged.safetensors").write_bytes(ours.read_bytes()[:50])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_weights(make(vocabulary), tmp_path / "damaged.safetensors")


# ---- published files ------------------------------------------------------------------------------


def published(vocabulary: str, folder: Path, zipped: bool = True, opt: dict[str, Any] | None = None) -> Path:
    content = {
        "epoch": 3,
        "model": published_layout(to_upstream(make(vocabulary).state_dict())),
        "best_rsum": 123.5,
        "opt": argparse.Namespace(**OPT | (opt or {}), collections_pathname={"train": "x"}, logger_name="log"),
        "Eiters": 77,
    }
    path = folder / "model_best.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def read_published(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def same_content(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert got.keys() == want.keys()
    for one, other in zip(got.pop("model"), want.pop("model"), strict=True):
        assert set(one) == set(other)
        assert all(torch.equal(one[name], other[name]) for name in other)
    assert got == want


@pytest.mark.parametrize("zipped", [True, False])
def test_a_published_file_comes_back_as_it_was(vocabulary: str, tmp_path: Path, zipped: bool) -> None:
    source, ours, back = published(vocabulary, tmp_path, zipped), tmp_path / "o.safetensors", tmp_path / "b.pth.tar"
    convert.run(config(vocabulary, tmp_path, source=str(source), output=str(ours)))
    convert.run(config(vocabulary, tmp_path, source=str(ours), output=str(back), format="upstream"))
    same_content(read_published(back), read_published(source))


@pytest.mark.parametrize("counters", [True, False])
def test_a_file_of_2019_comes_back_as_it_was(vocabulary: str, tmp_path: Path, counters: bool) -> None:
    """Two dicts; files of PyTorch 0.3 have no counters of the batches, and gain none."""
    parts = published_layout(to_upstream(make(vocabulary, space="latent").state_dict(), conference=True))
    model: list[dict[str, Tensor]] = [
        {name: value for name, value in part.items() if counters or COUNTER not in name} for part in parts
    ]
    opt = argparse.Namespace(measure="cosine", direction="t2i", n_caption=20, text_kernel_sizes=[2, 3, 4])
    content = {"epoch": 9, "model": model, "best_rsum": 1.5, "opt": opt, "Eiters": 5}
    source, ours, back = (tmp_path / name for name in ("model_best.pth.tar", "o.safetensors", "b.pth.tar"))
    torch.save(content, source, _use_new_zipfile_serialization=False)
    latent = {"space": "latent"}
    convert.run(config(vocabulary, tmp_path, latent, source=str(source), output=str(ours)))
    load_weights(make(vocabulary, space="latent"), ours)
    convert.run(config(vocabulary, tmp_path, latent, source=str(ours), output=str(back), format="conference"))
    same_content(read_published(back), content)
    # The same weights in the layout of 2021 have options of their own, and all counters.
    convert.run(config(vocabulary, tmp_path, latent, source=str(ours), output=str(back), format="upstream"))
    newer = read_published(back)
    assert len(newer["model"]) == 4
    assert newer["opt"].model == "dual_encoding_latent"
    assert sum(COUNTER in name for part in newer["model"] for name in part) == 2
    options = {"source": str(published(vocabulary, tmp_path)), "output": str(back), "format": "conference"}
    with pytest.raises(UserError, match="no name in Dual Encoding"):
        convert.run(config(vocabulary, tmp_path, **options))


def test_a_model_of_ours_in_the_layout_of_2019(vocabulary: str, tmp_path: Path) -> None:
    source, back = save(make(vocabulary, space="latent"), tmp_path / "best.ckpt"), tmp_path / "back.pth.tar"
    options = {"space": "latent", "direction": "t2v"}
    convert.run(config(vocabulary, tmp_path, options, source=str(source), output=str(back), format="conference"))
    exported = read_published(back)
    assert [len(part) > 10 for part in exported["model"]] == [True, True]
    assert (exported["opt"].model, exported["opt"].direction) == ("dual_encoding", "t2i")
    assert exported["opt"].visual_mapping_layers == [2 * 4 + 3 * 4 + 8, 7]
    assert not hasattr(exported["opt"], "tag_vocab_size")


def test_options_that_no_tensor_tells(vocabulary: str, tmp_path: Path) -> None:
    source = published(vocabulary, tmp_path, opt={"gru_pool": "max", "measure_2": "l1"})
    with pytest.raises(UserError, match=re.escape("add model.gru_pool=max model.measure_2=l1")):
        convert.run(config(vocabulary, tmp_path, source=str(source)))
    convert.run(config(vocabulary, tmp_path, {"gru_pool": "max", "measure_2": "l1"}, source=str(source)))


def test_incomplete_weights_are_named(vocabulary: str, tmp_path: Path) -> None:
    parts = published_layout(to_upstream(make(vocabulary).state_dict()))
    del parts[1]["embed.weight"]
    torch.save({"model": parts}, tmp_path / "x.pth.tar")
    with pytest.raises(UserError, match=r"the weights lack words\.weight"):
        convert.run(config(vocabulary, tmp_path, source=str(tmp_path / "x.pth.tar")))
    torch.save({"model": published_layout(to_upstream(make(vocabulary).state_dict()))[:2]}, tmp_path / "x.pth.tar")
    with pytest.raises(UserError, match="the weights lack video_spaces"):
        convert.run(config(vocabulary, tmp_path, source=str(tmp_path / "x.pth.tar")))


def test_a_vocabulary_becomes_published_ones(vocabulary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "TextData"
    convert.run(config("none", tmp_path, source=vocabulary, output=str(folder), format="upstream"))
    kind = type("Vocabulary", (), {})
    monkeypatch.setattr(sys.modules["__main__"], "Vocabulary", kind, raising=False)
    for style, special in (("bow", []), ("rnn", ["<pad>", "<start>", "<end>", "<unk>"])):
        path = folder / style / "word_vocab_5.pkl"
        assert read_vocabulary_words(path) == list(WORDS)
        loaded = pickle.loads(path.read_bytes())  # noqa: S301 own file
        assert type(loaded) is kind
        words = [*special, *WORDS]
        assert vars(loaded) == {
            **{"word2idx": {word: i for i, word in enumerate(words)}, "idx2word": dict(enumerate(words))},
            **{"idx": len(words), "text_style": style},
        }
    with pytest.raises(UserError, match=r"expected task.format=upstream and a folder"):
        convert.run(config("none", tmp_path, source=vocabulary))
    assert vocabulary_pickle([], "bow").endswith(b".")
