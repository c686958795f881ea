"""The extractors that look at several frames or at parts of one: windows, flow, faces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from src.clip import Clip
from src.data.annotation import VideoRecord
from src.data.clips import ClipDecoder
from src.errors import UserError
from src.extractors.face import BOX_FACTS, FaceExtractor, box_facts
from src.extractors.flow import FlowExtractor
from src.extractors.windows import ActionExtractor, PluginExtractor, Windows
from tests.extractor_clips import clip_of, rows_of

# ----------------------------------------------------------------------------- windows


class Means(nn.Module):
    """Mean and largest value of a window, so that one sees which frames it got."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        flat = windows.flatten(1) * self.scale
        return torch.stack([flat.mean(1), flat.amax(1)], dim=1)


def make_means() -> Means:
    return Means()


def make_matrix() -> nn.Module:
    return nn.Flatten(0, 1)


HERE = f"{__name__}:make_means"
PLUGIN: dict[str, Any] = {"name": "means", "window": 4, "stride": 2, "size": 16, "mean": (0, 0, 0), "std": (1, 1, 1)}


def ramp(num_frames: int) -> Clip:
    """Frame i is all i."""
    frames = np.broadcast_to(np.arange(num_frames, dtype=np.uint8)[:, None, None, None], (num_frames, 16, 16, 3))
    return Clip("v", None, frames, tuple(range(num_frames)), 1.0, (16, 16))


@pytest.mark.parametrize("layout", ["NCTHW", "NTCHW"])
def test_windows_of_a_plugin(layout: Any) -> None:
    extractor = PluginExtractor(network=HERE, layout=layout, windows_per_batch=2, **PLUGIN)
    assert extractor.dim == 2
    assert np.allclose(rows_of(extractor, ramp(9)) * 255, [[1.5, 3], [3.5, 5], [5.5, 7]], atol=1e-4)
    assert np.allclose(rows_of(extractor, ramp(2)) * 255, [[0.75, 1]], atol=1e-4)  # filled up with the last frame
    recipe = extractor.recipe()
    assert recipe["network"] == HERE
    assert recipe["window"] == [4, 2]


def test_a_plugin_with_weights_from_a_file(tmp_path: Path) -> None:
    torch.save({"scale": torch.tensor(2.0)}, tmp_path / "w.pt")
    extractor = PluginExtractor(network=HERE, weights=str(tmp_path / "w.pt"), **PLUGIN)
    plain = PluginExtractor(network=HERE, **PLUGIN)
    assert np.allclose(rows_of(extractor, ramp(4)), 2 * rows_of(plain, ramp(4)))
    assert extractor.recipe()["sha256"] != plain.recipe()["sha256"]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_plugins_as_files(tmp_path: Path) -> None:
    windows = torch.zeros(2, 3, 4, 16, 16)
    torch.jit.trace(Means().requires_grad_(False), windows).save(tmp_path / "means.pt")
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(Means(), (windows,), dynamic_shapes=[{0: batch}]), tmp_path / "means.pt2")
    expected = rows_of(PluginExtractor(network=HERE, **PLUGIN), ramp(9))
    scripted = PluginExtractor(network=str(tmp_path / "means.pt"), **PLUGIN)
    assert np.array_equal(rows_of(scripted, ramp(9)), expected)
    assert scripted.recipe()["network"] == "means.pt"
    with pytest.raises(UserError, match=r"add extractor\.trust=true"):
        PluginExtractor(network=str(tmp_path / "means.pt2"), **PLUGIN)
    exported = PluginExtractor(network=str(tmp_path / "means.pt2"), trust=True, **PLUGIN)
    assert np.array_equal(rows_of(exported, ramp(9)), expected)
    (tmp_path / "state.pt").write_bytes(b"no network")
    with pytest.raises(UserError, match="is no TorchScript file"):
        PluginExtractor(network=str(tmp_path / "state.pt"), **PLUGIN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "nowhere_at_all:make"}, "No module named 'nowhere_at_all'"),
        ({"network": f"{__name__}:absent"}, "absent"),
        ({"network": "builtins:dict"}, "made a dict, expected a torch.nn.Module"),
        ({"network": "nowhere.pt"}, "found nothing at extractor.network=nowhere.pt"),
        ({"network": f"{__name__}:make_matrix"}, "gives shape"),
        ({"network": HERE, "layout": "NCHW"}, "extractor.layout=NCHW is one frame, found extractor.window=4"),
        ({"network": HERE, "stride": 0}, "expected positive numbers"),
        ({"network": HERE, "short_side": 8}, "found a square of 16 px cut out of frames with a short side of 8 px"),
    ],
)
def test_plugin_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PluginExtractor(**{**PLUGIN, **options})


