"""Transcoding a folder of videos into another one: in parallel, resumable, with a list of what was done.

The copies keep the folders and names of the source. `transcode.json` in the new folder says by which recipe they were
made, `transcode.jsonl` has one line per finished file; a source whose size or time changed is done again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TextIO

from src.data.transcode import TEMPORARY, Transcoded, TranscodeRecipe, transcode
from src.data.video import Problem, VideoError
from src.data.whole_file import write_whole
from src.data.worker_pool import Failed, run_each
from src.data.folder_lock import locked
from src.errors import UserError

RECIPE_FILE = "transcode.json"
DONE_FILE = "transcode.jsonl"
VIDEO_SUFFIXES = frozenset(
    (
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".m2ts", ".flv", ".wmv"),
        *(".asf", ".3gp", ".ogv", ".vob", ".divx"),
    )
)
# Containers that hold H.264 with time stamps; the copy keeps these endings, others become mp4.
KEPT_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")


@dataclass(frozen=True)
class FolderOptions:
    """How to go about it, which leaves no trace in the copies.

    Attributes:
        workers: processes; 0 = one per core.
        timeout_s: limit per file, seconds; 0 = none.
        keep_suffix: `a.gif` becomes `a.gif.mp4` instead of `a.mp4`, for data sets that name files with their ending.
    """

    workers: int = 0
    timeout_s: float = 600.0
    keep_suffix: bool = False


@dataclass
class FolderResult:
    """What a run did: copies made before, made now, sources copied as they are, sources that failed.

    `others` counts the files of the source that are no videos; they are left where they are.
    """

    before: int = 0
    made: int = 0
    copied: int = 0
    others: int = 0
    problems: list[Problem] = field(default_factory=list)


class Job(NamedTuple):
    """One file; `name` is its path below the source folder."""

    name: str
    source: Path
    target: Path
    recipe: TranscodeRecipe


class _Full(NamedTuple):
    """The answer of a worker that cannot write."""

    reason: str


def transcode_folder(
    source: Path,
    output: Path,
    recipe: TranscodeRecipe,
    options: FolderOptions,
    *,
    begin: Callable[[int, int], object] = lambda total, done: None,
    advance: Callable[[], object] = lambda: None,
) -> FolderResult:
    """Transcode every video below `source` that has no current copy below `output`.

    Args:
        source: the videos, at any depth.
        output: another folder; it may lie in `source`.
        recipe: that of the folder, if it holds copies.
        options: how.
        begin: called once with the number of videos and how many of them are done.
        advance: called for every video that was just dealt with.

    Raises:
        UserError: no videos, another recipe, another process at work in the folder, or it cannot be written.
    """
    names, others = _list_videos(source, output)
    if not names:
        raise UserError(f"no videos in {source} ({others} other files), expected {', '.join(KEPT_SUFFIXES)}, …")
    try:
        with locked(output):
            _check_recipe(output, recipe)
            targets, done = _targets(names, options.keep_suffix), _read_done(output)
            missing = [name for name in names if not _is_current(name, source, output, done)]
            jobs = [Job(name, source / name, output / targets[name], recipe) for name in missing]
            result = FolderResult(before=len(names) - len(jobs), others=others)
            begin(len(names), result.before)
            _run(jobs, output, options, result, advance)
            return result
    except OSError as error:
        reason = f"cannot write {output} ({error.strerror or error}); finished copies are kept"
        raise UserError(f"{reason}: make room or give another task.output, then run it again") from error


def _run(
    jobs: Sequence[Job], output: Path, options: FolderOptions, result: FolderResult, advance: Callable[[], object]
) -> None:
    for folder in {job.target.parent for job in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
    with (output / DONE_FILE).open("a", encoding="utf-8") as table:
        for job, answer in run_each(_work, jobs, workers=options.workers, timeout_s=options.timeout_s):
            if isinstance(answer, _Full):
                raise OSError(answer.reason)
            if isinstance(answer, Failed):
                result.problems.append(Problem(job.name, str(job.source), answer.reason, "video not transcoded"))
            else:
                made, stamp = answer
                _append(
                    table, {"file": job.name, "copy": job.target.relative_to(output).as_posix()} | stamp | asdict(made)
                )
                result.copied += made.copied
                result.made += not made.copied
            advance()


def _work(job: Job) -> tuple[Transcoded, dict[str, int]] | _Full:
    """In a worker. The source's stamp is taken before it is read: a change meanwhile makes the copy outdated."""
    try:
        stamp = _stamp(job.source)
        return transcode(job.source, job.target, job.recipe), stamp
    except OSError as error:
        if error.filename is not None and Path(error.filename) == job.source:
            raise VideoError(job.source, error.strerror or str(error)) from error
        return _Full(error.strerror or str(error))


