"""Writes the toy benchmark once and finds it again: `<folder>/<fingerprint>/{manifest,annotation}.json, videos/`."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from src.data.toy.audio import synthesise
from src.data.toy.captions import captions_of
from src.data.toy.encode import write_mp4
from src.data.toy.render import render
from src.data.toy.scenes import GENERATOR_VERSION, Clip, ToyParams, draw_clips

ANNOTATION, MANIFEST, VIDEOS = "annotation.json", "manifest.json", "videos"
log = logging.getLogger(__name__)


def annotation_json(params: ToyParams, clips: Iterable[Clip]) -> str:
    """The annotation file; the same parameters give the same bytes."""
    videos = [
        {
            "id": clip.id,
            "file": f"{VIDEOS}/{clip.id}.mp4",
            "part": clip.part,
            "group": clip.group,
            "skill": clip.scene.skill,
            "scene": asdict(clip.scene),
            "captions": captions_of(clip, params.captions_per_clip),
        }
        for clip in clips
    ]
    return json.dumps({"videos": videos}, indent=1) + "\n"


def write_clip(clip: Clip, params: ToyParams, folder: Path) -> tuple[str, int]:
    """Render and encode one clip; returns the hash of its pixels and samples, and its size in bytes."""
    frames_THWC = render(clip, params)
    samples = synthesise(clip.scene.sound, params.duration_s)
    path = folder / f"{clip.id}.mp4"
    write_mp4(path, frames_THWC, params.fps, samples)
    content = hashlib.sha256(frames_THWC.tobytes() + samples.tobytes()).hexdigest()
    return content[:16], path.stat().st_size


def is_complete(folder: Path) -> bool:
    """Whether the folder holds everything its manifest lists, at the listed sizes."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text())["bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; it vanishes with the process, so nothing has to be cleaned up after a crash."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _write_all(params: ToyParams, folder: Path, num_workers: int) -> None:
    clips = draw_clips(params)
    (folder / VIDEOS).mkdir(parents=True)
    text = annotation_json(params, clips)
    (folder / ANNOTATION).write_text(text)
    write = partial(write_clip, params=params, folder=folder / VIDEOS)
    # Threads are enough: drawing arrays and encoding release the interpreter's lock.
    with ThreadPoolExecutor(num_workers) as pool:
        written = list(pool.map(write, clips))
    sizes = {f"{VIDEOS}/{clip.id}.mp4": size for clip, (_, size) in zip(clips, written, strict=True)}
    manifest = {
        "generator_version": GENERATOR_VERSION,
        "params": asdict(params),
        "content": {clip.id: content for clip, (content, _) in zip(clips, written, strict=True)},
        "bytes": {ANNOTATION: len(text.encode()), **sizes},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def ensure_built(params: ToyParams, folder: Path, num_workers: int = 2) -> Path:
    """Return the benchmark's folder, rendering it first if it is missing or incomplete.

    Safe against several processes at once and against being killed: the clips are written into a temporary
    neighbour which is renamed when all of them are there.

    Args:
        params: content of the benchmark.
        folder: where all toy benchmarks live, one sub-folder per fingerprint.
        num_workers: threads that render and encode.
    """
    final = folder / params.fingerprint
    if is_complete(final):
        return final
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{params.fingerprint}.lock"):
        if is_complete(final):  # another process was faster
            return final
        start = time.monotonic()
        temporary = folder / f"{params.fingerprint}.partial"
        for leftover in (temporary, final):
            shutil.rmtree(leftover, ignore_errors=True)
        _write_all(params, temporary, num_workers)
        temporary.replace(final)
        log.info("generated the toy benchmark in %.1f s: %s", time.monotonic() - start, final)
    return final
