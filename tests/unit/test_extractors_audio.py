"""Sound: log-mel patches against a slow copy of the definition, and the VGGish network."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from src.clip import Clip
from src.data.annotation import VideoRecord
from src.data.clips import ClipDecoder
from src.errors import UserError
from src.extractors import audio
from src.extractors.audio import LogMel, Vggish, VggishNetwork, log_mel_patches, mel_matrix

RATE = 16_000


def sound(seconds: float, hertz: float = 440.0) -> np.ndarray:
    n = np.arange(round(seconds * RATE))
    noise = np.random.default_rng(3).normal(scale=0.05, size=len(n))
    return (0.5 * np.sin(2 * np.pi * hertz * n / RATE) + noise).astype(np.float32)


def clip(wave: np.ndarray | None, rate: int = RATE) -> Clip:
    return Clip("video", wave_CN=None if wave is None else np.atleast_2d(wave), sample_rate=rate)


def mel(hertz: float) -> float:
    return 1127.0 * math.log(1 + hertz / 700)


def oracle_window(samples: np.ndarray) -> list[float]:
    """One row of the log-mel spectrogram, written as a sum over its definition."""
    windowed = [samples[i] * (0.5 - 0.5 * math.cos(2 * math.pi * i / 400)) for i in range(400)]
    k, n = np.arange(257)[:, None], np.arange(400)[None]
    spectrum = np.abs((np.array(windowed)[None] * np.exp(-2j * np.pi * k * n / 512)).sum(axis=1))
    low, high = mel(125), mel(7500)
    step = (high - low) / 65
    row = []
    for band in range(64):
        left, centre, right = low + band * step, low + (band + 1) * step, low + (band + 2) * step
        total = 0.0
        for bin_number in range(1, 257):
            at = mel(bin_number * 8000 / 256)
            if left < at < right:
                total += spectrum[bin_number] * ((at - left) if at <= centre else (right - at)) / step
        row.append(math.log(total + 0.01))
    return row


def test_patches_agree_with_the_definition() -> None:
    wave = sound(2.5)
    patches = log_mel_patches(wave)
    assert patches.shape == (2, 96, 64)
    assert patches.dtype == np.float32
    for patch, window in ((0, 0), (0, 95), (1, 0), (1, 50)):
        start = (96 * patch + window) * 160
        np.testing.assert_allclose(patches[patch, window], oracle_window(wave[start : start + 400]), atol=2e-5)


@pytest.mark.parametrize(
    ("samples", "dropped", "padded"),
    [
        (0, 0, 0),
        (1, 0, 1),
        (399, 0, 1),
        (95 * 160 + 399, 0, 1),  # one sample short of 96 windows
        (95 * 160 + 400, 1, 1),
        (95 * 160 + 401, 1, 2),
        (10 * RATE, 10, 11),
        (191 * 160 + 400, 2, 2),
    ],
)
def test_number_of_patches(samples: int, dropped: int, padded: int) -> None:
    wave = np.full(samples, 0.1, np.float32)
    assert len(log_mel_patches(wave)) == dropped
    assert len(log_mel_patches(wave, "pad")) == padded


def test_padding_is_silence_and_changes_nothing_before() -> None:
    wave = sound(1.5)
    padded = log_mel_patches(wave, "pad")
    np.testing.assert_array_equal(padded[:1], log_mel_patches(wave))
    np.testing.assert_allclose(padded[1, -1], math.log(0.01), rtol=1e-6)


def test_long_sound_is_cut_in_the_same_places_however_it_is_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    wave = sound(6)
    whole = log_mel_patches(wave)
    monkeypatch.setattr(audio, "PATCHES_AT_ONCE", 2)
    np.testing.assert_allclose(log_mel_patches(wave), whole, atol=1e-6)


def test_a_tone_is_loudest_in_its_band() -> None:
    for hertz in (300.0, 1000.0, 5000.0):
        band = int(log_mel_patches(sound(1.0, hertz)).mean(axis=(0, 1)).argmax())
        centre = mel(125) + (band + 1) * (mel(7500) - mel(125)) / 65
        assert abs(centre - mel(hertz)) <= (mel(7500) - mel(125)) / 65


def test_mel_matrix() -> None:
    weights = mel_matrix()
    assert weights.shape == (257, 64)
    assert (weights >= 0).all()
    assert weights.max() <= 1
    assert not weights[0].any()
    assert not weights[241:].any()  # above 7500 Hz


def test_logmel_rows_and_recipe() -> None:
    wave = sound(3)
    whole, summed = LogMel(), LogMel(pooling="statistics")
    rows, statistics = whole.extract(clip(wave)), summed.extract(clip(wave))
    patches = log_mel_patches(wave)
    np.testing.assert_array_equal(rows, patches.reshape(3, 6144))
    assert statistics is not None
    np.testing.assert_allclose(statistics[:, :64], patches.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(statistics[:, 64:], patches.std(axis=1), rtol=1e-5)
    assert (whole.dim, summed.dim) == (6144, 128)
    assert whole.request.sample_rate == RATE
    assert whole.request.mono
    assert json.loads(json.dumps(whole.recipe())) == whole.recipe() != summed.recipe()


def test_channels_are_averaged() -> None:
    wave = sound(1)
    one, both = LogMel().extract(clip(wave)), LogMel().extract(clip(np.stack([wave + 0.01, wave - 0.01])))
    assert one is not None
    assert both is not None
    np.testing.assert_allclose(both, one, atol=1e-3)


@pytest.mark.parametrize("extractor", [LogMel(), Vggish(weights=None, random_weights=True)], ids=["logmel", "vggish"])
def test_no_sound_is_missing_and_a_wrong_rate_is_an_error(extractor: LogMel | Vggish) -> None:
    assert extractor.extract(clip(None)) is None
    assert extractor.extract(clip(np.zeros((1, 0), np.float32))) is None
    assert extractor.extract(clip(sound(0.5))) is None
    with pytest.raises(UserError, match=r"found sound at 44100 Hz, expected 16000 Hz"):
        extractor.extract(clip(sound(1), 44_100))


# The network. Its 72 million random weights are made once.


@pytest.fixture(scope="module")
def network() -> VggishNetwork:
    torch.manual_seed(1)
    return VggishNetwork().eval()


@pytest.fixture(scope="module")
def weights(network: VggishNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vggish") / "vggish.pth"
    torch.manual_seed(2)
    rotation = torch.linalg.qr(torch.randn(128, 128))[0] * 30
    pca = {"pproc.pca_eigen_vectors": rotation, "pproc.pca_means": torch.full((128, 1), 0.01)}
    torch.save({**network.state_dict(), **pca}, path)
    return path


def test_the_network_has_the_published_names_and_shapes(network: VggishNetwork) -> None:
    shapes = {name: tuple(x.shape) for name, x in network.state_dict().items() if name.endswith("weight")}
    convolutions = ((0, 64, 1), (3, 128, 64), (6, 256, 128), (8, 256, 256), (11, 512, 256), (13, 512, 512))
    assert shapes == {
        **{f"features.{i}.weight": (out, into, 3, 3) for i, out, into in convolutions},
        "embeddings.0.weight": (4096, 12288),
        "embeddings.2.weight": (4096, 4096),
        "embeddings.4.weight": (128, 4096),
    }
    assert sum(x.numel() for x in network.parameters()) == 72_141_184


def test_channels_are_last_where_the_picture_becomes_a_row(network: VggishNetwork) -> None:
    seen: list[torch.Tensor] = []
    hook = network.embeddings[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    patches = torch.rand(2, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert network(patches).shape == (2, 128)
        features = network.features(patches[:, None])
    hook.remove()
    assert features.shape == (2, 512, 6, 4)
    torch.testing.assert_close(seen[0].reshape(2, 6, 4, 512), features.permute(0, 2, 3, 1))


def test_rows_come_from_the_given_weights(network: VggishNetwork, weights: Path) -> None:
    wave = sound(2.5)
    with torch.inference_mode():
        raw = network(torch.from_numpy(log_mel_patches(wave)))
    extractor = Vggish(weights=str(weights), batch_size=1)
    rows = extractor.extract(clip(wave))
    assert rows is not None
    assert rows.shape == (2, 128) == (2, extractor.dim)
    np.testing.assert_allclose(rows, raw.numpy(), atol=1e-6)
    saved = torch.load(weights, weights_only=True)
    matrix, means = saved["pproc.pca_eigen_vectors"], saved["pproc.pca_means"]
    rotated = torch.matmul(matrix, raw.T - means).T.numpy()
    pca = Vggish(weights=str(weights), postprocess="pca").extract(clip(wave))
    np.testing.assert_allclose(pca, rotated, atol=1e-4)
    quantized = Vggish(weights=str(weights), postprocess="quantized").extract(clip(wave))
    np.testing.assert_allclose(quantized, np.round((np.clip(rotated, -2, 2) + 2) * 63.75), atol=1)
    assert quantized is not None
    assert set(np.unique(quantized)) <= set(range(256))
    assert json.loads(json.dumps(extractor.recipe())) == extractor.recipe()
    assert len(extractor.recipe()["weights"]["sha256"]) == 64


def test_random_weights_are_asked_for_by_name_and_the_same_each_time() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (Vggish(weights=None, random_weights=True, seed=seed) for seed in (0, 0, 1))
    rows = [extractor.extract(clip(sound(1))) for extractor in (first, again, other)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert rows[0] is not None
    assert rows[1] is not None
    assert rows[2] is not None
    np.testing.assert_array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])
    assert first.recipe()["weights"] == {"random_seed": 0}
    assert pickle.loads(pickle.dumps(first))._loaded is None  # noqa: S301  our own bytes


def test_mistakes_with_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no weights; give extractor\.weights=FILE"):
        Vggish(weights=None)
    with pytest.raises(UserError, match=r"has weights=a\.pth and random_weights=true"):
        Vggish(weights="a.pth", random_weights=True)
    with pytest.raises(UserError, match=r"nothing at extractor\.weights="):
        Vggish(weights=str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match="with random weights"):
        Vggish(weights=None, random_weights=True, postprocess="pca")
    torch.save({"features.0.weight": torch.zeros(64, 1, 3, 3)}, tmp_path / "part.pth")
    with pytest.raises(UserError, match="17 missing"):
        Vggish(weights=str(tmp_path / "part.pth")).extract(clip(sound(1)))
    with pytest.raises(UserError, match="holds no PCA, expected pca_eigen_vectors"):
        Vggish(weights=str(tmp_path / "part.pth"), postprocess="pca").extract(clip(sound(1)))


@pytest.mark.real
def test_real_sound(shared_data: Path) -> None:
    extractor = LogMel()
    for name, patches in (("dog_with_audio.mp4", range(1, 60)), ("drum_with_audio.mp4", range(1, 60))):
        path = shared_data / "clips" / "odd" / name
        decoded = ClipDecoder("audio", extractor.request)(VideoRecord(name, path))
        assert isinstance(decoded, Clip)
        rows = extractor.extract(decoded)
        assert rows is not None
        assert len(rows) in patches
        assert decoded.wave_CN is not None
        assert len(rows) == (1 + (decoded.wave_CN.shape[1] - 400) // 160) // 96
        assert rows.std() > 0.5
