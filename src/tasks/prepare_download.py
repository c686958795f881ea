"""task=prepare download=true: fetch and unpack the published archives of a data set, and say what is left to do."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from src.data.archive_manifest import Archive, Manifest, choose, read_file, read_manifest
from src.data.download import Checksum, FetchOptions
from src.data.obtain import ObtainOptions, Outcome, in_words, obtain
from src.errors import UserError

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> None:
    """Obtain `task.archives`, print what became of each, the steps by hand and the expected layout.

    Raises:
        UserError: an archive that was asked for, or is fetched by default, could not be obtained.
    """
    task = cfg.task
    data_dir = Path(cfg.paths.data_dir).expanduser()
    wanted = [str(word) for word in task.archives]
    # An archive of a shared manifest (clip/ViT-B-32) may be asked for whatever the data set.
    shared = bool(wanted) and all("/" in word for word in wanted)
    if task.manifest is not None:
        manifest = read_file(Path(task.manifest).expanduser())
    else:
        manifest = read_manifest(wanted[0].rpartition("/")[0] if shared else cfg.dataset.name)
    archives = choose(manifest, wanted)
    options = ObtainOptions(
        mirror=task.mirror,
        # From the environment: run folders keep the command line, and are passed on.
        access_code=os.environ.get("VIDEOTEXT_ACCESS_CODE"),
        unverified=task.unverified,
        accept=tuple(Checksum.parse(str(text)) for text in task.accept),
        keep_archives=task.keep_archives,
        fetching=FetchOptions(retries=task.retries),
    )
    console = Console()
    _say(console, f"{manifest.title} ({manifest.page})")
    outcomes = _obtain(console, archives, data_dir, options)
    _print_rest(console, manifest, archives, data_dir)
    if not shared:
        _say(console, f"then: python -m src.run task=check_data dataset={cfg.dataset.name}")
    _raise_failures(outcomes, named=bool(wanted))


def _obtain(console: Console, archives: list[Archive], data_dir: Path, options: ObtainOptions) -> list[Outcome]:
    outcomes = []
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        bars = {archive: progress.add_task(archive.label, total=archive.size, start=True) for archive in archives}

        def advance(archive: Archive, have: int, total: int | None) -> None:
            progress.update(bars[archive], completed=have, total=total or archive.size)

        for outcome in obtain(archives, data_dir, options, advance):
            outcomes.append(outcome)
            progress.remove_task(bars[outcome.archive])
            _say(console, f"  {outcome.archive.label}: {outcome.state}: {outcome.detail}")
    return outcomes


def _print_rest(console: Console, manifest: Manifest, chosen: list[Archive], data_dir: Path) -> None:
    others = [archive for archive in manifest.archives.values() if archive not in chosen]
    if others:
        _say(console, "other archives, for task.archives=[NAME]:")
    for archive in others:
        size = f", {in_words(archive.size)}" if archive.size else ""
        _say(console, f"  {archive.name}: {archive.about}{size}")
    if manifest.steps:
        _say(console, "steps:")
    for number, step in enumerate(manifest.steps, 1):
        _say(console, f"  {number}. {step.replace('DATA/', f'{data_dir}/')}")
    _say(console, "expected layout:")
    for line in manifest.layout.replace("DATA/", f"{data_dir}/").splitlines():
        _say(console, f"  {line}")


def _raise_failures(outcomes: list[Outcome], named: bool) -> None:
    """What was asked for by name has to be there; of the default ones, those that could be fetched."""
    bad = {"failed"} | ({"by hand", "not verified"} if named else set())
    failed = [outcome for outcome in outcomes if outcome.state in bad]
    if failed:
        first = failed[0]
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise UserError(f"found {first.archive.label} {first.state}, expected it fetched{more}: {first.detail}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
