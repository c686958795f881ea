"""DistilBERT or BERT as encoder of captions, and of single words, through transformers.

Parameters have the names that transformers gives them, without a prefix of ours: those of published checkpoints.

Shape suffixes: B items, L tokens, D width.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.batch import Tokenizer
from src.errors import UserError
from src.models.hf_folder import HfFolder, transformers_module
from src.models.hf_tokenizer import HfTokenizer
from src.models.tokenizer import ClipTokenizer

log = logging.getLogger(__name__)

TINY = "videotext-tiny"
TINY_SIZES = {"vocab_size": 4096, "max_position_embeddings": 77, "dim": 96, "n_layers": 2, "n_heads": 3}
PACKAGE = "package:"
SHORTEST = 3  # tokens: the special ones, and one between them


class BertText(nn.Module):
    """One vector per sequence: DistilBERT's state of the first token, or what BERT's pooler makes of it.

    Args:
        model: a transformers folder of one of the two (config.json, vocabulary, safetensors);
            `package:<module>/<folder>` for one that an installed package carries; a name on the Hugging Face hub such
            as `distilbert-base-uncased`; or `videotext-tiny`, a small random DistilBERT with CLIP's vocabulary.
        weights: read those of the folder, where it has some; False = random, because a checkpoint follows.
        pooled: False: BERT's state of the first token, too; its pooler stays for checkpoints, and is not trained.

    Raises:
        UserError: there is no such folder, the hub cannot be reached, it holds another kind of model, or its weights
            do not fit.

    Source: m-bain/frozen-in-time model/model.py compute_text @ e1f13e1; words (`pooled=False`) callsys/TextVR
        model/model.py compute_ocr @ ae16786.
    """

    def __init__(self, model: str, *, weights: bool = True, pooled: bool = True) -> None:
        super().__init__()
        self.name = model
        self.folder = None if self.name == TINY else HfFolder.find(_place(model), False, "model.text_model")
        network = _network(self.folder, weights and not torch.empty(0).is_meta)
        has_pooler = network.config.model_type == "bert"
        self.pools = has_pooler and pooled
        if has_pooler and not pooled:
            network.pooler.requires_grad_(False)  # a parameter without gradient would stall DDP
        # Its children are ours, so that names are the published ones; the tuple hides it from nn.Module.
        for name, child in network.named_children():
            self.add_module(name, child)
        self._network = (network,)

    @property
    def width(self) -> int:
        """D."""
        return int(self._network[0].config.hidden_size)

    @property
    def positions(self) -> int:
        """Most tokens of a sequence."""
        return int(self._network[0].config.max_position_embeddings)

    def tokenizer(self, max_words: int, option: str = "model.max_words") -> Tokenizer:
        """The tokeniser that belongs to the model, padding and cutting to `max_words` tokens.

        Args:
            max_words: special tokens included.
            option: what the user sets it with, for messages.

        Raises:
            UserError: nothing fits between the special tokens, the model has fewer positions, or the folder has no
                vocabulary.
        """
        if not SHORTEST <= max_words <= self.positions:
            raise UserError(
                f"{option}={max_words}, expected {SHORTEST} (start, one token, end) to {self.positions} (the positions "
                f"of {self.name}); choose a number in between"
            )
        if self.folder is None:
            return ClipTokenizer(max_words, TINY_SIZES["vocab_size"])
        if not self.folder.tokenizer_files:
            raise UserError(
                f"{self.folder.path} has no vocabulary (tokenizer.json or vocab.txt); copy the folder again with it"
            )
        return HfTokenizer(str(self.folder.path), max_words)

    def train(self, mode: bool = True) -> BertText:
        self._network[0].train(mode)
        return super().train(mode)

    def forward(self, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """int64 token ids and bool mask (True on real tokens) to (B, D), not normalised."""
        found: Any = self._network[0](input_ids=tokens_BL, attention_mask=mask_BL.long())
        return found.pooler_output if self.pools else found.last_hidden_state[:, 0]


def _place(model: str) -> str:
    """What an installed package carries as a path; everything else as it is."""
    if not model.startswith(PACKAGE):
        return model
    module, _, inside = model.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the package {module.replace('_', '-')} that model.text_model={model} names is not installed; "
            "pip install 'videotext[text]', or give a folder"
        )
    folder = Path(spec.submodule_search_locations[0], inside)
    if not folder.is_dir():
        raise UserError(f"found no folder {inside} in the package {module}; correct model.text_model={model}")
    return str(folder)


def _network(folder: HfFolder | None, weights: bool) -> Any:
    if folder is None:
        with transformers_module() as (transformers, _):
            # From random weights, and at this size, dropout keeps it from learning rare words at all.
            sizes = {**TINY_SIZES, "hidden_dim": 4 * TINY_SIZES["dim"], "dropout": 0.0, "attention_dropout": 0.0}
            return transformers.DistilBertModel(transformers.DistilBertConfig(**sizes))
    kind = folder.setting("model_type")
    if kind not in ("distilbert", "bert"):
        raise UserError(
            f"{folder.path} holds a model of the type {kind}, expected distilbert or bert; choose another "
            "model.text_model"
        )
    others = [path.name for path in folder.path.glob("*.bin")]
    if weights and not folder.has_weights and not others:
        log.warning("%s has no weights: the text encoder starts at random", folder.path)
        weights = False
    return folder.network("folder" if weights else None, None)
