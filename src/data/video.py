"""Opening a video file: one reader over three decoding libraries, a time limit, and errors that name the file.

Readers are made where they are used (inside a worker's `__getitem__`), hold no state beyond the file and are closed
after use; nothing here survives a fork or is pickled. Each uses one decoder thread.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

import numpy as np

from src.data.decoders import DecodeError, Decoder, DecordDecoder, PyavDecoder, TorchcodecDecoder, scan
from src.data.image_decoder import ImageDecoder, is_image
from src.errors import UserError

Backend = Literal["auto", "decord", "pyav", "torchcodec"]
DEFAULT_TIMEOUT_S = 60.0


class VideoError(UserError):
    """One video cannot be used. The data set goes on without it; the report lists it."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str]]:
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class Problem:
    """Something that was left out or is used in part, and why; one line of `problems.jsonl`.

    Attributes:
        video_id: the video concerned.
        path: its file.
        reason: what is wrong with it.
        kind: what it is counted as.
        part: part of the split; "" = unknown to whoever met it.
        kept: the video is used all the same, without what could not be read.
    """

    video_id: str
    path: str
    reason: str
    kind: str = "unreadable video"
    part: str = ""
    kept: bool = False


def append_problem(file: Path, problem: Problem) -> None:
    """Add a line to a file that several workers write: one `write` in append mode, which the system keeps whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(asdict(problem), ensure_ascii=False) + "\n"
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read_problems(file: Path) -> list[Problem]:
    """The distinct problems of a file in order of first appearance; none when the file does not exist."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(Problem(**json.loads(line)) for line in lines if line.strip()))


class VideoShape(NamedTuple):
    """Size and length of a video as it is decoded.

    Attributes:
        width, height: of its frames, pixels.
        num_frames: of the video, or of its segment.
        start: position of the first of them in the file.
    """

    width: int
    height: int
    num_frames: int
    start: int = 0


class VideoReader(Protocol):
    """Frames of one file by their index in display order."""

    @property
    def backend(self) -> str:
        """The library that decodes: decord, pyav, torchcodec, or pillow for pictures."""
        ...

    @property
    def fps(self) -> float:
        """Average frames per second."""
        ...

    @property
    def duration_s(self) -> float: ...

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """uint8 RGB (n, H, W, 3), upright, one row per index; indices may be in any order and repeat.

        Raises:
            VideoError: for an index outside the file, undecodable data, or when the time limit is over.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


def open_video(path: Path | str, backend: Backend = "auto", timeout_s: float = DEFAULT_TIMEOUT_S) -> VideoReader:
    """Open a file for reading frames.

    Args:
        path: any container that FFmpeg reads, or a picture, which is a video of one frame.
        backend: "auto" = decord where it is installed and reads the file exactly, else PyAV. The others are used
            as named: "decord" refuses the files it would read wrongly.
        timeout_s: limit on the seconds spent in the decoder for this file, opening and reading together; 0 = none.

    Raises:
        VideoError: missing, not a video, no frames, truncated, or no answer in time.
        UserError: when the backend is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise VideoError(path, "file not found")
    if not path.is_file():
        raise VideoError(path, "not a regular file")
    if path.stat().st_size == 0:
        raise VideoError(path, "the file is empty")
    return _LimitedReader(path, resolve_backend(backend), timeout_s)


@cache
def resolve_backend(backend: Backend) -> Backend:
    """Check that the library is there; "auto" becomes "pyav" where decord is not.

    Raises:
        UserError: naming what to install.
    """
    if backend == "auto":
        return "auto" if importlib.util.find_spec("decord") else "pyav"
    remedies = {
        "decord": "decord has no wheel for this platform; use backend=pyav",
        "pyav": "pip install av",
        "torchcodec": "pip install 'videotext[torchcodec]' and FFmpeg's shared libraries, or use backend=auto",
    }
    if backend not in remedies:
        raise UserError(f"found video backend {backend!r}, expected auto, {', '.join(remedies)}; use backend=auto")
    if backend == "torchcodec":
        try:
            # The package imports without FFmpeg; its decoders do not.
            importlib.import_module("torchcodec.decoders")
        except (ImportError, OSError, RuntimeError) as error:
            raise UserError(
                f"found no working torchcodec, which backend=torchcodec needs; {remedies[backend]}"
            ) from error
    elif importlib.util.find_spec({"pyav": "av"}.get(backend, backend)) is None:
        raise UserError(f"found no package for backend={backend}; {remedies[backend]}")
    return backend


def _open_decoder(path: Path, backend: Backend) -> Decoder:
    if is_image(path):
        return ImageDecoder(path)
    found = scan(path)
    if backend == "torchcodec":
        return TorchcodecDecoder(path, found)
    if backend == "decord":
        return DecordDecoder(path, found)
    if backend == "auto" and found.untrusted is None:
        try:
            return DecordDecoder(path, found)
        except DecodeError:
            # Its FFmpeg is of 2018: codecs such as AV1 are unknown to it.
            return PyavDecoder(path, found)
    return PyavDecoder(path, found)


