"""task=export_submission in the layout of TextVR: windows, domains, the files to hand in, and their way back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from src.config import compose
from src.tasks import score
from tests.clips import make_clip

Cli = Callable[..., Any]

DOMAINS = ("Games", "Cooking")
VIDEOS = [f"{DOMAINS[n % 2]}/v{n}" for n in range(6)]
TINY = ("model=frozen", "model.text_model=videotext-tiny", "model.vit=videotext-tiny", "model.vit_weights=null")


def make_data(folder: Path) -> None:
    entries = []
    for n, name in enumerate(VIDEOS):
        path = folder / "Video" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_clip(path, 12 + 5 * n, 10, audio=False)
        infos = [{"caption": f"clip {n}", "caption_info": {"duration": 10.0, "desc_id": n}}]
        video = {"source": "yc2", "split": "test", "Kwai_OCR": f"{name}.json"}
        entries.append({"path": f"{name}.mp4", "captions_info": infos, "videos_info": video})
    (folder / "TextVR_test.json").write_text(json.dumps(entries))


def test_from_a_model_to_the_file_and_back(cli: Cli, tmp_path: Path) -> None:
    make_data(tmp_path)
    run = tmp_path / "run"
    found = cli(
        *("task=export_submission", "dataset=textvr", "split=textvr_test", "task.random_weights=true", *TINY),
        *(f"split.expected.test.{key}={len(VIDEOS)}" for key in ("videos", "captions")),
        *(f"dataset.{key}_dir={tmp_path}" for key in ("annotations", "videos")),
        *("dataset.num_workers=0", "task.window_stride=2", "trainer.enable_progress_bar=false"),
        tiny=False,
    ).succeeded()
    metrics = json.loads((run / "metrics.json").read_text())
    assert {name: row["num_captions"] for name, row in metrics["domains"].items()} == dict.fromkeys(DOMAINS, 3)
    assert metrics["protocol"]["windows"] == "every 2 frames (intervals, at most 64)"
    assert "by domain" in found.out
    assert "by domain" in (run / "report" / "index.html").read_text()
    matrix = np.load(run / "textvr.npy", allow_pickle=False)
    assert matrix.dtype == np.float32
    assert matrix.shape == (6, 6)
    assert (run / "videos.txt").read_text().split() == VIDEOS
    words = ["task=score", f"similarity={run}/sim_matrix.npy", f"paths.run_dir={tmp_path}/back"]
    (values,) = compose.preflight(compose.parse(words))
    score.run(OmegaConf.create(values))
    back = json.loads((tmp_path / "back" / "metrics.json").read_text())
    assert {key: back[key] for key in ("t2v", "v2t", "SumR")} == {key: metrics[key] for key in ("t2v", "v2t", "SumR")}
