"""Stands for a decoder that takes down its process on one file; light, because worker processes import it."""

from __future__ import annotations

import os
import time

from src.clip import Clip
from src.data.annotation import VideoRecord


def odd_decode(record: VideoRecord) -> Clip:
    """Dies on the id "deadly"; takes a little longer for some ids than for others."""
    if record.id == "deadly":
        os._exit(7)
    time.sleep(0.02 * (int(record.id) % 3))
    return Clip(record.id)
