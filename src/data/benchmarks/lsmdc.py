"""LSMDC: 118,081 clips of films with one sentence of the audio description each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from src.data.annotation import Annotation, CaptionRecord, VideoRecord
from src.data.benchmarks.published import PublishedDataModule, read_lines, sentences
from src.data.pickles import load_plain
from src.errors import UserError

# Id list -> table of the release (one line per clip), and list of collaborative-experts and Frozen in Time.
TABLES = {
    "train": ("LSMDC16_annos_training.csv",),
    "val": ("LSMDC16_annos_val.csv",),
    "test": ("LSMDC16_challenge_1000_publictect.csv", "LSMDC16_challenge_1000_publictest.csv"),
}
CAPTIONS = "raw-captions.pkl"
FIELDS = 6  # clip id, start and end aligned, start and end extracted, sentence


@dataclass(eq=False, kw_only=True, repr=False)
class LsmdcDataModule(PublishedDataModule):
    """LSMDC from the tables of its release, or from the lists and raw-captions.pkl of collaborative-experts.

    Each line of a table is one item. A clip that several lines name is as many videos with the same file: the second
    is called <clip id>@2, and so on, because an id names one video of a gallery.
    Video files are <film>/<clip id>.avi; any depth and other formats will do.

    Source: facts of the files in CLIP4Clip@508ffa3 `dataloaders/dataloader_lsmdc_retrieval.py`, and
        collaborative-experts@master `data_loader/LSMDC_dataset.py`.
    Deviates: CLIP4Clip and InternVideo leave out the 100 training clips 58,200 to 58,299 without saying so; here all
        lines train.
    """

    steps: ClassVar[str] = (
        "ask for LSMDC 2016 at its site (a signed form is needed) and get the clips with "
        "LSMDC16_annos_training.csv, LSMDC16_annos_val.csv and LSMDC16_challenge_1000_publictect.csv; expected "
        "layout: DATA/lsmdc/annotations/*.csv (or raw-captions.pkl with {train,val,test}_list.txt) and "
        "DATA/lsmdc/videos/<film>/<clip id>.avi …"
    )

    def read(self) -> Annotation:
        files = self.find_videos()
        videos: dict[str, VideoRecord] = {}
        captions: dict[str, CaptionRecord] = {}
        splits: dict[str, tuple[str, ...]] = {}
        for name, tables in TABLES.items():
            path = self.need((*tables, f"{name}_list.txt"), name)
            if path is None:
                continue
            ids: list[str] = []
            seen: Counter[str] = Counter()
            for clip_id, sentence in _table_rows(path) if path.suffix == ".csv" else self._list_rows(path):
                seen[clip_id] += 1
                video_id = clip_id if seen[clip_id] == 1 else f"{clip_id}@{seen[clip_id]}"
                ids.append(video_id)
                file = files.get(clip_id, Path(self.videos_dir) / film_of(clip_id) / f"{clip_id}.avi")
                videos.setdefault(video_id, VideoRecord(video_id, file, same_as=clip_id))
                captions.setdefault(video_id, CaptionRecord(video_id, sentence))
            splits[name] = tuple(ids)
        return Annotation(tuple(videos.values()), tuple(captions.values()), splits)

    def _list_rows(self, path: Path) -> list[tuple[str, str]]:
        """(clip id, sentence) of an id list, with the sentences of raw-captions.pkl."""
        source = self.folder / CAPTIONS
        if not source.is_file():
            raise UserError(f"{path} comes without sentences: no {CAPTIONS} in {self.folder}; {self.advice}")
        document = load_plain(source)
        rows: list[tuple[str, str]] = []
        for clip_id in read_lines(path):
            texts = sentences(source, clip_id, document.get(clip_id) if isinstance(document, dict) else None)
            if len(texts) != 1:
                raise UserError(f"{source}: {clip_id} has {len(texts)} captions, expected one; use the published file")
            rows.append((clip_id, texts[0]))
        return rows


def film_of(clip_id: str) -> str:
    """Folder of a clip: its id without the times, `0001_American_Beauty_00.00.51.926-00.00.54.129`."""
    return clip_id.rpartition("_")[0] or clip_id


def _decoded(line: bytes) -> str:
    """UTF-8, or Latin-1 as the sentences of some films are: line by line, so that one does not spoil the others."""
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _table_rows(path: Path) -> list[tuple[str, str]]:
    """(clip id, sentence) of a table with tabs and without header."""
    rows: list[tuple[str, str]] = []
    for number, line in enumerate(map(_decoded, path.read_bytes().split(b"\n")), start=1):
        if not line.strip():
            continue
        values = line.rstrip("\r").split("\t")
        if len(values) != FIELDS:
            raise UserError(
                f"{path}, line {number}: found {len(values)} fields between tabs, expected {FIELDS} "
                "(clip id, four times, sentence); use the published file"
            )
        rows.append((values[0].strip(), values[-1]))
    return rows
