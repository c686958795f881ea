"""Concepts: the words that several captions of a video share, as soft targets of a concept space.

Source: danieljf24/hybrid_space @ b934eff, its generation of tags and the targets of its data provider.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.data.features.store import FeatureStore
from src.data.features.writer import StoreWriter
from src.data.taggers import Tagger, tokens_of
from src.data.whole_file import write_whole
from src.errors import UserError

Labels = dict[str, dict[str, int]]  # video -> word -> in how many places of its captions
Lemmatise = Callable[[str, str], str]  # (word, n | v | a) -> base form

MADE_BY = "task=prepare task.steps=[concepts]"
# First letter of a Penn Treebank tag -> part of speech of WordNet; words with other tags are no concepts.
_KINDS = {"N": "n", "V": "v", "J": "a"}
# NLTK's English stop words, less those with an apostrophe, which cleaned captions cannot hold.
_STOP = """
a about above after again against ain all am an and any are as at be because been before being below between both but
by can d did do does doing don down during each few for from further had has have having he her here hers herself him
himself his how i if in into is it its itself just ll m ma me more most my myself no nor not now o of off on once only
or other our ours ourselves out over own re s same shan she should so some such t than that the their theirs them
themselves then there these they this those through to too under until up ve very was we were what when where which
while who whom why will with won y you your yours yourself yourselves
"""
_NEGATED = "are could did does had has have is might must need should was were would"  # before "n't"
STOP_WORDS = frozenset(_STOP.split()) | {f"{verb}n" for verb in _NEGATED.split()}


def concept_words(
    words: Sequence[str], tagger: Tagger, lemmatise: Lemmatise, stop_words: frozenset[str] = STOP_WORDS
) -> list[str]:
    """Base forms of the nouns, verbs and adjectives of a caption; stop words are sorted out afterwards.

    Args:
        words: the cleaned caption.
        tagger: tokens -> their Penn Treebank tags.
        lemmatise: word and part of speech -> base form.
        stop_words: base forms that are no concepts.
    """
    tokens = tokens_of(words)
    kinds = [_KINDS.get(tag[:1]) for tag in tagger(tokens)]
    forms = [lemmatise(token, kind) for token, kind in zip(tokens, kinds, strict=True) if kind is not None]
    return [form for form in forms if form not in stop_words]


def threshold_of(collection: str, video_id: str, threshold: int = 1) -> int:
    """A word is a label of a video when its captions use it more often than this.

    The videos of TGIF and MPII-MD have one or two captions: all words count there.
    """
    short = collection == "tgif" or collection.startswith(("TGIF", "MPII-MD")) or video_id.startswith("tgif")
    return 0 if short else threshold


def label_videos(captions: Iterable[tuple[str, Sequence[str]]], threshold: Callable[[str], int]) -> Labels:
    """Count the words of each video.

    Args:
        captions: video id and words, in the order of the captions; a video is listed with its first caption.
        threshold: video id -> words that occur no more often than this are left out.

    Returns:
        Words by count, equally frequent ones by first occurrence; a video may have none.
    """
    counts: dict[str, Counter[str]] = {}
    for video_id, words in captions:
        counts.setdefault(video_id, Counter()).update(words)
    return {
        video_id: {word: count for word, count in of_video.most_common() if count > threshold(video_id)}
        for video_id, of_video in counts.items()
    }


def total_counts(labels: Labels) -> list[tuple[str, int]]:
    """All labels by their summed counts, equally frequent ones by first occurrence."""
    totals: Counter[str] = Counter()
    for of_video in labels.values():
        totals.update(of_video)
    return totals.most_common()


def target(counts: Mapping[str, int], concepts: Mapping[str, int]) -> np.ndarray | None:
    """float32 y_K of a video: count of each concept over the largest count of all its labels; None without labels.

    Args:
        counts: labels of the video, also those that are no concepts.
        concepts: concept -> its place in y.
    """
    if not counts:
        return None
    y_K = np.zeros(len(concepts), dtype=np.float32)
    largest = max(counts.values())
    for word, count in counts.items():
        if word in concepts:
            y_K[concepts[word]] = count / largest
    return y_K


def write_store(folder: Path, targets: Mapping[str, np.ndarray | None], recipe: Mapping[str, Any]) -> FeatureStore:
    """Write the targets as the feature store `concepts`; one that is there is replaced as a whole.

    Args:
        folder: of the store.
        targets: key of each video -> its y_K, or None without labels: a missing item.
        recipe: what the targets depend on.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    if folder.exists() and FeatureStore.open(folder).recipe.get("made_by") != MADE_BY:
        raise UserError(f"{folder} holds features that are no concepts; remove it, or choose another paths.data_dir")
    dim = next(len(y_K) for y_K in targets.values() if y_K is not None)
    new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{what}") for what in ("new", "old"))
    try:
        writer = StoreWriter(new, name="concepts", dim=dim, recipe={"made_by": MADE_BY, **recipe}, ids=list(targets))
        for shard in writer.pending():
            writer.write_shard(shard, ((key, targets[key], "no labels", None) for key in writer.shard_ids(shard)))
        writer.finish()
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        for path in (new, old):
            shutil.rmtree(path, ignore_errors=True)
    return FeatureStore.open(folder)


