"""Six benchmarks in miniature: annotation, lists and videos in the layouts in which they are published."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.clips import make_clip

SETS = ("msrvtt", "msvd", "lsmdc", "activitynet", "didemo", "vatex")
PARTS = {"train": 4, "val": 1, "test": 6}  # videos
MULTIPLE = {"msvd": 3, "vatex": 10}  # captions of each test video; the others have one, or one paragraph
VIDEOS = sum(PARTS.values())


def write_benchmark(root: Path, name: str) -> Path:
    """Write ROOT/NAME/{annotations,videos}; returns ROOT, which is a data folder."""
    annotations, videos = root / name / "annotations", root / name / "videos"
    annotations.mkdir(parents=True)
    videos.mkdir()
    files = _WRITERS[name](annotations, _words())
    clips = root / "clips"
    if not clips.is_dir():
        clips.mkdir()
        for number in range(VIDEOS):  # of different lengths, so that they show different frames
            make_clip(clips / f"{number}.mp4", 12 + 4 * number, 4, (48, 36), audio=False)
    for number, file in enumerate(files):
        (videos / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clips / f"{number}.mp4", videos / file)
    return root


def _words() -> list[str]:
    """One sentence a video."""
    things, doings = ("a dog", "a man", "two cars", "the red ball"), ("runs", "is cooking soup", "moves to the left")
    return [f"{things[n % 4]} {doings[n % 3]} and stops after {n + 1} seconds" for n in range(VIDEOS)]


def _parts(ids: Sequence[str]) -> dict[str, list[str]]:
    """Part -> its ids."""
    found, start = {}, 0
    for part, number in PARTS.items():
        found[part] = list(ids[start : start + number])
        start += number
    return found


def _write_lists(folder: Path, ids: Sequence[str]) -> None:
    for part, own in _parts(ids).items():
        (folder / f"{part}_list.txt").write_text("\n".join(own) + "\n")


def _msrvtt(folder: Path, words: list[str]) -> list[str]:
    ids = [f"video{n}" for n in range(VIDEOS)]
    parts = _parts(ids)
    sentences = [{"video_id": i, "caption": text} for text, i in zip(words, ids, strict=True)]
    videos = [{"video_id": i, "url": "", "split": "train"} for i in ids]
    (folder / "MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    (folder / "MSRVTT_train.9k.csv").write_text("\n".join(["video_id", *parts["train"], *parts["val"]]))
    rows = [f'ret{n},msr{n},{i},"{words[ids.index(i)]}"' for n, i in enumerate(parts["test"])]
    (folder / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(["key,vid_key,video_id,sentence", *rows]))
    return [f"{i}.mp4" for i in ids]


def _msvd(folder: Path, words: list[str]) -> list[str]:
    ids = [f"-4wsuPCjDBc_{n}_{n + 5}" for n in range(VIDEOS)]
    captions = {i: [f"{text} {k}".split() for k in range(MULTIPLE["msvd"])] for i, text in zip(ids, words, strict=True)}
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps(captions))
    _write_lists(folder, ids)
    return [f"{i}.avi" for i in ids]


def _lsmdc(folder: Path, words: list[str]) -> list[str]:
    ids = [f"0001_American_Beauty_00.00.{n:02}.000-00.00.{n + 1:02}.000" for n in range(VIDEOS)]
    names = {"train": "LSMDC16_annos_training", "val": "LSMDC16_annos_val", "test": "LSMDC16_challenge_1000_publictect"}
    text_of = dict(zip(ids, words, strict=True))
    for part, own in _parts(ids).items():
        lines = [f"{i}\t00.00\t00.01\t00.00\t00.01\t{text_of[i]}" for i in own]
        (folder / f"{names[part]}.csv").write_text("\n".join(lines))
    return [f"0001_American_Beauty/{i}.avi" for i in ids]


def _activitynet(folder: Path, words: list[str]) -> list[str]:
    ids = [f"v_{n:011}" for n in range(VIDEOS)]
    parts = _parts(ids)
    held = {"train": [*parts["train"], *parts["val"]], "val_1": parts["test"]}
    for name, own in held.items():
        entries = {
            i: {
                "duration": 3.3,
                "timestamps": [[0, 1.5], [1, 3]],
                "sentences": [f"{words[ids.index(i)]}.", " Then ends."],
            }
            for i in own
        }
        (folder / f"{name}.json").write_text(json.dumps(entries))
        (folder / f"{name.split('_')[0]}_ids.json").write_text(json.dumps(own))
    return [f"{'val' if i in parts['test'] else 'train'}/{i}.mp4" for i in ids]


def _didemo(folder: Path, words: list[str]) -> list[str]:
    ids = [f"{n}@N08_96_{n:02}.{'mov' if n % 2 else 'avi'}" for n in range(VIDEOS)]
    _write_lists(folder, ids)
    for part, own in _parts(ids).items():
        rows = [
            {"video": i, "description": text, "times": [[0, 0]]}
            for i in own
            for text in (f"{words[ids.index(i)]}.", "then it ends.")
        ]
        (folder / f"{part}_data.json").write_text(json.dumps(rows))
    return [f"{i}.mp4" for i in ids]


def _vatex(folder: Path, words: list[str]) -> list[str]:
    ids = [f"Ptf_2VRj-V0_{n:06}_{n + 10:06}" for n in range(VIDEOS)]
    _write_lists(folder, ids)
    parts = _parts(ids)
    for name, own in {"training": parts["train"], "validation": [*parts["val"], *parts["test"]]}.items():
        entries = [
            {"videoID": i, "enCap": [f"{words[ids.index(i)]} {k}" for k in range(MULTIPLE["vatex"])], "chCap": ["一"]}
            for i in own
        ]
        (folder / f"vatex_{name}_v1.0.json").write_text(json.dumps(entries))
    return [f"{i}.mp4" for i in ids]


_WRITERS = {
    "msrvtt": _msrvtt,
    "msvd": _msvd,
    "lsmdc": _lsmdc,
    "activitynet": _activitynet,
    "didemo": _didemo,
    "vatex": _vatex,
}
