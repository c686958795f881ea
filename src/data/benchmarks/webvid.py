"""WebVid: 2.5 million stock videos with a caption each, from the tables of its release."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from src.data.listing import Chunk, Listing, read_listing
from src.data.streamed import FilePart, StreamedDataModule

LONGEST = 350  # characters of a caption that are kept
COLUMNS = ("videoid", "name", "page_dir")


@dataclass(eq=False, kw_only=True, repr=False)
class WebvidDataModule(StreamedDataModule):
    """WebVid from results_<cut>_<part>.csv: the caption is column `name`, the file <page_dir>/<videoid>.mp4.

    Rows in which any column is empty are left out, as published, and counted in the log.

    Attributes:
        cut: which release: 2M, 10M.

    Source: facts of the files in m-bain/frozen-in-time@e1f13e1 `data_loader/WebVid_dataset.py`.
    """

    steps: ClassVar[str] = (
        "the tables and videos of WebVid were withdrawn by their owners and cannot be fetched; with a copy of yours, "
        "expected layout: DATA/webvid/metadata/results_2M_{train,val}.csv (columns videoid, name, page_dir, …) and "
        "DATA/webvid/videos/<page_dir>/<videoid>.mp4; set dataset.annotations_dir= and dataset.videos_dir= if yours is "
        "another"
    )
    cut: str = "2M"

    def table_of(self, part: FilePart) -> str:
        return f"results_{self.cut}_{part}.csv"

    def read_rows(self, part: FilePart, path: Path) -> Listing:
        return read_listing(path, COLUMNS, _chunk, suffix=".mp4", with_folder=False)


def _chunk(frame: pd.DataFrame) -> Chunk:
    whole = frame[frame.notna().all(axis=1)]
    captions = whole["name"].str[:LONGEST].tolist()
    return Chunk(whole.index.to_numpy(dtype=np.int64), whole["page_dir"].tolist(), whole["videoid"].tolist(), captions)