class _Watchdog:
    """Runs calls one after another in a thread of its own and stops waiting for it when the time is over.

    A C call that hangs cannot be interrupted from within its process. It can be left behind: decord (ctypes) and PyAV
    release the interpreter lock while they decode, so the caller goes on. The abandoned thread keeps the decoder, its
    memory and a file handle until the call returns, then ends by itself; being a daemon it does not hold up exit. It
    would be unsafe to close the decoder from outside, and nobody does.
    """

    _idle: ClassVar[list[_Watchdog]] = []
    _pid: ClassVar[int] = 0

    def __init__(self, limit_s: float) -> None:
        self.stop = threading.Event()
        self._left_s = limit_s
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="video-decoder", daemon=True)
        self._thread.start()

    @classmethod
    def take(cls, limit_s: float) -> _Watchdog:
        """An idle one of this process, else a new one: a fresh thread per file costs 2 ms of page faults."""
        if cls._pid != os.getpid():  # threads do not survive a fork
            cls._idle, cls._pid = [], os.getpid()
        try:
            watchdog = cls._idle.pop()
        except IndexError:
            return cls(limit_s)
        watchdog._left_s = limit_s
        return watchdog

    def give_back(self) -> None:
        """Keep the thread for the next file; only after every call was answered."""
        if self._idle:
            self.end()
        else:
            self._idle.append(self)

    def run(self, call: Callable[[], Any]) -> Any:
        """The call's result or its exception.

        Raises:
            TimeoutError: when the time for all calls together is used up.
        """
        start = time.monotonic()
        self._calls.put(call)
        try:
            answer, error = self._answers.get(timeout=max(self._left_s, 0.001))
        except queue.Empty:
            self.end()
            raise TimeoutError from None
        self._left_s -= time.monotonic() - start
        if error is not None:
            raise error
        return answer

    def end(self) -> None:
        self.stop.set()
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                result: tuple[Any, BaseException | None] = (call(), None)
            except BaseException as error:  # noqa: BLE001  (handed to the caller, who raises it)
                result = (None, error)
            del call
            self._answers.put(result)


class _LimitedReader:
    """A decoder whose every call counts against one time limit and whose errors name the file."""

    def __init__(self, path: Path, backend: Backend, limit_s: float) -> None:
        self._path = path
        self._limit_s = limit_s
        self._backend = backend
        self._closed = False
        self._watchdog = _Watchdog.take(limit_s) if limit_s > 0 else None
        self._stop = self._watchdog.stop if self._watchdog else threading.Event()
        self._decoder: Decoder = self._run(lambda: _open_decoder(path, backend))

    def _run(self, call: Callable[[], Any]) -> Any:
        try:
            return self._watchdog.run(call) if self._watchdog else call()
        except DecodeError as error:
            self._end()
            raise VideoError(self._path, str(error)) from error
        except TimeoutError:
            raise VideoError(self._path, f"no answer from the decoder within {self._limit_s:g} s") from None
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        if self._watchdog:
            self._watchdog.end()

    @property
    def backend(self) -> str:
        return self._decoder.name

    @property
    def fps(self) -> float:
        return self._decoder.fps

    @property
    def duration_s(self) -> float:
        return len(self) / self.fps

    def __len__(self) -> int:
        return self._decoder.num_frames

    def read(self, indices: Sequence[int]) -> np.ndarray:
        if self._closed:
            raise ValueError(f"{self._path}: the reader is closed")
        distinct, places = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        if len(distinct) == 0:
            raise VideoError(self._path, "no frame index was asked for")
        if distinct[0] < 0 or distinct[-1] >= len(self):
            raise VideoError(self._path, f"frames {distinct[0]} to {distinct[-1]} asked for, it has {len(self)}")
        frames_NHWC = self._run(lambda: self._read(distinct.tolist()))
        return frames_NHWC if len(distinct) == len(places) and np.all(np.diff(places) > 0) else frames_NHWC[places]

    def _read(self, distinct: list[int]) -> np.ndarray:
        try:
            return self._decoder.read(distinct, self._stop)
        except DecodeError:
            if self._backend != "auto" or self._decoder.name != "decord" or self._stop.is_set():
                raise
            # decord opened a file that its old FFmpeg cannot decode; PyAV has the last word on whether it is broken.
            self._decoder = PyavDecoder(self._path, scan(self._path))
            return self._decoder.read(distinct, self._stop)

    def close(self) -> None:
        """Free the decoder in the thread that made it."""
        if self._closed:
            return
        self._closed = True
        if self._watchdog is None:
            self._decoder.close()
        elif not self._stop.is_set():
            self._run(self._decoder.close)
            self._watchdog.give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
