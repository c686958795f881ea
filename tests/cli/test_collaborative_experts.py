"""model=ce from the command line on made features: missing experts, and videos that have none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.data.features.writer import StoreWriter

Cli = Callable[..., Any]
COLOURS = ("red", "green", "blue", "white")
SIGNS = ("stop", "go")
WORDS = ("a", "wall", "with", "says", *COLOURS, *SIGNS)
PARTS = {"train": 4, "val": 1, "test": 1}  # how often each colour meets each sign
WITHOUT_OCR = ("train_0_red_stop", "test_0_red_go")
WITHOUT_ALL = ("train_1_blue_go", "test_0_white_stop")
MODEL = (
    *("dataset=folder", "model=ce", "experts=[imagenet,ocr_glove]", "text=glove", "optimizer=adam", "scheduler=none"),
    *("experts.imagenet.dim=5", "experts.ocr.dim=11", "text.dim=11", "model.shared_dim=16", "model.margin=0.2"),
    "+model.vlad_clusters.imagenet=1",
    "+model.max_tokens.imagenet=2",
    *("model.vlad_clusters.text=2", "model.vlad_clusters.ocr=1", "model.max_tokens.text=6", "model.max_tokens.ocr=3"),
    *("dataset.batch_size=8", "dataset.num_workers=0", "dataset.recipe.lr=0.01", "trainer=cpu", "logger=none"),
)


def videos() -> dict[str, tuple[str, str, str]]:
    """Id -> (part, colour, sign)."""
    return {
        f"{part}_{n}_{colour}_{sign}": (part, colour, sign)
        for part, number in PARTS.items()
        for n in range(number)
        for colour in COLOURS
        for sign in SIGNS
    }


def of_word(word: str) -> np.ndarray:
    return np.eye(len(WORDS) + 1, dtype=np.float32)[WORDS.index(word)]


def write_store(path: Path, items: dict[str, np.ndarray | None]) -> None:
    dim = next(rows for rows in items.values() if rows is not None).shape[1]
    writer = StoreWriter(path, name=path.name, dim=dim, recipe={}, ids=list(items))
    for shard in writer.pending():
        writer.write_shard(shard, ((i, items[i], "nothing", None) for i in writer.shard_ids(shard)))
    writer.finish()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data root: 48 videos that nobody filmed, each of one colour, which one expert sees, and one sign."""
    noise = np.random.default_rng(0)
    root = tmp_path / "data"
    lines, colours, signs, texts = ["video,caption,split"], {}, {}, {}
    for name, (part, colour, sign) in videos().items():
        caption = f"a {colour} wall says {sign}"
        lines.append(f"{name},{caption},{part}")
        seen = np.eye(5, dtype=np.float32)[[COLOURS.index(colour)] * 2]
        colours[name] = None if name in WITHOUT_ALL else seen + noise.normal(0, 0.05, seen.shape).astype(np.float32)
        signs[name] = None if name in (*WITHOUT_ALL, *WITHOUT_OCR) else of_word(sign)[None]
        texts[f"{name}#0"] = np.stack([of_word(word) for word in caption.split()])
    features = root / "folder" / "features"
    features.mkdir(parents=True)
    (root / "folder" / "captions.csv").write_text("\n".join(lines) + "\n")
    for store, items in (("imagenet", colours), ("ocr", signs), ("glove", texts)):
        write_store(features / store, items)
    return root


def test_videos_without_an_expert_are_trained_and_ranked_and_those_without_any_are_counted(
    cli: Cli, data: Path, tmp_path: Path, metrics: Callable[[str], dict[str, Any]]
) -> None:
    environment = {"VIDEOTEXT_DATA": str(data)}
    fitted = cli(
        *(*MODEL, "trainer.max_epochs=15", "split.subset=available"), name="fit", tiny=False, env=environment
    ).succeeded()

    found = metrics("fit")
    assert found["protocol"]["num_videos"] == 7  # 8 less the one without any
    assert found["excluded"]["by_part"] == {part: {"missing video": 1} for part in ("train", "test")}
    assert found["without_expert"] == {"ocr": 1}
    assert "without expert ocr: 1 of the 7 videos" in fitted.out
    for name in WITHOUT_ALL:
        part = name.split("_")[0]
        assert f"excluded: missing video {name} ({part}): it has none of the features imagenet, ocr" in fitted.out, (
            fitted.out
        )
    assert "nan" not in (tmp_path / "fit" / "metrics.csv").read_text().lower()
    assert found["t2v"]["R1"] > 70  # colour alone finds 4 of 7 (57)
    page = (tmp_path / "fit" / "report" / "index.html").read_text()
    assert WITHOUT_ALL[1] in page
    assert "test_0_red_go" in page

    checkpoint = f"ckpt_path={tmp_path / 'fit' / 'checkpoints' / 'best.ckpt'}"
    cli(
        *(*MODEL, "task=evaluate", checkpoint, "split.subset=available", "save_similarity=true"),
        name="again",
        tiny=False,
        env=environment,
    ).succeeded()
    again = metrics("again")
    assert {side: again[side] for side in ("t2v", "v2t")} == {side: found[side] for side in ("t2v", "v2t")}
    scores_TV = np.load(tmp_path / "again" / "similarity.npy")
    assert scores_TV.shape == (7, 7)
    assert np.isfinite(scores_TV).all()
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["protocol"]["num_captions"] == 7
