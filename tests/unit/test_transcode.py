"""The small copies of videos: sizes, timing, sound, broken files, and folders of them."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from src.data import transcode as module
from src.data import transcode_folder as folder_module
from src.data.transcode import (
    TimedFrame,
    Transcoded,
    TranscodeRecipe,
    as_ffmpeg,
    at_constant_rate,
    target_size,
    transcode,
)
from src.data.transcode_folder import FolderOptions, FolderResult, Job, transcode_folder
from src.data.video import VideoError, open_video
from src.data.worker_pool import Failed, run_each
from src.errors import UserError
from tests.clips import make_audio_only, make_clip, make_gif, make_truncated, picture, true_frames

SMALL = TranscodeRecipe(short_side=32)
UPSTREAM = TranscodeRecipe(rule="upstream", short_side=32)
ONE = FolderOptions(workers=1)


def regular(count: int, fps: float) -> Iterator[TimedFrame]:
    return (TimedFrame(i / fps, 1 / fps, i) for i in range(count))


def shown(picks: Iterator[tuple[int, int]]) -> list[int]:
    return [frame for frame, count in picks for _ in range(count)]


# ---- sizes and timing ----


@pytest.mark.parametrize(
    ("size", "fixed", "upstream"),
    [
        ((320, 240), (298, 224), (298, 224)),
        ((240, 320), (224, 298), (224, 168)),  # the reference squashes portrait videos
        ((240, 240), (224, 224), (224, 224)),
        ((641, 361), (396, 224), (396, 224)),
        ((361, 641), (224, 396), (224, 126)),
        ((160, 120), (298, 224), (298, 224)),
    ],
)
def test_sizes(size: tuple[int, int], fixed: tuple[int, int], upstream: tuple[int, int]) -> None:
    assert target_size(*size, TranscodeRecipe()) == fixed
    assert target_size(*size, TranscodeRecipe(rule="upstream")) == upstream


# What ffmpeg 9.0.2 wrote for `-r 3` of clips of this rate and length.
FFMPEG = [
    (25, 1, 1), (25, 2, 2), (25, 5, 2), (25, 10, 3), (25, 24, 4), (25, 25, 5), (25, 50, 8), (25, 57, 8), (25, 60, 9),
    (25, 75, 11), (30, 60, 8), (30, 90, 11), (30000 / 1001, 90, 11), (10, 5, 3), (10, 22, 8), (2, 1, 2), (2, 2, 3),
    (2, 5, 8), (2, 9, 14), (1, 1, 3), (1, 4, 12), (3, 1, 1), (3, 5, 5), (4, 9, 8), (5, 11, 8), (5, 12, 9),
]  # fmt: skip


@pytest.mark.parametrize(("fps", "count", "expected"), FFMPEG)
def test_frame_counts_of_the_ffmpeg_command(fps: float, count: int, expected: int) -> None:
    assert len(shown(as_ffmpeg(regular(count, fps), 3))) == expected


def test_frames_that_the_ffmpeg_command_picks() -> None:
    assert shown(as_ffmpeg(regular(60, 25), 3)) == [0, 1, 7, 15, 24, 32, 40, 49, 57]
    assert shown(as_ffmpeg(regular(5, 2), 3)) == [0, 0, 1, 2, 2, 3, 4, 4]
    gap = [TimedFrame(0.0, 0.1, 0), TimedFrame(2.0, 0.1, 1)]
    assert shown(as_ffmpeg(iter(gap), 3)) == [0, 0, 0, 0, 0, 1]


def test_fixed_timing_shows_every_frame_at_its_own_time() -> None:
    assert shown(at_constant_rate(regular(60, 25), 3)) == [0, 8, 16, 25, 33, 41, 50, 58]  # floor(25 k / 3) at k / 3 s
    assert shown(at_constant_rate(regular(6, 2), 3)) == [0, 0, 1, 2, 2, 3, 4, 4, 5]
    assert shown(at_constant_rate(regular(1, 30), 3)) == [0]
    assert shown(at_constant_rate(regular(7, 3), 3)) == list(range(7))
    assert shown(at_constant_rate(iter([]), 3)) == []
    late = [TimedFrame(0.5, 0.1, 0), TimedFrame(0.6, 0.4, 1)]  # nothing at 0 s: the first frame stands in
    assert shown(at_constant_rate(iter(late), 3)) == [0, 0, 1]


# ---- one file ----


def facts(path: Path) -> dict[str, object]:
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        sound = container.streams.audio
        return {
            "size": (video.codec_context.width, video.codec_context.height),
            "fps": float(video.base_rate),
            "frames": video.frames,
            "sound": [stream.codec_context.name for stream in sound],
            "seconds": [float(stream.duration * stream.time_base) for stream in sound],
        }


def test_a_copy_shows_the_right_pictures_at_the_right_time(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", 60, 25, (64, 48))
    done = transcode(source, tmp_path / "b.mp4", TranscodeRecipe(short_side=48, crf=1))
    assert (done.width, done.height, done.frames, done.copied) == (64, 48, 8, False)
    assert done.bytes == (tmp_path / "b.mp4").stat().st_size
    copies, originals = true_frames(tmp_path / "b.mp4"), true_frames(source)
    for tick, copy in enumerate(copies):
        errors = [np.abs(copy.astype(int) - original).mean() for original in originals]
        assert int(np.argmin(errors)) == tick * 25 // 3
        assert min(errors) < 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_every_reader_seeks_exactly_in_a_copy(tmp_path: Path) -> None:
    transcode(make_clip(tmp_path / "a.mp4", 120, 10, (64, 48)), tmp_path / "b.mp4", SMALL)
    with open_video(tmp_path / "b.mp4", "decord") as decord, open_video(tmp_path / "b.mp4", "pyav") as pyav:
        assert len(decord) == len(pyav) == 36
        assert np.array_equal(decord.read([35, 3, 20]), pyav.read([35, 3, 20]))
    with av.open(str(tmp_path / "b.mp4")) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert keys == [i % 3 == 0 for i in range(36)]


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_turned_videos_become_upright(tmp_path: Path, rotation: int) -> None:
    source = make_clip(tmp_path / "a.mp4", 5, 5, (64, 48), rotation=rotation)
    transcode(source, tmp_path / "b.mp4", TranscodeRecipe(short_side=48, fps=5, crf=1))
    copies, upright = true_frames(tmp_path / "b.mp4"), true_frames(source)
    assert copies.shape == upright.shape
    assert np.abs(copies.astype(int) - upright).mean() < 4
    assert facts(tmp_path / "b.mp4")["size"] == ((48, 64) if rotation != 180 else (64, 48))


@pytest.mark.parametrize("pixels", ["yuvj420p", "yuv444p", "yuv420p10le"])
def test_colours_survive_all_pixel_formats(tmp_path: Path, pixels: str) -> None:
    source = make_clip(tmp_path / "a.mp4", 3, 3, (64, 48), pixels=pixels, audio=False, codec_options={"crf": "1"})
    transcode(source, tmp_path / "b.mp4", TranscodeRecipe(short_side=48, crf=1))
    truth = np.stack([picture(i, 64, 48) for i in range(3)])
    assert np.abs(true_frames(tmp_path / "b.mp4").astype(int) - truth).mean() < 8


def test_odd_sizes_variable_rate_and_other_containers(tmp_path: Path) -> None:
    odd = make_clip(tmp_path / "odd.mp4", 10, 5, (65, 49), pixels="yuv444p", audio=False)
    assert (transcode(odd, tmp_path / "1.mp4", SMALL).width, 32) == (42, 32)
    variable = make_clip(tmp_path / "v.mkv", 4, 10, pts=[0, 1, 2, 20], audio=False)
    assert transcode(variable, tmp_path / "2.mkv", SMALL).frames in (6, 7)  # until 2.0 s and one frame
    assert transcode(make_gif(tmp_path / "g.gif"), tmp_path / "3.mp4", SMALL).frames == 3
    avi = make_clip(tmp_path / "a.avi", 20, 10, codec="mpeg4", audio=False)
    assert transcode(avi, tmp_path / "4.mp4", SMALL).frames == 6
    with av.open(str(tmp_path / "2.mkv")) as container:
        assert "matroska" in container.format.name


def test_sound_is_dropped_or_kept(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", 60, 30)
    transcode(source, tmp_path / "b.mp4", SMALL)
    assert facts(tmp_path / "b.mp4")["sound"] == []
    transcode(source, tmp_path / "c.mp4", TranscodeRecipe(short_side=32, audio="copy"))
    kept = facts(tmp_path / "c.mp4")
    assert kept["sound"] == ["aac"]
    assert kept["seconds"] == pytest.approx([2.0], abs=0.15)


def test_sound_that_mp4_cannot_hold_becomes_aac(tmp_path: Path) -> None:
    source = tmp_path / "a.mkv"
    with av.open(str(source), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        wave = (np.sin(np.arange(32000) / 20) * 9000).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(sound.encode(frame))
        for i in range(20):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture(i, 64, 48))))
        container.mux(video.encode())
    transcode(source, tmp_path / "b.mp4", TranscodeRecipe(short_side=32, audio="copy"))
    kept = facts(tmp_path / "b.mp4")
    assert (kept["sound"], kept["frames"]) == (["aac"], 6)
    assert kept["seconds"] == pytest.approx([2.0], abs=0.15)


def bad_files(folder: Path) -> dict[str, Path]:
    (folder / "junk.mp4").write_bytes(b"junk" * 50)
    (folder / "empty.mp4").touch()
    return {
        "junk": folder / "junk.mp4",
        "empty": folder / "empty.mp4",
        "sound": make_audio_only(folder / "sound.mp4"),
    }


def test_unreadable_files_are_reported_or_copied(tmp_path: Path) -> None:
    for path in bad_files(tmp_path).values():
        with pytest.raises(VideoError):
            transcode(path, tmp_path / "out.mp4", SMALL)
        assert not list(tmp_path.glob("*out*"))
        done = transcode(path, tmp_path / f"copy-{path.name}", UPSTREAM)
        assert done == Transcoded(path.stat().st_size, 0, 0, 0, copied=True)
        assert (tmp_path / f"copy-{path.name}").read_bytes() == path.read_bytes()


def test_a_truncated_file_is_reported_or_cut_short(tmp_path: Path) -> None:
    path = make_truncated(tmp_path / "cut.mp4")
    with pytest.raises(VideoError, match="truncated"):
        transcode(path, tmp_path / "out.mp4", SMALL)
    assert transcode(path, tmp_path / "out.mp4", UPSTREAM).frames > 0


def test_a_broken_clock_is_reported(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mkv", 4, 10, pts=[0, 1, 2, 50_000], audio=False)
    with pytest.raises(VideoError, match="time stamps jump by 5000 s"):
        transcode(path, tmp_path / "b.mp4", SMALL)


def test_nothing_half_written_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_clip(tmp_path / "a.mp4", audio=False)

    def full(temporary: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "_replace", full)
    with pytest.raises(OSError, match="No space left"):
        transcode(source, tmp_path / "b.mp4", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    "values", [{"rule": "fixd"}, {"audio": "yes"}, {"short_side": 223}, {"fps": 0.0}, {"crf": 60}, {"keyint": 0}]
)
def test_wrong_settings_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(values))}.*expected"):
        TranscodeRecipe(**values)  # type: ignore[arg-type]


@pytest.mark.real
def test_real_odd_clips(shared_data: Path, tmp_path: Path) -> None:
    expected = {
        "animated.gif": ((298, 224), 6, []),
        "dog_with_audio.mp4": ((398, 224), 19, ["aac"]),
        "flipping_a_pancake.mkv": ((396, 224), 31, ["opus"]),
        "mpeg4_40_frames.mp4": ((298, 224), 24, []),
        "portrait_skateboarding_dog.mp4": ((224, 398), 43, ["aac"]),
    }
    for name, (size, frames, sound) in expected.items():
        transcode(shared_data / "clips" / "odd" / name, tmp_path / f"{name}.mp4", TranscodeRecipe(audio="copy"))
        found = facts(tmp_path / f"{name}.mp4")
        assert (found["size"], found["frames"], found["sound"], found["fps"]) == (size, frames, sound, 3.0), name


# ---- folders ----


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    (folder / "deep").mkdir(parents=True)
    make_clip(folder / "a.mp4", 6, 3, audio=False)
    make_clip(folder / "deep" / "a.mp4", 9, 3, audio=False)
    make_gif(folder / "b.gif")
    (folder / "captions.csv").write_text("video,caption\n")
    (folder / ".hidden.mp4").write_bytes(b"x")
    return folder


def copies(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.*")
        if not path.name.startswith((".", "transcode"))
    )


def test_a_folder_keeps_its_shape_and_is_done_once(videos: Path, tmp_path: Path) -> None:
    (videos / "junk.mp4").write_bytes(b"junk" * 50)
    out = tmp_path / "out"
    calls: list[object] = []
    result = transcode_folder(
        videos, out, SMALL, ONE, begin=lambda *a: calls.append(a), advance=lambda: calls.append(1)
    )
    assert (result.made, result.before, result.others, result.copied) == (3, 0, 1, 0)
    assert [(problem.video_id, "not a readable video" in problem.reason) for problem in result.problems] == [
        ("junk.mp4", True)
    ]
    assert copies(out) == ["a.mp4", "b.mp4", "deep/a.mp4"]
    assert calls == [(4, 0), 1, 1, 1, 1]
    before = {name: (out / name).stat().st_mtime_ns for name in copies(out)}
    again = transcode_folder(videos, out, SMALL, ONE)
    assert (again.made, again.before, len(again.problems)) == (0, 3, 1)
    assert {name: (out / name).stat().st_mtime_ns for name in copies(out)} == before
    make_clip(videos / "a.mp4", 12, 3, audio=False)  # a new version
    (out / "deep" / "a.mp4").unlink()  # a lost copy
    mended = transcode_folder(videos, out, SMALL, ONE)
    assert (mended.made, mended.before) == (2, 1)
    rows = [json.loads(line) for line in (out / "transcode.jsonl").read_text().splitlines()]
    assert [row["frames"] for row in rows if row["file"] == "a.mp4"] == [6, 12]


def test_names_that_would_collide_stay_apart(videos: Path, tmp_path: Path) -> None:
    make_gif(videos / "a.gif")
    transcode_folder(videos, tmp_path / "out", SMALL, ONE)
    assert copies(tmp_path / "out") == ["a.gif.mp4", "a.mp4", "b.mp4", "deep/a.mp4"]
    transcode_folder(videos, tmp_path / "kept", SMALL, FolderOptions(workers=1, keep_suffix=True))
    assert copies(tmp_path / "kept") == ["a.gif.mp4", "a.mp4", "b.gif.mp4", "deep/a.mp4"]


def test_another_recipe_needs_another_folder(videos: Path, tmp_path: Path) -> None:
    transcode_folder(videos, tmp_path / "out", SMALL, ONE)
    with pytest.raises(UserError, match=r"holds copies made with short_side=32, expected .*another task\.output"):
        transcode_folder(videos, tmp_path / "out", TranscodeRecipe(short_side=48), ONE)


def test_an_interrupted_run_leaves_no_trace(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    transcode_folder(videos, out, SMALL, ONE)
    (out / "deep" / ".a.mp4.123.part").write_bytes(b"half")
    with (out / "transcode.jsonl").open("a") as table:
        table.write('{"file": "a.m')
    assert transcode_folder(videos, out, SMALL, ONE).before == 3
    assert not (out / "deep" / ".a.mp4.123.part").exists()
    assert (out / "transcode.jsonl").read_text().endswith("}\n")
    (out / "transcode.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match="is damaged"):
        transcode_folder(videos, out, SMALL, ONE)


def test_wrong_folders(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder"):
        transcode_folder(tmp_path / "none", tmp_path / "out", SMALL, ONE)
    with pytest.raises(UserError, match=r"task\.output is the folder of the videos"):
        transcode_folder(videos, videos, SMALL, ONE)
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="no videos in"):
        transcode_folder(tmp_path / "bare", tmp_path / "out", SMALL, ONE)
    inside = transcode_folder(videos, videos / "small", SMALL, ONE)
    assert transcode_folder(videos, videos / "small", SMALL, ONE) == FolderResult(before=inside.made, others=1)


def test_a_source_that_vanished_is_one_failure_and_a_full_disk_ends_the_run(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job("gone.mp4", videos / "gone.mp4", tmp_path / "gone.mp4", SMALL)
    with pytest.raises(VideoError, match="No such file"):
        folder_module._work(job)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder_module, "run_each", lambda work, jobs, **_: ((job, work(job)) for job in jobs))
    monkeypatch.setattr(folder_module, "transcode", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left.*finished copies are kept"):
        transcode_folder(videos, tmp_path / "out", SMALL, ONE)


# ---- workers ----


def double(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 4:
        time.sleep(60)
    if number == 5:
        raise UserError("found 5")
    if number == 99:
        raise KeyError("a bug")
    return 2 * number


def test_a_crash_a_hang_and_a_mistake_cost_one_item_each() -> None:
    results = dict(run_each(double, list(range(8)), workers=2, timeout_s=4))
    assert {number: result for number, result in results.items() if number not in (3, 4, 5)} == {
        0: 0,
        1: 2,
        2: 4,
        6: 12,
        7: 14,
    }
    assert results[3] == Failed("the process that worked on it died (exit code -9)")
    assert results[4] == Failed("took longer than 4 s")
    assert results[5] == Failed("found 5")


def test_a_bug_in_a_worker_is_raised() -> None:
    with pytest.raises(RuntimeError, match=r"while working on 99:(?s:.*)KeyError: 'a bug'"):
        list(run_each(double, [99], workers=1, timeout_s=0))
    assert list(run_each(double, [], workers=1, timeout_s=0)) == []
    assert Job("a", Path("a"), Path("b"), SMALL).name == "a"
