"""model=hf: vectors are those of transformers' own forward, and every wrong folder is told what it lacks."""

from __future__ import annotations

import json
import pickle
import re
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.batch import TextBatch, VideoBatch
from src.config.validate import CONF
from src.errors import UserError
from src.models.gradient_cache import encode_in_chunks
from src.models.heads.mean import MeanHead
from src.models.heads.ti import TokenInteractionHead
from src.models.heads.xpool import XPoolHead
from src.models.hf_folder import OURS, HfFolder
from src.models.hf_tokenizer import HfTokenizer
from src.models.hf_video_text import HfVideoText
from src.models.tokenizer import ClipTokenizer
from tests import hf_folders
from tests.hf_folders import SIZE

CAPTIONS = ["a red circle moves left", "the star", "then a white square grows and says nothing"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    root = tmp_path_factory.mktemp("hf")
    writers = {"clip": hf_folders.write_clip, "xclip": hf_folders.write_xclip, "siglip": hf_folders.write_siglip}
    return {name: (root / name, write(root / name)) for name, write in writers.items()}


def make(path: Path | str, head: Any = MeanHead, **options: Any) -> HfVideoText:
    return HfVideoText(path=str(path), head=head, **{"max_words": 12} | options).eval()


def text_batch(model: HfVideoText, captions: list[str] = CAPTIONS) -> TextBatch:
    """As the loader makes it: cut to the longest caption."""
    assert model.input_spec.tokenizer is not None
    tokens_NL, mask_NL = model.input_spec.tokenizer(captions)
    longest = int(mask_NL.sum(dim=1).max())
    ids = torch.arange(len(captions))
    return TextBatch(tokens_NL[:, :longest], mask_NL[:, :longest], ids, ids)


def video_batch(lengths: list[int], frames: int = 4, seed: int = 0) -> VideoBatch:
    generator = torch.Generator().manual_seed(seed)
    mask_BT = torch.arange(frames) < torch.tensor(lengths)[:, None]
    shape = (len(lengths), frames, 3, SIZE, SIZE)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return VideoBatch(torch.arange(len(lengths)), pixels * mask_BT[..., None, None, None], mask_BT)


def processed(folder: Path, frames_NCHW: Tensor) -> Tensor:
    """Pixels as the folder's own image processor makes them."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    return processor(images=list(frames_NCHW), return_tensors="pt")["pixel_values"]


def their_tokens(folder: Path, **options: Any) -> dict[str, Tensor]:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(folder)(CAPTIONS, return_tensors="pt", **options)
    return {name: found[name] for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def test_clip_scores_are_those_of_its_own_forward(written: dict[str, tuple[Path, Any]]) -> None:
    folder, theirs = written["clip"]
    model = make(folder, num_frames=1)
    batch = video_batch([1, 1], frames=1)
    assert batch.frames_BTCHW is not None
    found = theirs(pixel_values=processed(folder, batch.frames_BTCHW[:, 0]), **their_tokens(folder, padding=True))
    text, video = model.encode_text(text_batch(model)), model.encode_video(batch)
    torch.testing.assert_close(text.parts["text"], found.text_embeds)
    torch.testing.assert_close(video.parts["video"], found.image_embeds)
    torch.testing.assert_close(model.similarity(text, video), found.logits_per_text)
    frames = model.input_spec.frames
    assert frames is not None
    assert (frames.image_size, frames.resize, frames.num_frames) == (SIZE, "crop", 1)


@torch.no_grad()
def test_frames_of_a_clip_are_pooled_without_the_padding(written: dict[str, tuple[Path, Any]]) -> None:
    folder, theirs = written["clip"]
    model = make(folder)
    batch = video_batch([3, 4])
    assert batch.frames_BTCHW is not None
    own = processed(folder, batch.frames_BTCHW[0, :3])
    expected = F.normalize(F.normalize(theirs.get_image_features(own).pooler_output, dim=-1).mean(dim=0), dim=-1)
    torch.testing.assert_close(model.encode_video(batch).parts["video"][0], expected)
    nothing = model.encode_video(video_batch([0, 0])).parts["video"]
    assert torch.equal(nothing, torch.zeros_like(nothing))


@torch.no_grad()
def test_xclip_videos_are_those_of_its_own_forward(written: dict[str, tuple[Path, Any]]) -> None:
    folder, theirs = written["xclip"]
    model = make(folder)
    batch = video_batch([4, 4])
    assert batch.frames_BTCHW is not None
    pixels = processed(folder, batch.frames_BTCHW.flatten(0, 1)).unflatten(0, (2, 4))
    tokens = their_tokens(folder, padding=True)
    video = model.encode_video(batch)
    torch.testing.assert_close(video.parts["video"], theirs(pixel_values=pixels, **tokens).video_embeds)
    text = model.encode_text(text_batch(model))
    torch.testing.assert_close(
        text.parts["text"], F.normalize(theirs.get_text_features(**tokens).pooler_output, dim=-1)
    )
    torch.testing.assert_close(
        model.similarity(text, video), theirs.logit_scale.exp() * text.parts["text"] @ video.parts["video"].T
    )
    # A short video is filled up by its last frame.
    short = video_batch([2, 4])
    assert short.frames_BTCHW is not None
    filled = pixels.clone()
    filled[0, 2:] = pixels[0, 1]
    expected = F.normalize(theirs.get_video_features(filled).pooler_output, dim=-1)
    torch.testing.assert_close(model.encode_video(short).parts["video"], expected)


@torch.no_grad()
def test_siglip_reads_padding_and_keeps_its_scale(written: dict[str, tuple[Path, Any]]) -> None:
    folder, theirs = written["siglip"]
    model = make(folder, num_frames=1)
    batch = video_batch([1, 1], frames=1)
    assert batch.frames_BTCHW is not None
    tokens = their_tokens(folder, padding="max_length", max_length=12)["input_ids"]
    pixels = processed(folder, batch.frames_BTCHW[:, 0])
    found = theirs(input_ids=tokens, pixel_values=pixels)
    text, video = model.encode_text(text_batch(model)), model.encode_video(batch)
    torch.testing.assert_close(model.similarity(text, video) + theirs.logit_bias, found.logits_per_text)
    assert model.input_spec.frames is not None
    assert model.input_spec.frames.resize == "squash"
    assert not model.tower.clip.logit_bias.requires_grad


def test_every_trained_parameter_gets_a_gradient(written: dict[str, tuple[Path, Any]]) -> None:
    for name, (folder, _) in written.items():
        model = make(folder, same_video_positives=True).train()
        losses = model.loss(model.encode_text(text_batch(model)), model.encode_video(video_batch([4, 2, 3])))
        losses["loss"].backward()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert without == [], name
        model.after_step()
        assert 0 < float(model.tower.logit_scale.detach().exp()) <= 100.001


def test_heads_of_the_clip_family(written: dict[str, tuple[Path, Any]]) -> None:
    model = make(written["clip"][0], partial(XPoolHead, attention_heads=2))
    text, video = model.encode_text(text_batch(model)), model.encode_video(video_batch([4, 2]))
    assert model.similarity(text, video).shape == (3, 2)
    with pytest.raises(UserError, match="one vector for a whole video"):
        make(written["xclip"][0], XPoolHead)
    with pytest.raises(UserError, match=r"one vector per caption, this head reads its words"):
        make(written["siglip"][0], TokenInteractionHead)


def test_a_network_of_a_folder_is_ready_to_train(written: dict[str, tuple[Path, Any]]) -> None:
    """Lightning leaves the mode as it finds it, and transformers' loader switches dropout off."""
    model = HfVideoText(path=str(written["clip"][0]), head=MeanHead)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", ["clip", "xclip", "siglip"])
def test_less_memory_gives_the_same_gradients(name: str, written: dict[str, tuple[Path, Any]]) -> None:
    """Recomputed blocks, and a batch in chunks."""
    found = []
    for recomputed, chunks in ((False, 1), (True, 2)):
        model = make(written[name][0], activation_checkpointing=recomputed).train()
        model.configure_loss(cache_chunks=chunks)
        text = encode_in_chunks(model.encode_text, text_batch(model), chunks)
        model.loss(text, encode_in_chunks(model.encode_video, video_batch([4, 2, 3]), chunks))["loss"].backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    whole, pieces = found
    assert whole.keys() == pieces.keys()
    for parameter, gradient in whole.items():
        torch.testing.assert_close(pieces[parameter], gradient, rtol=1e-4, atol=1e-5, msg=parameter)


def test_norms_do_not_decay(written: dict[str, tuple[Path, Any]]) -> None:
    rules = yaml.safe_load((CONF / "optimizer" / "adamw.yaml").read_text())["rules"]
    patterns = [rule["pattern"] for rule in rules if rule.get("weight_decay") == 0]
    for folder, _ in written.values():
        vectors = [n for n, p in make(folder).named_parameters() if p.ndim < 2 and p.requires_grad]
        assert [n for n in vectors if not any(re.search(pattern, n) for pattern in patterns)] == []


def test_tokens_are_those_of_the_folder_and_travel(written: dict[str, tuple[Path, Any]]) -> None:
    folder, _ = written["clip"]
    tokenizer = pickle.loads(pickle.dumps(HfTokenizer(str(folder), 6)))  # noqa: S301 our own bytes
    tokens_NL, mask_NL = tokenizer(CAPTIONS)
    expected = their_tokens(folder, padding="max_length", max_length=6, truncation=True)
    assert torch.equal(tokens_NL, expected["input_ids"])
    assert torch.equal(mask_NL, expected["attention_mask"].bool())
    assert tokenizer.fingerprint != HfTokenizer(str(folder), 7).fingerprint


def test_own_classes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "embed_dim": 8, "num_frames": 4}))
    hf_folders.write_tokenizer(tmp_path)
    network = hf_folders.own_network({"embed_dim": 8})
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    options = {"network": "tests.hf_folders:own_network", "layout": "BCTHW", "image_size": SIZE, "temperature": 0.5}
    model = make(tmp_path, **options)
    batch = video_batch([4])
    assert batch.frames_BTCHW is not None
    mean, std = model.tower.mean[:, None, None], model.tower.std[:, None, None]
    colours_TC = ((batch.frames_BTCHW[0] / 255 - mean) / std).mean(dim=(2, 3))
    expected = F.normalize(network.pixels(colours_TC).mean(dim=0), dim=0)  # type: ignore[operator]
    torch.testing.assert_close(model.encode_video(batch).parts["video"][0], expected)
    torch.testing.assert_close(model.tower.logit_scale.exp(), torch.tensor(2.0))
    with pytest.raises(UserError, match=r"model\.network=tests\.hf_folders:nothing"):
        make(tmp_path, **options | {"network": "tests.hf_folders:nothing"})
    with pytest.raises(UserError, match="no network that this version of transformers builds"):
        make(tmp_path, image_size=SIZE)


