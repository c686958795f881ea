"""task=prepare for recurrent text encoders: vocabulary, word vectors and concepts, by the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from src.data.features.store import FeatureStore
from tests.cli.conftest import Outcome

Cli = Callable[..., Outcome]

ROWS = (
    ("b.mp4", "Two men are running!", "train"),
    ("a.mp4", "a dog runs", "train"),
    ("b.mp4", "the man runs to a red car", "train"),
    ("a.mp4", "2 dogs; they bark", "train"),
    ("c.mp4", "rain", "train"),
    ("d.mp4", "a zebra, a zebra", "val"),
    ("e.mp4", "a zebra, a zebra", "test"),
)


def test_vocabulary_and_concepts_of_own_data(cli: Cli, tmp_path: Path) -> None:
    own, data = tmp_path / "own", tmp_path / "data"
    own.mkdir()
    (own / "captions.csv").write_text(
        "video,caption,split\n" + "".join(f'{video},"{text}",{part}\n' for video, text, part in ROWS)
    )
    for name in "abcde":
        (own / f"{name}.mp4").write_bytes(b"")
    (tmp_path / "vectors.txt").write_text("dog 1 2\nzebra 3 4\nruns 5 6\n")
    base = ("task=prepare", "dataset=folder", f"dataset.data_dir={own}", f"paths.data_dir={data}")
    options = ("prepare=[vocabulary,concepts]", "min_count=1", "tagger=wordnet", "num_concepts=2")
    outcome = cli(*base, *options, f"word_vectors={tmp_path}/vectors.txt", tiny=False).succeeded()

    written = data / "folder"
    vocabulary = json.loads((written / "vocabulary.json").read_text())
    text = "two men are running a dog runs the man to red car 2 dogs they bark rain"
    words = text.split()
    assert vocabulary["words"] == words  # in the order of the file, although videos take turns in it
    assert (vocabulary["dataset"], vocabulary["num_captions"]) == ("folder", 5)
    assert np.load(written / "vocabulary.npy")[words.index("runs")].tolist() == [5, 6]
    assert np.flatnonzero(np.load(written / "vocabulary_found.npy")).tolist() == [5, 6]

    concepts = json.loads((written / "concepts.json").read_text())
    assert (concepts["concepts"], concepts["counts"]) == (["run", "dog"], [2, 2])  # "men" stays "men": nothing shared
    assert (concepts["tagger"], concepts["num_videos"], concepts["num_without"]) == ("wordnet", 3, 1)
    assert (written / "tags" / "video_label_th_1.txt").read_text() == "b.mp4\trun:2 \na.mp4\tdog:2 \nc.mp4\t\n"
    store = FeatureStore.open(written / "features" / "concepts")
    rows, _ = store.rows(["a.mp4", "b.mp4"])
    assert rows.tolist() == [[0, 1], [1, 0]]
    assert dict(store.missing) == {"c.mp4": "no labels"}
    assert "train with model.num_concepts=2\n" in outcome.out

    tags = f"task.tags_dir={written}/tags"
    again = cli(*base, "prepare=concepts", "num_concepts=2", tags, name="again", tiny=False).succeeded()
    assert "targets of 2 videos" in again.out
    other = FeatureStore.open(written / "features" / "concepts")
    assert other.rows(["a.mp4", "b.mp4"])[0].tolist() == rows.tolist()
    assert other.recipe["tags"] == str(written / "tags")
