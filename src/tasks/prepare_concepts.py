"""task=prepare task.steps=[concepts]: concepts of the training captions, and each video's share in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from src.data.concepts import (
    Labels,
    concept_words,
    label_videos,
    read_tags,
    tag_files,
    target,
    threshold_of,
    total_counts,
    write_store,
    write_tags,
)
from src.data.features.store import MANIFEST, FeatureStore
from src.data.taggers import ALTERNATIVES, Tagger, nltk_tagger, wordnet_tagger
from src.data.whole_file import write_whole
from src.data.wordnet import WordNet, wordnet
from src.errors import UserError
from src.tasks.prepare_text import TrainingCaptions, folder_of, say, training_captions, whole_number

SHOWN = 8
PUBLISHED = 512  # concepts of the published models
AUTO = "auto"  # task.tags_dir: those of the authors' layout, where they are


def run(cfg: DictConfig) -> None:
    """Write concepts.json, tags/ in the authors' layout and the store features/concepts to DATA_DIR/DATASET.

    Raises:
        UserError: data of the tagger are missing, or no word is shared.
    """
    size = _size(cfg)
    threshold = whole_number(cfg, "tag_threshold", 0)
    source = _tags_dir(cfg, size, threshold)
    choose = _chooser(cfg) if source is None else None  # before anything is read: its data may be missing
    given = training_captions(cfg)
    facts: dict[str, Any] = {"dataset": cfg.dataset.name, "split": cfg.split.name, "threshold": threshold}
    if source is not None:
        labels, concepts = read_tags(source, size, threshold)
        facts |= {"tags": str(source)}
    else:
        assert choose is not None
        labels = _labels(cfg, given, choose)
        concepts = [word for word, _ in total_counts(labels)[:size]]
        facts |= {key: cfg.task[key] for key in ("lemmatise", "tagger", "wordnet")}
    if not concepts:
        raise UserError(
            f"no word is in {threshold + 1} places of the captions of one video ({len(labels)} videos, "
            f"{len(given.captions)} captions); set task.tag_threshold=0 to count every word"
        )
    _write(given, labels, concepts, facts)
    if choose is not None:
        say(f"concepts: in the authors' layout: {write_tags(given.folder / 'tags', labels, size, threshold)}")


def found(cfg: DictConfig) -> str | None:
    """What is there already; None when the concepts or the store of targets are lacking.

    Raises:
        UserError: a damaged store.
    """
    path = folder_of(cfg) / "concepts.json"
    store = path.parent / "features" / "concepts"
    if not path.is_file() or not (store / MANIFEST).is_file():
        return None
    return f"{path} and {store} ({FeatureStore.open(store).dim} concepts)"


def _size(cfg: DictConfig) -> int:
    if cfg.task.num_concepts is not None:
        return whole_number(cfg, "num_concepts", 1)
    return int(cfg.model.get("num_concepts") or PUBLISHED)


def _tags_dir(cfg: DictConfig, size: int, threshold: int) -> Path | None:
    """The folder of published labels, where there is one: `task.tags_dir`, or of the training data when it is auto."""
    if cfg.task.tags_dir is None:
        return None
    if cfg.task.tags_dir != AUTO:
        return Path(cfg.task.tags_dir).expanduser()
    dataset = cfg.dataset
    collection = dataset.get("train_collection") or dataset.get("collection")
    if not collection or "rootpath" not in dataset:
        raise UserError(
            f"found task.tags_dir={AUTO}, expected a data set in the authors' layout, not dataset={dataset.name}; "
            "give the folder, or null"
        )
    folder = Path(dataset.rootpath).expanduser() / collection / "TextData" / "tags"
    lacking = [path for path in tag_files(folder, size, threshold) if not path.is_file()]
    say(
        f"concepts: computed from the captions, for {lacking[0]} does not exist"
        if lacking
        else f"concepts: published labels of {folder}"
    )
    return None if lacking else folder


def _chooser(cfg: DictConfig) -> Callable[[Sequence[str]], Sequence[str]]:
    """From the cleaned words of a caption to those that may be concepts."""
    if not cfg.task.lemmatise:
        return lambda words: words
    if cfg.task.tagger not in ("nltk", "wordnet"):
        raise UserError(f"task.tagger={cfg.task.tagger}, expected nltk or wordnet; {ALTERNATIVES}")
    lists = wordnet() if cfg.task.wordnet is None else WordNet.read(Path(cfg.task.wordnet).expanduser())
    if cfg.task.tagger == "wordnet":
        say("concepts: parts of speech by tagger=wordnet, which approximates the published tagger=nltk")
    tagger: Tagger = nltk_tagger() if cfg.task.tagger == "nltk" else wordnet_tagger(lists)
    return lambda words: concept_words(words, tagger, lists.lemma)


def _labels(cfg: DictConfig, given: TrainingCaptions, choose: Callable[[Sequence[str]], Sequence[str]]) -> Labels:
    keys = ("collection", "train_collection")
    collection = next((cfg.dataset[key] for key in keys if cfg.dataset.get(key)), cfg.dataset.name)
    captions = zip(given.captions, given.words, strict=True)
    return label_videos(
        ((caption.video_id, choose(words)) for caption, words in captions),
        lambda video_id: threshold_of(collection, video_id, cfg.task.tag_threshold),
    )


def _write(given: TrainingCaptions, labels: Labels, concepts: list[str], facts: dict[str, Any]) -> None:
    """Write the store and concepts.json, and say what they hold."""
    keys = given.video_keys
    unlabelled = [video_id for video_id in keys if video_id not in labels]
    place = {word: index for index, word in enumerate(concepts)}
    targets = {key: target(labels.get(video_id, {}), place) for video_id, key in keys.items()}
    if all(y_K is None for y_K in targets.values()):
        raise UserError(
            f"none of the {len(keys)} training videos has labels; check that task.tags_dir is of this data set"
        )
    digest = hashlib.sha256(json.dumps(labels).encode()).hexdigest()
    store = write_store(given.folder / "features" / "concepts", targets, facts | {"labels_sha256": digest})
    totals = dict(total_counts(labels))
    facts |= {"num_videos": len(keys), "num_without": len(store.missing), "num_captions": len(given.captions)}
    content = facts | {"num_words": len(totals), "concepts": concepts, "counts": [totals.get(w, 0) for w in concepts]}
    path = given.folder / "concepts.json"
    write_whole(path, json.dumps(content, indent=0, ensure_ascii=False).encode() + b"\n")
    say(f"concepts: {len(concepts)} of {len(totals)} words in {path}, most frequent: {', '.join(concepts[:SHOWN])}")
    say(
        f"concepts: targets of {len(store)} videos in {store.path}; {len(store.missing)} videos share no word"
        + (f"; {len(unlabelled)} are not in the labels (first: {unlabelled[0]})" if unlabelled else "")
    )
    if 2 * len(store.missing) > len(keys):
        say("concepts: more than half of the videos have none; with few captions per video, task.tag_threshold=0 helps")
    say(f"concepts: train with model.num_concepts={len(concepts)}")
