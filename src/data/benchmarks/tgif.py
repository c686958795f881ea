"""TGIF: 100,000 animated GIFs with sentences, under the splits called TGIF-Li and TGIF-Chen, or as first released."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar
from urllib.parse import urlparse

from src.data.annotation import Annotation, CaptionRecord, VideoRecord
from src.data.benchmarks.published import PublishedDataModule, read_ids, read_lines
from src.data.caption_files import caption_file, read_captions
from src.data.splits import PARTS
from src.errors import UserError

ORIGINAL = "tgif-v1.0.tsv"
SUFFIXES = (".gif", ".mp4", ".webm")


@dataclass(eq=False, kw_only=True, repr=False)
class TgifDataModule(PublishedDataModule):
    """TGIF in Dual Encoding's caption files (lists li_train, chen_val, …), or in the first release (train, val, test).

    Files are called <id>.gif (or .mp4); the id is the name in the GIF's address, `tumblr_nqlr0rn8ox1r2r0koo1_400`.

    Attributes:
        li_collection: TGIF-Li is in <li_collection>train.caption.txt, …val…, …test…; see src/data/caption_files.py
            for the folders where they may stand.
        chen_collection: likewise TGIF-Chen.

    Source: layout of danieljf24/hybrid_space@b934eff, and of raingo/TGIF-Release: tgif-v1.0.tsv (address, tab,
        sentence) with splits/train.txt, …. The files could not be had: tested on files written in these layouts.
    """

    li_collection: str = "tgif-li"
    chen_collection: str = "tgif-chen"

    steps: ClassVar[str] = (
        "get the caption files of Dual Encoding, or tgif-v1.0.tsv and data/splits/*.txt of "
        "https://github.com/raingo/TGIF-Release, and the GIFs from their addresses (some are gone: "
        "split.subset=available); expected layout: DATA/tgif/annotations/{tgif-litrain.caption.txt,…val…,…test…} "
        "or {tgif-v1.0.tsv,splits/train.txt,…}, and DATA/tgif/videos/<id>.gif …; set dataset.annotations_dir=, "
        "dataset.videos_dir= and dataset.li_collection= if yours is another"
    )

    def read(self) -> Annotation:
        files = self.find_videos(suffixes=SUFFIXES)
        captions: list[CaptionRecord] = []
        splits: dict[str, tuple[str, ...]] = {}
        used = set(self.split.parts.values())
        for kind, collection in (("li", self.li_collection), ("chen", self.chen_collection)):
            for part in PARTS:
                # Both splits describe the same GIFs: only the sentences of the chosen one may count.
                if f"{kind}_{part}" in used:
                    of_part = self._captions(collection, part)
                    captions += of_part
                    splits[f"{kind}_{part}"] = tuple(dict.fromkeys(caption.video_id for caption in of_part))
        if used & set(PARTS):
            captions += self._original_captions()
            splits |= self._original_splits(used)
        videos = dict.fromkeys(
            [*(caption.video_id for caption in captions), *(i for ids in splits.values() for i in ids)]
        )
        root = Path(self.videos_dir)
        records = tuple(VideoRecord(name, files.get(name) or root / f"{name}.gif") for name in videos)
        return Annotation(records, tuple(captions), splits)

    def _captions(self, collection: str, part: str) -> list[CaptionRecord]:
        path = caption_file(self.folder, collection, part)
        if path is None:
            raise UserError(
                f"split {self.split.name!r} ({part}) needs {collection}{part}.caption.txt, not found in {self.folder}; "
                f"{self.advice}"
            )
        return [line.record() for line in read_captions(path)]

    def _original_captions(self) -> list[CaptionRecord]:
        path = self.find((ORIGINAL,))
        if path is None:
            raise UserError(f"split {self.split.name!r} needs {ORIGINAL}, not found in {self.folder}; {self.advice}")
        captions = []
        for number, line in enumerate(read_lines(path), start=1):
            address, tab, text = line.partition("\t")
            if not tab:
                raise UserError(f"{path}, row {number}: found no tab, expected '<address>\\t<sentence>'")
            captions.append(CaptionRecord(_name(address), text.strip()))
        return captions

    def _original_splits(self, used: set[str]) -> dict[str, tuple[str, ...]]:
        """Lists of addresses or ids, one per line."""
        splits = {}
        for part in PARTS:
            path = self.need((f"splits/{part}.txt", f"{part}.txt"), part)
            if path is not None and part in used:
                splits[part] = tuple(dict.fromkeys(_name(line) for line in read_ids(path)))
        return splits


def _name(address: str) -> str:
    """The id of a GIF: the last part of its address, without .gif."""
    return PurePosixPath(urlparse(address.strip()).path).name.removesuffix(".gif")