def _append(table: TextIO, row: dict[str, Any]) -> None:
    table.write(json.dumps(row, ensure_ascii=False) + "\n")
    table.flush()
    os.fsync(table.fileno())


def _list_videos(source: Path, output: Path) -> tuple[list[str], int]:
    """Names of the videos in a fixed order, and the number of other files; hidden files and `output` do not count."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder, expected the folder of videos; give task.source=FOLDER")
    if output.resolve() == source.resolve():
        raise UserError(f"task.output is the folder of the videos itself ({source}); give another folder")
    inside = output.resolve()
    names, others = [], 0
    for folder, below, files in os.walk(source, followlinks=True):
        below[:] = sorted(b for b in below if not b.startswith(".") and (Path(folder) / b).resolve() != inside)
        for file in sorted(f for f in files if not f.startswith(".")):
            path = Path(folder, file)
            if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
                names.append(path.relative_to(source).as_posix())
            else:
                others += 1
    return names, others


def _targets(names: Sequence[str], keep_suffix: bool) -> dict[str, str]:
    """Source name -> name of the copy; where two would be equal, both get their full name and `.mp4`."""
    plain = {name: _target(name, keep_suffix) for name in names}
    taken: dict[str, int] = {}
    for target in plain.values():
        taken[target] = taken.get(target, 0) + 1
    return {name: target if taken[target] == 1 or target == name else f"{name}.mp4" for name, target in plain.items()}


def _target(name: str, keep_suffix: bool) -> str:
    path = PurePosixPath(name)
    if path.suffix.lower() in KEPT_SUFFIXES:
        return name
    return f"{name}.mp4" if keep_suffix else path.with_suffix(".mp4").as_posix()


def _stamp(path: Path) -> dict[str, int]:
    facts = path.stat()
    return {"source_bytes": facts.st_size, "source_mtime_ns": facts.st_mtime_ns}


def _is_current(name: str, source: Path, output: Path, done: dict[str, dict[str, Any]]) -> bool:
    row = done.get(name)
    if row is None or {key: row.get(key) for key in ("source_bytes", "source_mtime_ns")} != _stamp(source / name):
        return False
    copy = output / row["copy"]
    return copy.is_file() and copy.stat().st_size == row["bytes"]


def _read_done(output: Path) -> dict[str, dict[str, Any]]:
    """Name -> its latest row. A last line that an interrupted run left torn is cut off."""
    path = output / DONE_FILE
    if not path.is_file():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        write_whole(path, whole)
    try:
        rows = [json.loads(line) for line in whole.decode().splitlines()]
        return {row["file"]: row for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it, and all copies are made again") from error


def _check_recipe(output: Path, recipe: TranscodeRecipe) -> None:
    path = output / RECIPE_FILE
    facts = {"fingerprint": recipe.fingerprint, "recipe": recipe.facts()}
    if not path.is_file():
        write_whole(path, json.dumps(facts, indent=1).encode())
    else:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["recipe"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); remove it, or give another task.output") from error
        differing = [f"{key}={found.get(key)}" for key, value in recipe.facts().items() if found.get(key) != value]
        if differing:
            raise UserError(
                f"{output} holds copies made with {', '.join(differing)}, expected those of this run; "
                "give another task.output, or these settings"
            )
    for leftover in output.rglob(f".*{TEMPORARY}"):
        leftover.unlink(missing_ok=True)
