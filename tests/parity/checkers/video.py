"""Frame sampling and preprocessing."""

from __future__ import annotations

import numpy as np
import torch

from src.batch import FrameSpec
from src.data.sampling import clip2video_positions, clip4clip_picks, clip4clip_slice
from src.data.transforms import to_square
from tests.parity.cases import Case, assert_close


def check_clip2video(case: Case) -> None:
    for row in case.meta["rows"]:
        rng = np.random.RandomState(row["np_seed"]) if row["train"] else None
        found = clip2video_positions(row["n_files"], row["feature_framerate"], row["max_frames"], rng)
        assert found == row["index0"], row


def check_clip4clip(case: Case) -> None:
    for row in case.meta["rows"]:
        seconds = None if row["start"] is None else (row["start"], row["end"])
        picked = clip4clip_picks(row["frames"], row["fps"], row["feature_framerate"], seconds)
        assert picked == row["picked"], row
        limits = {key for key in row if key.startswith("max")}
        assert limits, row
        for limit in limits:
            for position, expected in row[limit].items():
                assert clip4clip_slice(picked, int(limit.removeprefix("max")), int(position)) == expected, (row, limit)


def check_preprocess(case: Case) -> None:
    size = case.meta["size"]
    mean = torch.tensor(case.meta["mean"])[:, None, None]
    std = torch.tensor(case.meta["std"])[:, None, None]
    images = case.group("in")
    assert images
    for name, image in images.items():
        square = to_square(image.numpy()[None], FrameSpec(num_frames=1, image_size=size))[0]
        pixels = (torch.from_numpy(square) / 255 - mean) / std
        assert_close(pixels, case.tensors[f"out/{name.replace('rgb', 'pix')}"], name=name)


CHECKERS = {
    "clip2video": {
        "frame_sampling_clip2video": check_clip2video,
        "frame_sampling_clip4clip": check_clip4clip,
        "preprocess": check_preprocess,
    }
}