def read_concepts(path: Path) -> list[str]:
    """The concepts of a `concepts.json`, in the order of the columns of the concept space.

    Raises:
        UserError: no such file, or not such a one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; write it by task=prepare task.steps=[concepts]") from None
    except ValueError:
        content = None
    words = content.get("concepts") if isinstance(content, dict) else content  # the authors' json is the bare list
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{path} holds no list of concepts; write it again by task=prepare task.steps=[concepts]")
    return words


def write_tags(folder: Path, labels: Labels, size: int, threshold: int = 1) -> Path:
    """Write labels and concepts in the authors' layout: `video_label_th_1.txt` and the folder of that name.

    Returns:
        The file of labels.
    """
    name = f"video_label_th_{threshold}"
    inner = folder / name
    inner.mkdir(parents=True, exist_ok=True)
    lines = (
        f"{video_id}\t" + "".join(f"{word}:{count} " for word, count in counts.items()) + "\n"
        for video_id, counts in labels.items()
    )
    totals = total_counts(labels)
    concepts = [word for word, _ in totals[:size]]
    write_whole(inner / "all_words.txt", "\n".join(f"{word} {count}" for word, count in totals).encode())
    write_whole(inner / f"tag_vocab_{size}.txt", "\n".join(concepts).encode())
    write_whole(inner / f"tag_vocab_{size}.json", json.dumps(concepts).encode())
    write_whole(folder / f"{name}.txt", (line.encode() for line in lines))
    return folder / f"{name}.txt"


def tag_files(folder: Path, size: int, threshold: int = 1) -> tuple[Path, Path]:
    """The files of labels and of concepts that `read_tags` reads."""
    name = f"video_label_th_{threshold}"
    return folder / f"{name}.txt", folder / name / f"tag_vocab_{size}.json"


def read_tags(folder: Path, size: int, threshold: int = 1) -> tuple[Labels, list[str]]:
    """Labels and concepts that `write_tags`, or the authors' programs, wrote.

    Raises:
        UserError: a file is missing or malformed.
    """
    file, vocabulary = tag_files(folder, size, threshold)
    lacking = [str(path) for path in (file, vocabulary) if not path.is_file()]
    if lacking:
        raise UserError(
            f"{folder} lacks {', '.join(lacking)}, expected video_label_th_{threshold}.txt and "
            f"{vocabulary.relative_to(folder)}; set task.tags_dir to the folder TextData/tags, and task.num_concepts"
        )
    labels: Labels = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        video_id, tab, rest = line.partition("\t")
        pairs = [pair.rpartition(":") for pair in rest.split()]
        if not tab or not all(colon and count.isdigit() for _, colon, count in pairs):
            raise UserError(f"{file}, line {number}: expected '<video>TAB<word>:<count> …'; fetch the file again")
        labels[video_id] = {word: int(count) for word, _, count in pairs}
    return labels, read_concepts(vocabulary)
