"""The toy benchmark's pixels, sounds and files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import ImageFont

from src.data.benchmarks.toy import read_annotation
from src.data.toy import build
from src.data.toy.audio import SAMPLE_RATE_HZ, synthesise
from src.data.toy.build import ensure_built, is_complete
from src.data.toy.render import RGB, positions, render
from src.data.toy.scenes import SOUNDS, WORDS, Clip, ToyParams, draw_clips

PARAMS = ToyParams(num_train=20, num_val=10, num_test=20)
CLIPS = draw_clips(PARAMS)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_built(PARAMS, tmp_path_factory.mktemp("toy"))


def pairs(skill: str) -> list[tuple[Clip, Clip]]:
    clips = [clip for clip in CLIPS if clip.scene.skill == skill]
    return list(zip(clips[::2], clips[1::2], strict=True))


def sorted_frames(clip: Clip) -> list[bytes]:
    return sorted(frame.tobytes() for frame in render(clip, PARAMS))


@pytest.mark.parametrize("skill", ["motion", "order"])
def test_time_is_the_only_difference_of_motion_and_order_pairs(skill: str) -> None:
    """The same frames in another order: mean pooling cannot tell them apart, whatever it pools."""
    for first, second in pairs(skill):
        assert sorted_frames(first) == sorted_frames(second)
        assert render(first, PARAMS).tobytes() != render(second, PARAMS).tobytes()


@pytest.mark.parametrize("start", [0, 1])
def test_every_second_frame_of_motion_pairs_shows_the_same_places_too(start: int) -> None:
    for first, second in pairs("motion"):
        one, two = (positions(clip.scene, 16) for clip in (first, second))
        assert set(one[start::2]) == set(two[start::2])
        assert len(set(one[start::2])) == 8
        assert one[::2] != two[::2]


def test_objects_move_where_the_caption_says() -> None:
    for clip in [member for pair in pairs("motion") for member in pair]:
        axis, sign = {"left": (1, -1), "right": (1, 1), "top": (0, -1), "bottom": (0, 1)}[clip.scene.direction]
        frames_THWC = render(clip, PARAMS).astype(float)
        moving_THW = np.abs(frames_THWC - np.array(RGB[clip.scene.background])).sum(axis=-1) > 60
        whole_T = moving_THW.sum(axis=(1, 2)) > 0.97 * moving_THW.sum(axis=(1, 2)).max()
        centres_T = [np.argwhere(mask).mean(axis=0)[axis] for mask in moving_THW]
        steps = [sign * (centres_T[t + 1] - centres_T[t]) for t in range(15) if whole_T[t] and whole_T[t + 1]]
        pixels_per_frame = 96 * 1.5 / 16
        expected = 3 * pixels_per_frame if clip.scene.speed == "quickly" else pixels_per_frame
        assert steps == pytest.approx([expected] * len(steps), abs=1.0)
        assert steps


def test_still_skills_show_one_picture() -> None:
    for skill in ("appearance", "reading", "sound"):
        for clip in [member for pair in pairs(skill) for member in pair]:
            frames_THWC = render(clip, PARAMS)
            assert (frames_THWC == frames_THWC[0]).all()


def test_sound_pairs_show_the_same_picture_a_few_pixels_apart() -> None:
    """Not the same pixels: equal scores would hide behind the tie rule."""
    for first, second in pairs("sound"):
        assert first.scene.sound != second.scene.sound
        assert not (render(first, PARAMS) == render(second, PARAMS)).all()
        centred = (render(replace(clip, shift=(0.0, 0.0)), PARAMS) for clip in (first, second))
        assert next(centred).tobytes() == next(centred).tobytes()


def test_only_sound_clips_make_a_sound() -> None:
    assert all((clip.scene.sound == "silence") == (clip.scene.skill != "sound") for clip in CLIPS)


def dominant_hz(samples: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * SAMPLE_RATE_HZ / len(samples))


def test_sounds_are_what_their_names_say() -> None:
    sounds = {name: synthesise(name, 2.0).astype(float) for name in (*SOUNDS, "silence")}
    assert {len(samples) for samples in sounds.values()} == {32000}
    rising = [dominant_hz(piece) for piece in np.split(sounds["rising"], 8)]
    assert rising == sorted(rising)
    assert rising[-1] > 4 * rising[0]
    falling = [dominant_hz(piece) for piece in np.split(sounds["falling"], 8)]
    assert falling == sorted(falling, reverse=True)
    assert dominant_hz(sounds["high"]) == pytest.approx(2400, abs=5)
    assert dominant_hz(sounds["low"]) == pytest.approx(300, abs=5)
    for name, number in (("two", 2), ("five", 5)):
        loud = np.abs(sounds[name]).reshape(-1, 80).max(axis=1) > 1000
        assert np.count_nonzero(loud[1:] & ~loud[:-1]) == number
    assert not sounds["silence"].any()
    with pytest.raises(ValueError, match="unknown sound"):
        synthesise("bang", 2.0)


def test_signs_are_legible() -> None:
    """Capitals of at least 18 pixels, wholly inside the frame, in two colours of high contrast."""
    for word in WORDS:
        font = ImageFont.load_default(27)
        left, top, right, bottom = font.getbbox(word)
        assert bottom - top >= 18
        assert right - left <= 96 - 10
    for pair in pairs("reading"):
        first, second = (render(clip, PARAMS)[0].astype(int) for clip in pair)
        changed = np.argwhere(np.abs(first - second).sum(axis=-1) > 60)
        assert len(changed) > 50, "the words differ visibly"


def test_colours_are_far_apart() -> None:
    colours = np.array([RGB[name] for name in RGB], dtype=float)
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1e9 * np.eye(len(colours))
    assert distance.min() > 60


def test_same_parameters_give_the_same_annotation_and_pixels(built: Path, tmp_path: Path) -> None:
    again = ensure_built(PARAMS, tmp_path, num_workers=1)
    assert (again / "annotation.json").read_bytes() == (built / "annotation.json").read_bytes()
    contents = [json.loads((folder / "manifest.json").read_text())["content"] for folder in (again, built)]
    assert contents[0] == contents[1]


def test_files_are_h264_with_aac_and_show_what_was_rendered(built: Path) -> None:
    for clip in CLIPS[::7]:
        with av.open(str(built / "videos" / f"{clip.id}.mp4")) as container:
            assert [s.codec_context.name for s in container.streams] == ["h264", "aac"]
            frames_THWC = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
        expected = render(clip, PARAMS)
        assert frames_THWC.shape == expected.shape == (16, 96, 96, 3)
        assert np.abs(frames_THWC.astype(int) - expected).mean() < 6
    with av.open(str(next((built / "videos").glob("train_sound_*.mp4")))) as container:
        samples = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    assert len(samples) / SAMPLE_RATE_HZ == pytest.approx(2.0, abs=0.1)
    assert np.abs(samples).max() > 0.2


def test_annotation_has_pairs_as_groups_and_skills_as_tags(built: Path) -> None:
    annotation = read_annotation(built)
    annotation.check("toy")
    assert {part: len(ids) for part, ids in annotation.splits.items()} == {"train": 20, "val": 10, "test": 20}
    assert len(annotation.captions) == 5 * 50
    groups: dict[str | None, set[str]] = {}
    for video in annotation.videos:
        assert video.path is not None
        assert video.path.is_file()
        groups.setdefault(video.group, set()).add(dict(video.tags)["skill"])
    assert len(groups) == 25
    assert all(len(skills) == 1 for skills in groups.values())


def test_a_finished_folder_is_reused_and_a_damaged_one_rebuilt(tmp_path: Path) -> None:
    params = ToyParams(num_train=0, num_val=0, num_test=10)
    folder = ensure_built(params, tmp_path)
    stamp = (folder / "manifest.json").stat().st_mtime_ns
    assert ensure_built(params, tmp_path) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == stamp
    victim = next((folder / "videos").iterdir())
    whole = victim.stat().st_size
    victim.write_bytes(victim.read_bytes()[:100])
    assert not is_complete(folder)
    ensure_built(params, tmp_path)
    assert is_complete(folder)
    assert victim.stat().st_size == whole
    (folder / "manifest.json").unlink()
    assert not is_complete(folder)


def test_an_interrupted_build_leaves_nothing_that_looks_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = ToyParams(num_train=0, num_val=0, num_test=10)
    calls = 0
    original = build.write_mp4

    def fail_at_the_fifth(*args: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise OSError(28, "No space left on device")
        original(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_mp4", fail_at_the_fifth)
        with pytest.raises(OSError, match="No space left"):
            ensure_built(params, tmp_path, num_workers=1)
    assert not (tmp_path / params.fingerprint).exists()
    assert is_complete(ensure_built(params, tmp_path))
    assert not (tmp_path / f"{params.fingerprint}.partial").exists()


def test_two_builders_at_once_build_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = ToyParams(num_train=0, num_val=0, num_test=10)
    written: list[str] = []
    original = build.write_mp4

    def count(path: Path, *args: object) -> None:
        written.append(path.name)
        original(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "write_mp4", count)
    builders = [threading.Thread(target=ensure_built, args=(params, tmp_path)) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len(written) == len(set(written)) == 10
    assert is_complete(tmp_path / params.fingerprint)


def test_the_files_do_not_depend_on_what_lies_in_memory(tmp_path: Path) -> None:
    """Without x264's portable code 7 of these 60 clips differ."""
    program = """
import hashlib, sys
from pathlib import Path
from src.data.toy.build import write_clip
from src.data.toy.scenes import ToyParams, draw_clips

clips = [clip for clip in draw_clips(ToyParams()) if clip.scene.skill in ("sound", "motion")][:60]
for clip in clips:
    write_clip(clip, ToyParams(), Path(sys.argv[1]))
    print(clip.id, hashlib.sha256(Path(sys.argv[1], f"{clip.id}.mp4").read_bytes()).hexdigest())
"""
    found = []
    for number in ("0", "85"):  # fills freed and fresh memory of glibc
        command, environment = [sys.executable, "-c", program, str(tmp_path)], os.environ | {"MALLOC_PERTURB_": number}
        found.append(
            subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        )
    assert found[0].count("\n") == 60
    assert found[0] == found[1]
