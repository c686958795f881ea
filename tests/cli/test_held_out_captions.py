"""experiment=clip_folder: training helps to find videos by captions of theirs that it never read."""

from __future__ import annotations

import csv
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 30),
    "blue": (30, 30, 220),
    "white": (240, 240, 240),
    "black": (10, 10, 10),
    "yellow": (230, 220, 20),
    "purple": (150, 30, 160),
    "cyan": (30, 200, 210),
}
SENTENCES = ("a {} wall", "everything is {}", "{} from left to right", "nothing but {} paint", "the room is {}", "{}")


def write_clips(folder: Path) -> None:
    """One clip for each colour, six sentences each."""
    folder.mkdir()
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["video", "caption"])
        for name, colour in COLOURS.items():
            rows.writerows([f"{name}.mp4", sentence.format(name)] for sentence in SENTENCES)
            with av.open(str(folder / f"{name}.mp4"), "w") as container:
                stream = container.add_stream("libx264", rate=Fraction(8))
                stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
                picture = np.full((64, 64, 3), colour, np.uint8)
                for _ in range(8):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
                container.mux(stream.encode())


def test_training_helps_on_captions_that_it_never_read(
    cli: Callable[..., Any], metrics: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    write_clips(tmp_path / "clips")
    words = (
        *("experiment=clip_folder", f"dataset.data_dir={tmp_path}/clips", "dataset.cache=memory"),
        *("split.caption_holdout.test=2", "split.caption_holdout.val=1", "dataset.batch_size=8", "model.num_frames=2"),
    )
    cli(*words, "task=evaluate", "task.random_weights=true", name="start", tiny=False).succeeded()
    outcome = cli(*words, "trainer.max_epochs=30", "selection=last", name="end", tiny=False).succeeded()
    start, end = metrics("start"), metrics("end")
    assert end["protocol"]["num_captions"] == 2 * len(COLOURS)
    said = "up to 2 captions of each training video; its others were trained on"
    assert end["protocol"]["held_out"] == said
    assert said in outcome.out
    assert start["t2v"]["R1"] < 50 < 75 < end["t2v"]["R1"]

    # The same file without the declaration is the leak that it always was.
    leak = cli(*words, "~split.caption_holdout.val", name="leak", tiny=False).failed_with(2)
    assert "8 videos are both in train and in val" in leak
