from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from src.data import decoders, video
from src.data.decoders import DecodeError, DecordDecoder, PyavDecoder, import_decord, scan
from src.data.video import Backend, Problem, VideoError, append_problem, open_video, read_problems, resolve_backend
from src.errors import UserError
from tests.clips import cut_beginning, make_audio_only, make_clip, make_gif, make_truncated, true_frames

OPEN_GOP = "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0"
IRREGULAR = np.cumsum(np.random.default_rng(0).integers(1, 5, 30)).tolist()

KINDS: dict[str, Callable[[Path], Path]] = {
    "plain.mp4": make_clip,
    "silent.mkv": lambda p: make_clip(p, audio=False),
    "vp9.webm": lambda p: make_clip(p, codec="libvpx-vp9", audio=False),
    "vp8_hidden_frames.webm": lambda p: make_clip(
        p, codec="libvpx", codec_options={"auto-alt-ref": "1", "lag-in-frames": "16"}, audio=False
    ),
    "odd_size.mp4": lambda p: make_clip(p, size=(65, 47), pixels="yuv444p"),
    "one_frame.mp4": lambda p: make_clip(p, 1),
    "variable_rate.mp4": lambda p: make_clip(p, pts=IRREGULAR, audio=False),
    "variable_rate.mkv": lambda p: make_clip(p, pts=IRREGULAR, audio=False),
    "portrait.mp4": lambda p: make_clip(p, rotation=90),
    "upside_down.mp4": lambda p: make_clip(p, rotation=180),
    "gif.gif": make_gif,
    "avi.avi": lambda p: make_clip(p, codec="mpeg4", codec_options={"bf": "2"}, audio=False),
    "b_frames.mp4": lambda p: make_clip(p, codec="mpeg4", codec_options={"bf": "2"}),
    "open_gop.mp4": lambda p: make_clip(p, codec_options={"x264-params": OPEN_GOP}),
    "edit_list.mp4": lambda p: cut_beginning(make_clip(p, audio=False), 0.25),
    "fragmented.mp4": lambda p: make_clip(
        p, size=(96, 64), container_options={"movflags": "frag_keyframe+empty_moov"}, audio=False
    ),
    "transport.ts": lambda p: make_clip(p, audio=False),
}
# Files that decord reads without an error and wrongly.
DECORD_IS_WRONG = {"avi.avi", "b_frames.mp4", "open_gop.mp4", "edit_list.mp4", "fragmented.mp4", "transport.ts"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {name: make(folder / name) for name, make in KINDS.items()}


def read(path: Path, indices: list[int], backend: Backend = "auto") -> np.ndarray:
    with open_video(path, backend, timeout_s=20) as reader:
        return reader.read(indices)


@pytest.mark.parametrize("backend", ["auto", "pyav"])
@pytest.mark.parametrize("name", KINDS)
def test_any_frame_of_any_kind_is_the_true_one(clips: dict[str, Path], name: str, backend: Backend) -> None:
    truth = true_frames(clips[name])
    with open_video(clips[name], backend) as reader:
        assert len(reader) == len(truth)
        np.testing.assert_array_equal(reader.read(range(len(truth))), truth)
        spread = np.linspace(0, len(truth) - 1, 5).astype(int).tolist()
        np.testing.assert_array_equal(reader.read(spread), truth[spread])
    for index in {0, len(truth) // 2, len(truth) - 1}:
        np.testing.assert_array_equal(read(clips[name], [index], backend)[0], truth[index])


def test_decord_is_used_where_it_can_be_trusted(clips: dict[str, Path]) -> None:
    used = {name: open_video(path) for name, path in clips.items()}
    for reader in used.values():
        reader.close()
    assert {"plain.mp4", "silent.mkv", "portrait.mp4", "vp9.webm"} <= {
        n for n, r in used.items() if r.backend == "decord"
    }
    assert {n for n, r in used.items() if r.backend == "pyav"} >= DECORD_IS_WRONG | {"gif.gif"}


@pytest.mark.parametrize("name", sorted(DECORD_IS_WRONG))
def test_decord_alone_would_return_other_frames(clips: dict[str, Path], name: str) -> None:
    """The reason for `Scan.untrusted`: should a new decord pass, the rule can go."""
    decord = import_decord()
    truth = true_frames(clips[name])
    wrong = 0
    for index in range(len(truth)):
        raw = decord.VideoReader(str(clips[name]), ctx=decord.cpu(0), num_threads=1)
        wrong += not np.array_equal(raw.get_batch([index]).asnumpy()[0], truth[index])
    assert wrong
    with pytest.raises(VideoError, match=r"decord would return wrong frames.*backend=auto"):
        open_video(clips[name], "decord")


def test_indices_may_repeat_and_come_in_any_order(clips: dict[str, Path]) -> None:
    truth = true_frames(clips["plain.mp4"])
    for backend in ("decord", "pyav"):
        np.testing.assert_array_equal(read(clips["plain.mp4"], [9, 2, 2, 29], backend), truth[[9, 2, 2, 29]])


@pytest.mark.parametrize("indices", [[30], [-1, 3], []])
def test_indices_outside_the_file_are_errors(clips: dict[str, Path], indices: list[int]) -> None:
    with pytest.raises(VideoError, match="asked for"):
        read(clips["plain.mp4"], indices)


def test_rate_and_duration(clips: dict[str, Path]) -> None:
    with open_video(clips["plain.mp4"]) as reader:
        assert reader.fps == 30
        assert reader.duration_s == 1
    irregular = 29 * 30 / (IRREGULAR[-1] - IRREGULAR[0])
    for name in ("variable_rate.mp4", "variable_rate.mkv"):  # the mkv's header claims 30
        with open_video(clips[name]) as reader:
            assert reader.fps == pytest.approx(irregular, rel=0.05)


def test_ntsc_rate_is_the_stated_one(tmp_path: Path) -> None:
    """CLIP4Clip truncates it: 30 measured as 29.998 from Matroska's milliseconds would drift."""
    for name, rate, whole in (("a.mkv", Fraction(30000, 1001), 29), ("b.mkv", Fraction(30), 30)):
        with open_video(make_clip(tmp_path / name, 45, rate, audio=False)) as reader:
            assert int(reader.fps) == whole


def test_portrait_is_upright(clips: dict[str, Path]) -> None:
    assert read(clips["portrait.mp4"], [0]).shape == (1, 64, 48, 3)
    assert read(clips["portrait.mp4"], [0], "pyav").shape == (1, 64, 48, 3)
    turned = read(clips["upside_down.mp4"], [3])[0][::-1, ::-1]
    # Two runs of x264 do not give the same bytes.
    assert np.abs(turned.astype(int) - read(clips["plain.mp4"], [3])[0]).mean() < 5


def broken(folder: Path) -> dict[str, tuple[Path, str]]:
    (folder / "folder.mp4").mkdir()
    (folder / "empty.mp4").touch()
    (folder / "junk.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "page.mp4").write_text("<html>404 not found</html>")
    no_index = make_clip(folder / "no_index.mp4")
    no_index.write_bytes(no_index.read_bytes()[: no_index.stat().st_size // 2])
    return {
        "missing": (folder / "missing.mp4", "file not found"),
        "folder": (folder / "folder.mp4", "not a regular file"),
        "empty": (folder / "empty.mp4", "the file is empty"),
        "junk": (folder / "junk.mp4", "not a readable video"),
        "page": (folder / "page.mp4", "not a readable video"),
        "no_index": (no_index, "not a readable video"),
        "audio": (make_audio_only(folder / "audio.mp4"), r"no video stream \(found audio\)"),
        "zero": (make_clip(folder / "zero.mp4", 0), "0 frames|no video stream"),
        "truncated": (make_truncated(folder / "truncated.mp4"), r"truncated: \d+ of 30 frames"),
    }


@pytest.mark.parametrize("backend", ["auto", "decord", "pyav"])
def test_every_broken_file_is_a_video_error_that_says_why(tmp_path: Path, backend: Backend) -> None:
    for path, reason in broken(tmp_path).values():
        with pytest.raises(VideoError, match=reason) as caught:
            read(path, [0], backend)
        assert caught.value.path == str(path)
        assert str(caught.value) == f"{path}: {caught.value.reason}"
        assert "\n" not in str(caught.value)


def test_truncated_mkv_gives_the_frames_that_are_left(tmp_path: Path) -> None:
    """Matroska has no index to compare with: the file is just shorter."""
    path = make_clip(tmp_path / "cut.mkv", 60, audio=False, size=(160, 120))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with open_video(path) as reader:
        assert 1 < len(reader) < 60
        assert reader.read([0, len(reader) - 2]).shape == (2, 120, 160, 3)


def test_packets_that_show_nothing_are_tolerated_up_to_a_share(clips: dict[str, Path]) -> None:
    found = scan(clips["gif.gif"])
    count = found.num_frames
    promise = decoders.Scan(count + 1, 10, (), (), "test")
    decoder = PyavDecoder(clips["plain.mp4"], decoders.Scan(31, 30, (), (), "test"))
    last = decoder.read([29, 30], threading.Event())
    np.testing.assert_array_equal(last[0], last[1])
    with pytest.raises(DecodeError, match=f"{count} of {count + 1} frames"):
        PyavDecoder(clips["gif.gif"], promise).read([count], threading.Event())


def test_auto_turns_to_pyav_when_decord_fails(clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: DecordDecoder, indices: object, stop: object) -> np.ndarray:
        raise DecodeError("decord failed (unknown codec)")

    monkeypatch.setattr(DecordDecoder, "read", fail)
    truth = true_frames(clips["plain.mp4"])
    with open_video(clips["plain.mp4"]) as reader:
        assert reader.backend == "decord"
        np.testing.assert_array_equal(reader.read([4, 20]), truth[[4, 20]])
        assert reader.backend == "pyav"
    with pytest.raises(VideoError, match="unknown codec"):
        read(clips["plain.mp4"], [0], "decord")


def test_a_hanging_library_call_costs_the_time_limit_and_no_more(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to hangs inside the C library, as a damaged file may."""
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    idle = [watchdog._thread for watchdog in video._Watchdog._idle]
    while video._Watchdog._idle:
        video._Watchdog._idle.pop().end()
    before = time.monotonic()
    with pytest.raises(VideoError, match=r"no answer from the decoder within 0\.3 s"):
        video._LimitedReader(pipe, "pyav", 0.3)
    assert time.monotonic() - before < 5
    threads = [t for t in threading.enumerate() if t.name == "video-decoder" and t not in idle]
    assert len(threads) == 1
    os.close(os.open(pipe, os.O_WRONLY))  # the call returns now, and the abandoned thread ends by itself
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def test_time_limit_counts_all_calls_together() -> None:
    watchdog = video._Watchdog.take(30)
    for _ in range(2):
        watchdog.run(lambda: time.sleep(0.2))
    assert watchdog._left_s <= 29.6
    watchdog._left_s = 0.05
    with pytest.raises(TimeoutError):
        watchdog.run(lambda: time.sleep(1))


def test_an_abandoned_decoder_stops_at_the_next_frame(clips: dict[str, Path]) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(DecodeError, match="abandoned"):
        PyavDecoder(clips["gif.gif"], scan(clips["gif.gif"])).read([5], stop)


def open_files() -> int:
    folder = Path("/proc/self/fd")  # Linux only
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def decoder_threads() -> int:
    return sum(thread.name == "video-decoder" for thread in threading.enumerate())


def test_one_idle_thread_and_no_file_stay_behind(clips: dict[str, Path]) -> None:
    read(clips["plain.mp4"], [0])
    before = open_files()
    readers = [open_video(path) for path in clips.values()]
    assert decoder_threads() >= len(readers)
    for reader in readers:
        reader.read([0])
        reader.close()
        reader.close()  # twice is as once
    deadline = time.monotonic() + 5
    while decoder_threads() > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert decoder_threads() == 1
    assert open_files() <= before
    with pytest.raises(ValueError, match="closed"):
        readers[0].read([0])


def test_an_abandoned_thread_is_never_used_again(clips: dict[str, Path]) -> None:
    watchdog = video._Watchdog.take(0.05)
    with pytest.raises(TimeoutError):
        watchdog.run(lambda: time.sleep(0.3))
    assert video._Watchdog.take(1) is not watchdog


def test_without_a_limit_nothing_is_threaded(clips: dict[str, Path]) -> None:
    before = decoder_threads()
    with open_video(clips["plain.mp4"], timeout_s=0) as reader:
        assert decoder_threads() == before
        assert reader.read([0]).shape == (1, 48, 64, 3)


def test_backends_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_backend.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        assert resolve_backend("auto") == "pyav"
        with pytest.raises(UserError, match=r"backend=decord.*use backend=pyav"):
            resolve_backend("decord")
    resolve_backend.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "torchcodec.decoders", None)
        with pytest.raises(UserError, match=r"torchcodec.*pip install 'videotext\[torchcodec\]'"):
            resolve_backend("torchcodec")
    with pytest.raises(UserError, match="backend 'ffmpeg', expected auto"):
        resolve_backend("ffmpeg")  # type: ignore[arg-type]
    resolve_backend.cache_clear()


def test_video_error_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "0 frames")))  # noqa: S301  (our own bytes)
    assert (error.path, error.reason, str(error)) == ("a.mp4", "0 frames", "a.mp4: 0 frames")
    assert isinstance(error, UserError)


def _append_many(file: Path, worker: int) -> None:
    for i in range(50):
        append_problem(file, Problem(f"{worker}-{i}", "p" * 300, "line\nbreak “é”"))


def test_problems_of_several_workers_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "run" / "problems.jsonl"
    assert read_problems(file) == []
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_many, args=(file, n)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    append_problem(file, Problem("0-0", "p" * 300, "line\nbreak “é”"))  # known already
    found = read_problems(file)
    assert {problem.video_id for problem in found} == {f"{n}-{i}" for n in range(2) for i in range(50)}
    assert len(found) == 100
    assert found[0].reason == "line\nbreak “é”"


@pytest.mark.real
def test_backends_agree_on_real_clips(shared_data: Path) -> None:
    """Every kind of source, and a spread of the many alike."""
    folder = shared_data / "clips"
    kinds = [sorted((folder / name).iterdir()) for name in ("msrvtt", "msvd", "activitynet", "odd")]
    paths = [path for kind in kinds for path in kind] + sorted((folder / "panda70m").iterdir())[::12]
    used = set()
    for path in paths:
        with open_video(path, "pyav") as exact, open_video(path) as reader:
            indices = np.linspace(0, len(exact) - 1, 12).astype(int).tolist()
            assert len(reader) == len(exact)
            np.testing.assert_array_equal(reader.read(indices), exact.read(indices), err_msg=str(path))
            used.add((path.suffix, reader.backend))
    assert {(".mp4", "decord"), (".mkv", "decord"), (".avi", "pyav"), (".gif", "pyav")} <= used


@pytest.mark.real
def test_real_avi_without_time_stamps_against_reading_from_the_start(shared_data: Path) -> None:
    path = shared_data / "clips" / "msvd" / "j2Dhf-xFUxU_13_20.avi"
    truth = true_frames(path)
    indices = list(range(0, len(truth), 8))
    np.testing.assert_array_equal(read(path, indices), truth[indices])


@pytest.mark.real
def test_real_portrait_clip_stands(shared_data: Path) -> None:
    assert read(shared_data / "clips" / "odd" / "portrait_skateboarding_dog.mp4", [0]).shape == (1, 1024, 576, 3)
