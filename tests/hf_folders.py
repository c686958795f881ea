"""Folders as transformers writes them: tiny networks with random weights and a vocabulary of a few words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

SIZE = 32
WORDS = (
    "a the red green blue white circle square triangle star moves left right up down grows shrinks says and then first"
)
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
    "vocab_size": 40,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 8,
}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 39, "pad_token_id": 0}


def write_tokenizer(folder: Path) -> None:
    """Whole words, start and end tokens; the end token has the largest id, as CLIP's pooling wants it."""
    ids = {"[PAD]": 0, "[START]": 1, "[UNK]": 2, "[END]": 39} | {w: i for i, w in enumerate(WORDS.split(), start=3)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[START] $A [END]", special_tokens=[("[START]", 1), ("[END]", 39)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "[START]", "eos_token": "[END]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))


def write_processor(folder: Path, **changes: Any) -> None:
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": SIZE},
        "do_center_crop": True,
        "crop_size": {"height": SIZE, "width": SIZE},
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | changes))


def write_clip(folder: Path) -> Any:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=TEXT | SPECIAL, vision_config=VISION, projection_dim=16)).eval()
    return _write(model, folder)


def write_xclip(folder: Path) -> Any:
    from transformers import XCLIPConfig, XCLIPModel

    torch.manual_seed(0)
    mit = {"mit_hidden_size": 16, "mit_intermediate_size": 32, "mit_num_attention_heads": 2, "num_frames": 4}
    config = XCLIPConfig(
        text_config=TEXT | SPECIAL, vision_config=VISION | mit, projection_dim=16, prompt_num_attention_heads=2
    )
    return _write(XCLIPModel(config).eval(), folder)


def write_siglip(folder: Path) -> Any:
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(0)
    text = TEXT | SPECIAL | {"max_position_embeddings": 12, "projection_size": 32}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)).eval()
    return _write(model, folder, do_center_crop=False, size={"height": SIZE, "width": SIZE}, crop_size=None)


def _write(model: Any, folder: Path, **processor: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    write_processor(folder, **processor)
    return model


class OwnNetwork(nn.Module):
    """A network that transformers does not know: channels before time, token vectors of videos, its own names."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.words = nn.Embedding(40, dim)
        self.pixels = nn.Linear(3, dim)

    def get_vid_feat(self, video_BCTHW: Tensor) -> Tensor:
        return self.pixels(video_BCTHW.mean(dim=(3, 4)).transpose(1, 2))

    def get_txt_feat(self, tokens_BL: Tensor) -> Tensor:
        return self.words(tokens_BL).sum(dim=1)


def own_network(settings: dict[str, Any]) -> nn.Module:
    """What `model.network` names."""
    return OwnNetwork(int(settings["embed_dim"]))
