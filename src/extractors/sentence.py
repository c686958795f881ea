"""Sentence vectors through sentence-transformers, from a folder on this machine."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from src.errors import UserError
from src.extractors.base import Clip, Extractor, need
from src.extractors.local_files import folder_sha256, local_path, versions

# What decides the numbers: weights, configurations, vocabularies.
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".json", ".txt", ".model")


class SentenceEncoder(Extractor):
    """One vector per caption from a sentence-transformers folder, pooled and normalised as the folder says.

    Args:
        path: the folder (modules.json, config.json, weights), or `package:<module>/<folder>` for one that an
            installed package carries. Hubs are never asked.
        name: of the store.
        max_tokens: captions are cut after so many tokens; null = as the folder says.
        batch_size: captions encoded at once, at most.
    """

    medium = "text"
    nothing = "empty caption"

    def __init__(
        self, *, path: str | None, name: str = "sentence", max_tokens: int | None = None, batch_size: int = 32
    ) -> None:
        if path is None:
            raise UserError(
                "found no extractor.path, expected the folder of a sentence-transformers model; "
                "set extractor.path=<folder>, or take extractor=minilm, whose weights come in a package"
            )
        if importlib.util.find_spec("sentence_transformers") is None:
            raise need("sentence-transformers", "text")
        self.folder = local_path(path, "extractor.path")
        if not (self.folder / "modules.json").is_file():
            raise UserError(
                f"{self.folder} has no modules.json, expected the folder of a sentence-transformers model; "
                "for a plain transformers folder take extractor=transformer"
            )
        self.name = name
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        self.device = torch.device("cpu")
        self._model: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}

    def to(self, device: torch.device) -> None:
        self.device = device
        if self._model is not None:
            self._model.to(device)

    @property
    def model(self) -> Any:
        """The network, loaded when first needed; a broken folder is an error that names it."""
        if self._model is None:
            from sentence_transformers import SentenceTransformer  # seconds to import, and an optional package
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()  # it would draw into our own while weights load
            logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
            try:
                self._model = SentenceTransformer(
                    str(self.folder), device=str(self.device), local_files_only=True, trust_remote_code=False
                ).eval()
            except (OSError, ValueError, KeyError) as error:
                reason = str(error).splitlines()[0][:150] if str(error) else type(error).__name__
                raise UserError(
                    f"{self.folder} is no usable sentence-transformers model ({reason}), expected all of its files; "
                    "copy the folder again"
                ) from None
            if self.max_tokens is not None:
                self._model.max_seq_length = self.max_tokens
        return self._model

    @property
    def dim(self) -> int:
        return int(self.model.get_embedding_dimension())

    def recipe(self) -> Mapping[str, Any]:
        return {
            "extractor": "sentence",
            "versions": versions("sentence-transformers", "transformers", "torch"),
            "weights": folder_sha256(self.folder, WEIGHT_SUFFIXES),
            "max_tokens": int(self.model.max_seq_length),
            "batch_size": self.batch_size,
        }

    def extract(self, clip: Clip) -> np.ndarray | None:
        return self.extract_many([clip])[0]

    def extract_many(self, clips: list[Clip]) -> list[np.ndarray | None]:
        texts = [clip.text for clip in clips]
        rows_ND = self.model.encode(
            texts, batch_size=self.batch_size, convert_to_numpy=True, show_progress_bar=False
        ).astype(np.float32)
        return [row_D[None] if text.strip() else None for text, row_D in zip(texts, rows_ND, strict=True)]
