"""Conceptual Captions: 3 million images of the web with a caption each; an image is a video of one frame."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from src.data.listing import Chunk, Listing, read_listing
from src.data.streamed import FilePart, StreamedDataModule

FILES = {
    "train": "Train_GCC-training-success-020321-VALIDIMG.csv",
    "val": "Validation_GCC-1.1.0-Validation-success-020321-VALIDIMG.csv",
}
FOLDERS = {"train": "training", "val": "validation"}
COLUMNS = ("caption", "thumbnailUrl")


@dataclass(eq=False, kw_only=True, repr=False)
class Cc3mDataModule(StreamedDataModule):
    """CC3M from the tables of Frozen in Time's download; the file is <training|validation>/<CRC-32 of the address>.

    32 bits are few for three million addresses: about a thousand pairs of images share a name. Their rows are videos of
    their own (<id>@2) with the same file, so one of the two captions describes another image; check_data counts them.

    Source: facts of the files in m-bain/frozen-in-time@e1f13e1 `data_loader/ConceptualCaptions_dataset.py`.
    Deviates: rows without caption or address, on which the published loader fails, are left out.
    """

    steps: ClassVar[str] = (
        "get the addresses from https://ai.google.com/research/ConceptualCaptions and download the images (by hand; "
        "many are gone); expected layout: DATA/cc3m/annotations/Train_GCC-training-success-020321-VALIDIMG.csv and "
        "Validation_GCC-1.1.0-Validation-success-020321-VALIDIMG.csv (columns caption, thumbnailUrl) of the images "
        "that could be had, and DATA/cc3m/images/{training,validation}/<CRC-32 of thumbnailUrl, no extension>; "
        "set dataset.annotations_dir= and dataset.videos_dir= if yours is another"
    )

    def table_of(self, part: FilePart) -> str:
        return FILES[part]

    def read_rows(self, part: FilePart, path: Path) -> Listing:
        return read_listing(path, COLUMNS, partial(_chunk, folder=FOLDERS[part]), suffix="", with_folder=True)


def _chunk(frame: pd.DataFrame, *, folder: str) -> Chunk:
    whole = frame[frame["caption"].notna() & frame["thumbnailUrl"].notna()]
    names = [str(zlib.crc32(address.encode("utf-8", "surrogatepass"))) for address in whole["thumbnailUrl"]]
    return Chunk(whole.index.to_numpy(dtype=np.int64), [folder] * len(whole), names, whole["caption"].tolist())