def test_our_configurations_need_no_file() -> None:
    for name, frames in (("videotext-tiny-clip", 5), ("videotext-tiny-xclip", 8)):
        model = make(name, num_frames=frames)
        spec = model.input_spec
        assert isinstance(spec.tokenizer, ClipTokenizer)
        assert spec.frames is not None
        assert (spec.frames.num_frames, spec.frames.image_size) == (frames, 64)
        assert model.encode_text(text_batch(model)).parts["text"].shape == (3, 96)
    with pytest.raises(UserError, match="was built for 8 frames"):
        make("videotext-tiny-xclip", num_frames=4)


def test_wrong_folders_say_what_they_lack(written: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    folder, _ = written["clip"]
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"no model\.safetensors.*model\.pretrained=null"):
        make(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(UserError, match=r"found pytorch_model\.bin"):
        make(tmp_path)
    with pytest.raises(UserError, match=r"no tokenizer\.json and its vocabulary is not CLIP's"):
        _ = with_another_end(tmp_path).input_spec
    tensors = load_file(folder / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors are missing .*text_projection"):
        make(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "strange", "auto_map": {"AutoModel": "m.M"}}))
    with pytest.raises(UserError, match=r"its own Python files.*model\.trust=true"):
        make(tmp_path)
    with pytest.raises(UserError, match="more than the 24 positions"):
        _ = make(folder, max_words=25).input_spec


def with_another_end(folder: Path) -> HfVideoText:
    settings = json.loads((folder / "config.json").read_text())
    settings["text_config"]["eos_token_id"] = 7
    (folder / "config.json").write_text(json.dumps(settings))
    return make(folder, pretrained=None)


def test_python_files_of_the_hub_are_fetched_where_they_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def fetched(name: str, allow_patterns: list[str], **options: object) -> str:
        asked.append(allow_patterns)
        return str(OURS / "videotext-tiny-clip")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    for trust in (False, True):
        HfFolder.find("someone/something", trust)
    assert ["*.py" in patterns for patterns in asked] == [False, True]
    assert not any(
        fnmatch(name, pattern) for name in ("w.bin", "w.pt", "w.pkl") for patterns in asked for pattern in patterns
    )


def test_names_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no folder at model\.path=a/b/c"):
        HfFolder.find("a/b/c", trust=False)

    def unreachable(*args: object, **options: object) -> str:
        raise OSError("no route to the hub\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(UserError, match=r"no route to the hub\); fetch it on a machine with network") as caught:
        HfFolder.find("someone/something", trust=False)
    assert "\n" not in str(caught.value)
