"""Token vectors of a pretrained language model, from a transformers folder on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch

from src.errors import UserError
from src.extractors.base import Clip, Extractor, need
from src.extractors.local_files import folder_sha256, local_path, versions
from src.extractors.sentence import WEIGHT_SUFFIXES

WITHOUT_SPECIAL_TOKENS = frozenset({"t5", "xlnet"})


class TransformerEncoder(Extractor):
    """The last hidden state of every token of a caption, or one pooled vector.

    Encoder-decoder networks get the same token ids on both sides and give the decoder's state. Captions of equal
    length go through the network together, so nothing is padded and a row does not depend on its neighbours.

    Source: Collaborative Experts, text pipeline: special tokens are kept except for t5 and xlnet.

    Args:
        path: the folder (config.json, weights, tokenizer files), or `package:<module>/<folder>`. Hubs are never asked.
        name: of the store.
        pooling: tokens = (tokens, dim); mean = their mean; cls = the first token's.
        special_tokens: published = kept except for t5 and xlnet; keep or drop whatever the model is.
        max_tokens: captions are cut after so many tokens; null = as many as the model takes.
        batch_size: captions at once, at most.
    """

    medium = "text"
    nothing = "empty caption"

    def __init__(
        self,
        *,
        path: str | None,
        name: str = "transformer",
        pooling: Literal["tokens", "mean", "cls"] = "tokens",
        special_tokens: Literal["published", "keep", "drop"] = "published",
        max_tokens: int | None = None,
        batch_size: int = 32,
    ) -> None:
        if path is None:
            raise UserError(
                "found no extractor.path, expected the folder of a transformers model; "
                "set extractor.path=<folder with config.json, weights and tokenizer>"
            )
        if importlib.util.find_spec("transformers") is None:
            raise need("transformers", "text")
        self.folder = local_path(path, "extractor.path")
        if not (self.folder / "config.json").is_file():
            raise UserError(f"{self.folder} has no config.json, expected a transformers folder; check extractor.path")
        self.name = name
        self.pooling = pooling
        self.special_tokens = special_tokens
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        self.device = torch.device("cpu")
        self._loaded: tuple[Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def to(self, device: torch.device) -> None:
        self.device = device
        if self._loaded is not None:
            self._loaded[1].to(device)

    @property
    def loaded(self) -> tuple[Any, Any]:
        """Tokenizer and network, loaded when first needed."""
        if self._loaded is None:
            from transformers import AutoModel, AutoTokenizer  # seconds to import, and an optional package
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()  # it would draw into our own while weights load
            options = {"local_files_only": True, "trust_remote_code": False}
            try:
                tokenizer = AutoTokenizer.from_pretrained(str(self.folder), **options)
                model = AutoModel.from_pretrained(str(self.folder), dtype=torch.float32, **options)
            except (OSError, ValueError, KeyError) as error:
                reason = str(error).splitlines()[0][:150] if str(error) else type(error).__name__
                raise UserError(
                    f"{self.folder} is no usable transformers model ({reason}), expected all of its files; "
                    "copy the folder again"
                ) from None
            self._loaded = tokenizer, model.eval().to(self.device)
        return self._loaded

    @property
    def dim(self) -> int:
        return int(self.loaded[1].config.hidden_size)

    @property
    def keeps_special_tokens(self) -> bool:
        if self.special_tokens == "published":
            return self.loaded[1].config.model_type not in WITHOUT_SPECIAL_TOKENS
        return self.special_tokens == "keep"

    @property
    def longest(self) -> int | None:
        """Tokens after which a caption is cut; None where the model knows no limit."""
        tokenizer, model = self.loaded
        limits = [self.max_tokens, getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length]
        known = [limit for limit in limits if limit is not None and 0 < limit < 10**6]
        return min(known) if known else None

    def recipe(self) -> Mapping[str, Any]:
        return {
            "extractor": "transformer",
            "versions": versions("transformers", "tokenizers", "torch"),
            "weights": folder_sha256(self.folder, WEIGHT_SUFFIXES),
            "model_type": self.loaded[1].config.model_type,
            "pooling": self.pooling,
            "special_tokens": self.keeps_special_tokens,
            "max_tokens": self.longest,
            "batch_size": self.batch_size,
        }

    def extract(self, clip: Clip) -> np.ndarray | None:
        return self.extract_many([clip])[0]

    def extract_many(self, clips: list[Clip]) -> list[np.ndarray | None]:
        tokenizer = self.loaded[0]
        ids = [self._ids(tokenizer, clip.text) if clip.text.strip() else [] for clip in clips]
        by_length: dict[int, list[int]] = {}
        for position, own in enumerate(ids):
            by_length.setdefault(len(own), []).append(position)
        rows: list[np.ndarray | None] = [None] * len(clips)
        for length, positions in by_length.items():
            for start in range(0, len(positions), self.batch_size) if length else ():
                part = positions[start : start + self.batch_size]
                states_BLD = self._states(torch.tensor([ids[position] for position in part], device=self.device))
                for position, state_LD in zip(part, states_BLD, strict=True):
                    rows[position] = self._pooled(state_LD)
        return rows

    def _ids(self, tokenizer: Any, text: str) -> list[int]:
        longest = self.longest
        limit = {"truncation": True, "max_length": longest} if longest is not None else {}
        return tokenizer(text, add_special_tokens=self.keeps_special_tokens, **limit)["input_ids"]

    @torch.inference_mode()
    def _states(self, ids_BL: torch.Tensor) -> np.ndarray:
        model = self.loaded[1]
        decoder = {"decoder_input_ids": ids_BL} if model.config.is_encoder_decoder else {}
        return model(input_ids=ids_BL, **decoder).last_hidden_state.float().cpu().numpy()

    def _pooled(self, state_LD: np.ndarray) -> np.ndarray:
        if self.pooling == "mean":
            return state_LD.mean(axis=0, keepdims=True)
        return state_LD[:1].copy() if self.pooling == "cls" else state_LD