@pytest.mark.parametrize(
    ("length", "stride", "num_frames", "starts"),
    [(4, 4, 4, [0]), (4, 4, 3, [0]), (4, 4, 8, [0, 4]), (4, 2, 9, [0, 2, 4]), (1, 1, 3, [0, 1, 2])],
)
def test_starts_of_windows(length: int, stride: int, num_frames: int, starts: list[int]) -> None:
    assert list(Windows(length, stride, None, None, 1).starts(num_frames)) == starts


def test_torchvision_video_network() -> None:
    options: dict[str, Any] = {"random_weights": True, "window": 8, "stride": 8, "num_classes": 6}
    features = ActionExtractor(arch="r3d_18", **options)
    logits = ActionExtractor(arch="r3d_18", output="logits", **options)
    clip = clip_of(features, 9)
    assert rows_of(features, clip).shape == (1, 512)
    with torch.inference_mode():
        expected = features._head(torch.from_numpy(rows_of(features, clip))).numpy()
    assert np.allclose(rows_of(logits, clip), expected, atol=1e-4)
    with pytest.raises(UserError, match=r"extractor\.arch=i3d is not known to torchvision"):
        ActionExtractor(arch="i3d", random_weights=True)


def test_s3d_ends_in_a_convolution_which_counts_as_linear() -> None:
    from torchvision.models.video import s3d

    extractor = ActionExtractor(
        arch="s3d", random_weights=True, window=16, stride=16, num_classes=4, output="logits", windows_per_batch=1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = s3d(weights=None, num_classes=4).eval()
    clip = clip_of(extractor, 16)
    assert clip.frames_THWC is not None
    pixels = extractor.pixels.tensor(extractor.pixels.cut(clip.frames_THWC), torch.device("cpu"))
    with torch.inference_mode():
        expected = network(pixels.transpose(0, 1)[None]).numpy()
    assert np.allclose(rows_of(extractor, clip), expected, atol=1e-4)


# ----------------------------------------------------------------------------- flow


def moving(right: int, down: int, num_frames: int = 3) -> Clip:
    """Smooth noise that moves by whole pixels from frame to frame, at 10 fps."""
    noise = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    image = np.asarray(Image.fromarray(noise).resize((192, 192), Image.Resampling.BICUBIC))
    grey = np.clip((image - image.min()) / np.ptp(image) * 255, 0, 255).astype(np.uint8)
    pictures = [np.roll(grey, (i * down, i * right), axis=(0, 1))[32:160, 32:160] for i in range(num_frames)]
    frames = np.repeat(np.stack(pictures)[..., None], 3, axis=-1)
    return Clip("v", None, frames, tuple(range(num_frames)), 10.0, (128, 128))


@pytest.mark.parametrize(("right", "down", "direction"), [(3, 0, 0), (0, 3, 2), (-3, 0, 4), (0, -3, 6), (2, 2, 1)])
def test_flow_says_how_fast_and_where_to(right: int, down: int, direction: int) -> None:
    extractor = FlowExtractor(grid=2)
    rows = rows_of(extractor, moving(right, down))
    assert rows.shape == (2, 20)
    per_second = np.array([right, down, np.hypot(right, down)]) * 10 / 128
    assert np.allclose(rows[:, :12].reshape(2, 4, 3).mean(1), per_second, atol=0.03)
    assert rows[0, 12:].argmax() == direction
    assert rows[0, 12:].sum() == pytest.approx(rows[0, 2:12:3].mean(), rel=1e-3)


def test_one_frame_has_no_flow() -> None:
    assert FlowExtractor().extract(moving(1, 1, 1)) is None
    assert FlowExtractor.nothing == "fewer than two frames"


def test_raft_with_random_weights_fits_any_picture() -> None:
    extractor = FlowExtractor(method="raft_small", random_weights=True, grid=1, short_side=100)
    assert rows_of(extractor, clip_of(extractor, 3)).shape == (2, 11)


# ----------------------------------------------------------------------------- faces


def test_box_facts_are_shares_of_the_picture() -> None:
    boxes = np.array([[10, 20, 50, 80], [60, 0, 70, 10]], np.float32)
    facts = dict(zip(BOX_FACTS, box_facts(boxes, np.array([0.99, 0.95], np.float32), (100, 200)), strict=True))
    expected = {"faces": 2, "x": 0.15, "y": 0.5, "width": 0.2, "height": 0.6, "confidence": 0.99, "area": 0.125}
    assert facts == pytest.approx(expected)


def face_like(monkeypatch: pytest.MonkeyPatch, **options: Any) -> FaceExtractor:
    """An extractor whose detector finds two boxes in odd frames and none in even ones."""
    extractor = FaceExtractor(**options)
    boxes = np.array([[4, 4, 24, 24], [30, 30, 40, 40], [0, 0, 5, 5]], np.float32)
    answers = iter([(None, [None]), (boxes, np.array([0.99, 0.95, 0.5]))] * 4)
    monkeypatch.setattr(extractor._detector, "detect", lambda frame: next(answers))
    return extractor


def test_faces_without_an_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = face_like(monkeypatch)
    clip = clip_of(extractor, 4)
    rows = rows_of(extractor, clip)
    assert rows.shape == (2, len(BOX_FACTS))  # two of the four frames show faces
    assert rows[0, 0] == 2  # the third one is too unsure
    details = extractor.details(clip)
    assert details is not None
    assert details["faces"][0] == {"frame": 10, "box": [4.0, 4.0, 24.0, 24.0], "confidence": 0.99}
    assert [face["frame"] for face in details["faces"]] == [10, 10, 30, 30]


def test_faces_with_an_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = face_like(monkeypatch, embedder=HERE, face_size=16)
    assert extractor.dim == 2
    assert rows_of(extractor, clip_of(extractor, 4)).shape == (4, 2)
    with pytest.raises(UserError, match=r"extractor\.embedder=inception_resnet_v1 has no weights"):
        FaceExtractor(embedder="inception_resnet_v1")


def test_no_face_is_missing() -> None:
    extractor = FaceExtractor()
    assert extractor.extract(clip_of(extractor, 2)) is None
    assert extractor.details(clip_of(extractor, 2)) is None
    assert extractor.extract(clip_of(extractor, 2, size=(40, 16))) is None  # smaller than any face


@pytest.mark.real
def test_the_chef_has_a_face(shared_data: Path) -> None:
    extractor = FaceExtractor(max_frames=2)
    path = shared_data / "clips" / "panda70m" / "An1biDTot5Q.16.mp4"
    clip = ClipDecoder("frames", extractor.request)(VideoRecord("chef", path))
    assert isinstance(clip, Clip)
    rows = rows_of(extractor, clip)
    assert rows[:, 0].tolist() == [1, 1]
    details = extractor.details(clip)
    assert details is not None
    left, top, right, bottom = details["faces"][0]["box"]
    assert 100 < left < right < 165
    assert 20 < top < bottom < 95
