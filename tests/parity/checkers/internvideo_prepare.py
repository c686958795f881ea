"""InternVideo's preprocessing of videos before anything reads them."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from src.data.transcode import TranscodeRecipe, transcode
from tests.clips import make_clip
from tests.parity.cases import Case


def check_compress_video(case: Case) -> None:
    assert case.meta["rows"]
    with tempfile.TemporaryDirectory() as name:
        for row in case.meta["rows"]:
            check_row(row, Path(name))


def check_row(row: dict[str, Any], folder: Path) -> None:
    source, target = folder / row["file"], folder / f"out-{row['file']}"
    given, expected = row["inp"], row["out"]
    if given is None:
        source.write_bytes(b"no video " * 100)
        recipe = TranscodeRecipe(rule="upstream")
    else:
        size = (given["width"], given["height"])
        # yuv420p has even sizes only.
        pixels = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        make_clip(source, int(given["nb_frames"]), Fraction(given["r_frame_rate"]), size, pixels=pixels, audio=False)
        side = expected["height"] if size[0] > size[1] else expected["width"]
        recipe = TranscodeRecipe(rule="upstream", fps=float(Fraction(expected["r_frame_rate"])), short_side=side)
    done = transcode(source, target, recipe)
    assert (target.read_bytes() == source.read_bytes()) == row["same_bytes"] == done.copied, row
    if expected is not None:
        with av.open(str(target)) as container:
            video = container.streams.video[0]
            context = video.codec_context
            found = (context.width, context.height, video.base_rate, video.frames)
        wanted = (expected["width"], expected["height"], Fraction(expected["r_frame_rate"]), int(expected["nb_frames"]))
        assert found == wanted, row


CHECKERS = {"internvideo": {"compress_video": check_compress_video}}
