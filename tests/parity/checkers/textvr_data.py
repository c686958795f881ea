"""TextVR and Frozen in Time: frame sampling, sliding window, transforms, OCR words."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn.functional import normalize

from src.batch import VideoEmbedding
from src.data.frozen_transforms import evaluation_frames
from src.data.ocr import normalise_positions, ocr_format, parse_kwai
from src.data.sampling import frozen_indices, intervals
from src.data.sliding_window import window_starts
from src.models.windows import mean_of_windows
from tests.parity.cases import Case, assert_close


def check_sampling(case: Case) -> None:
    for row in case.meta["cases"]:
        random.seed(case.meta["seed"])
        choose = random.choice if row["mode"] == "rand" else None
        found = frozen_indices(row["num_frames"], row["vlen"], row["fix_start"], choose)
        if "idx" in row:
            assert found == row["idx"], row
        allowed = row["allowed_half_open"] or ()
        assert [(lo, hi - 1) for lo, hi in intervals(row["num_frames"], row["vlen"])] == [
            tuple(pair) for pair in allowed
        ] or not allowed
        # Upstream fails on an interval of one frame; here that frame is taken.
        for index, (lo, hi) in zip(found, allowed, strict=False):
            assert lo <= index < max(hi, lo + 1), row
        if row.get("error"):
            assert any(lo == hi for lo, hi in allowed)
    sliding = case.meta["sliding"]
    rows = [
        {"v": video, "vlen": length, "fix_start": start}
        for video, length in enumerate(sliding["vlens"])
        for start in window_starts(sliding["num_frames"], length, sliding["stride"], "upstream")
    ]
    assert rows == sliding["rows"]


def check_sliding_window(case: Case) -> None:
    paths, captions = case.meta["paths"], case.meta["captions"]
    # Each caption is encoded once; upstream repeats it with every window and keeps the first.
    first = {query: row for row, query in reversed(list(enumerate(zip(paths, captions, strict=True))))}
    text_QD = case.tensors["in/text"][sorted(first.values())]
    assert_close(text_QD, case.tensors["out/text"], name="text")
    videos = list(dict.fromkeys(paths))
    numbers = torch.tensor([videos.index(path) for path in paths])
    order = torch.argsort(numbers, stable=True)  # evaluation has the windows of a video side by side
    rows = VideoEmbedding(ids=numbers[order], parts={"video": case.tensors["in/video"][order]})
    video_VD = mean_of_windows(rows).parts["video"]
    assert_close(video_VD, case.tensors["out/video"], name="mean of windows")
    similarity_TV = normalize(text_QD, dim=1) @ normalize(video_VD, dim=1).T
    assert_close(similarity_TV, case.tensors["out/sim"], name="similarity")


def check_transforms(case: Case) -> None:
    frames = case.tensors["in/frames01"]
    for antialias, flag in ((False, 0), (True, 1)):
        frozen = evaluation_frames(
            frames,
            "frozen",
            size=case.meta["input_res"],
            center_crop=case.meta["center_crop"],
            antialias=antialias,
        )
        assert_close(frozen, case.tensors[f"out/frozen_test_antialias{flag}"], name=f"frozen {antialias}")
        textvr = evaluation_frames(frames, "textvr", antialias=antialias)[..., ::7, ::7]
        assert_close(textvr, case.tensors[f"out/textvr_test_antialias{flag}_stride7"], name=f"textvr {antialias}")


def check_ocr_format(case: Case) -> None:
    meta = case.meta
    for row in meta["cases"]:
        found = ocr_format(
            parse_kwai(row["ocr_file"]),
            max_words=meta["topl"],
            min_length=meta["min_ocr_l"],
            lower=meta["lower"],
            rule="upstream",
        )
        expected = row["out"]
        assert len(found.words) == expected["valid_l"], row["name"]
        padded = found.padded(meta["topl"])
        assert list(padded.words) == expected["gt_ocr"], row["name"]
        if "gt_ocr_score" in expected:
            assert list(padded.scores) == pytest.approx(expected["gt_ocr_score"])
        if "gt_pos" in expected:
            positions = torch.from_numpy(padded.positions_W12)
            norm = row["norm"]
            scaled = torch.from_numpy(normalise_positions(padded.positions_W12, norm["w"], norm["h"], norm["l"]))
            # By column: frame numbers and pixels must not hide the ratios.
            for got, want in ((positions, expected["gt_pos"]), (scaled, norm["gt_pos"])):
                wanted = torch.tensor(want, dtype=torch.float32)
                for column in range(wanted.shape[1]):
                    assert_close(got[:, column], wanted[:, column], name=f"{row['name']}, column {column}")


CHECKERS = {
    "textvr": {
        "frame_sampling": check_sampling,
        "sliding_window": check_sliding_window,
        "transforms": check_transforms,
        "ocr_format_*": check_ocr_format,
    }
}
