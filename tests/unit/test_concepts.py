"""Concepts: tokens, parts of speech, base forms, labels of videos and their targets."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from src.data.concepts import (
    STOP_WORDS,
    concept_words,
    label_videos,
    read_concepts,
    read_tags,
    target,
    threshold_of,
    total_counts,
    write_store,
    write_tags,
)
from src.data.features.store import FeatureStore
from src.data.features.writer import StoreWriter
from src.data.taggers import nltk_tagger, tokens_of, wordnet_tagger
from src.data.wordnet import NAMES, PACKED, WordNet, wordnet
from src.errors import UserError
from src.models.vocabulary import words_of
from src.tasks import prepare


def test_tokens_split_what_nltk_splits() -> None:
    words = words_of("Cannot, gonna GOTTA gimme lemme wanna; can't whatcha")
    assert tokens_of(words) == [
        *("can", "not", "gon", "na", "got", "ta", "gim", "me", "lem", "me", "wan", "na", "can", "t"),
        "whatcha",
    ]


def test_lemmas_by_exception_and_by_rule() -> None:
    lists = wordnet()
    assert lists.lemmas("men", "n") == ["men", "man"]
    assert lists.lemma("men", "n") == "men"  # equally long: the word itself
    assert lists.lemma("riding", "v") == "rid"  # shorter than "ride"
    assert lists.lemma("axes", "n") == "ax"
    assert lists.lemma("quickly", "r") == "quickly"
    assert lists.lemma("qwertyings", "n") == "qwertyings"
    assert lists.lemma("comics", "n") == "comic"  # one of its bases is of several words
    assert lists.lemma("s", "n") == "s"


def dictionary(folder: Path) -> Path:
    """A dictionary folder in WordNet's layout."""
    folder.mkdir()
    contents = {
        "index.noun": "  1 the licence  \ndog n 1 1 @ 1 1 02084071  \nhot_dog n 1 0 1 0 07676602  \nchild n 1\n",
        "index.verb": "dog v 1\nrun v 1\nlog_in v 1\n",
        "index.adj": "red a 1\n",
        "index.adv": "",
        "noun.exc": "children child\nwiener hot_dog\nmen-of-war man-of-war\n",
        "verb.exc": "ran run\n",
        "adj.exc": "",
        "adv.exc": "",
        "cntlist.rev": "dog%1:05:00:: 1 42\nDog%1:05:01:: 2 8\ndog%2:38:00:: 1 2\nred%5:00:00:x:00 1 3\n",
    }
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="ISO-8859-1")
    return folder


def test_dictionary_folder_is_read_and_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = dictionary(tmp_path / "dict")
    read = WordNet.read(folder)
    assert read.counts["n"] == {"dog": 50, "hot_dog": 0, "child": 0}
    assert read.counts["a"] == {"red": 3}
    assert read.lemma("children", "n") == "child"
    assert read.lemma("dogs", "v") == "dog"
    packed = tmp_path / "packed.gz"
    packed.write_bytes(read.packed(["free", ""]))
    monkeypatch.setattr("src.data.wordnet.PACKED", packed)
    again = wordnet.__wrapped__()
    assert again.counts["v"] == {"dog": 2, "run": 0}
    assert again.counts["n"] == read.counts["n"]  # hot_dog is the base of a single word
    assert again.exceptions["n"] == {"children": ("child",), "wiener": ("hot_dog",)}
    assert again.lemma("wiener", "n") == "hot_dog"
    (folder / "verb.exc").unlink()
    with pytest.raises(UserError, match=r"lacks verb\.exc, expected the dictionary folder"):
        WordNet.read(folder)


def test_licence_comes_with_the_lists() -> None:
    head = gzip.decompress(PACKED.read_bytes()).decode()[:3000]
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in head
    assert set(wordnet().counts) == set(NAMES)


def by_table(**tags: str):
    return lambda tokens: [tags.get(token, "DT") for token in tokens]


def test_concept_words_are_nouns_verbs_and_adjectives() -> None:
    tagger = by_table(dogs="NNS", are="VBP", running="VBG", bigger="JJR", quickly="RB", us="NN")
    words = ["two", "dogs", "are", "quickly", "running", "bigger", "us", "2"]
    assert concept_words(words, tagger, wordnet().lemma) == [
        "dog",
        "run",
        "big",
        "u",
    ]  # "are" becomes "be": a stop word
    assert concept_words([], tagger, wordnet().lemma) == []
    assert "u" not in STOP_WORDS
    assert {"doesn", "won", "themselves", "because"} < STOP_WORDS
    assert len(STOP_WORDS) == 153


def test_wordnet_tagger_takes_the_usual_part_of_speech() -> None:
    tagger = wordnet_tagger(wordnet())
    sentence = words_of("A man is playing the red guitar quickly with 2 minecraft dogs within another video")
    assert concept_words(sentence, tagger, wordnet().lemma) == [
        *("man", "play", "red", "guitar", "minecraft", "dog", "video")
    ]
    assert tagger(["within", "7", "quickly", "zyx"]) == ["XX", "XX", "RB", "NN"]


def test_nltk_is_asked_for_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "nltk.tag", None)
    with pytest.raises(UserError, match=r"pip install nltk.*averaged_perceptron_tagger_eng.*task\.tagger=wordnet"):
        nltk_tagger()


def test_nltk_tagger_gives_tags_or_names_the_missing_data(monkeypatch: pytest.MonkeyPatch) -> None:
    class Perceptron:
        def __init__(self, lang: str) -> None:
            if lang != "eng":
                raise LookupError

        def tag(self, tokens: Sequence[str]) -> list[tuple[str, str]]:
            assert isinstance(tokens, list)
            return [(token, "NN" if token == "dog" else "DT") for token in tokens]

    class Lacking:
        def __init__(self, lang: str) -> None:
            raise LookupError(lang)

    package, tag = ModuleType("nltk"), ModuleType("nltk.tag")
    monkeypatch.setitem(sys.modules, "nltk", package)
    monkeypatch.setitem(sys.modules, "nltk.tag", tag)
    tag.PerceptronTagger = Perceptron  # type: ignore[attr-defined]
    assert nltk_tagger()(("a", "dog")) == ["DT", "NN"]
    tag.PerceptronTagger = Lacking  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"python -m nltk\.downloader averaged_perceptron_tagger_eng.*NLTK_DATA"):
        nltk_tagger()


def test_labels_are_ordered_and_cut() -> None:
    captions = [("v1", ["b", "a"]), ("v2", ["c"]), ("v1", ["a", "b", "a"]), ("v2", ["c", "a"]), ("v3", [])]
    labels = label_videos(captions, lambda _: 1)
    assert [(video, list(words.items())) for video, words in labels.items()] == [
        ("v1", [("a", 3), ("b", 2)]),
        ("v2", [("c", 2)]),
        ("v3", []),
    ]
    assert total_counts(labels) == [("a", 3), ("b", 2), ("c", 2)]
    everything = label_videos(captions, lambda video_id: 0 if video_id == "v2" else 9)
    assert everything == {"v1": {}, "v2": {"c": 2, "a": 1}, "v3": {}}


@pytest.mark.parametrize(
    ("collection", "video_id", "expected"),
    [
        ("msrvtt10ktrain", "video7", 1),
        ("TGIF-train", "x", 0),
        ("tgif", "tumblr_x", 0),
        ("MPII-MD", "x", 0),
        ("tgif-msrvtt10k", "video7", 1),
        ("tgif-msrvtt10k", "tgif_9", 0),
    ],
)
def test_threshold_of_collections_with_few_captions(collection: str, video_id: str, expected: int) -> None:
    assert threshold_of(collection, video_id) == expected


def test_targets_are_shares_of_the_largest_count() -> None:
    place = {"a": 0, "b": 1, "c": 2}
    y_K = target({"other": 8, "b": 2, "a": 4}, place)  # the largest count may be of a word that is no concept
    assert y_K is not None
    assert y_K.dtype == np.float32
    np.testing.assert_array_equal(y_K, [0.5, 0.25, 0])
    assert target({}, place) is None


def test_tags_come_back(tmp_path: Path) -> None:
    labels = {"v1": {"a": 3, "b": 2}, "v2": {}, "v 3": {"b": 1}}
    file = write_tags(tmp_path, labels, 1, 0)
    assert file.read_text() == "v1\ta:3 b:2 \nv2\t\nv 3\tb:1 \n"
    assert read_tags(tmp_path, 1, 0) == (labels, ["a"])
    assert read_concepts(file.with_suffix("") / "tag_vocab_1.json") == ["a"]
    with pytest.raises(UserError, match=r"lacks .*tag_vocab_512\.json, expected"):
        read_tags(tmp_path, 512, 0)
    file.write_text("v1\ta:3\nv2 b:2\n")
    with pytest.raises(UserError, match=r"line 2: expected '<video>TAB"):
        read_tags(tmp_path, 1, 0)
    (tmp_path / "concepts.json").write_text('{"concepts": 3}')
    with pytest.raises(UserError, match="holds no list of concepts"):
        read_concepts(tmp_path / "concepts.json")


def test_store_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "features" / "concepts"
    one, two = np.float32([1, 0.5]), np.float32([0, 1, 1])
    store = write_store(folder, {"a": one, "b": None}, {"x": 1})
    assert (store.dim, len(store), dict(store.missing)) == (2, 1, {"b": "no labels"})
    rows, _ = store.rows(["a"])
    np.testing.assert_array_equal(rows, one[None])
    assert write_store(folder, {"b": two}, {"x": 2}).dim == 3
    assert [path.name for path in folder.parent.iterdir()] == ["concepts"]
    other = tmp_path / "features" / "frames"
    writer = StoreWriter(other, name="frames", dim=2, recipe={}, ids=["a"])
    writer.write_shard(0, [("a", one, None, None)])
    writer.finish()
    with pytest.raises(UserError, match="holds features that are no concepts"):
        write_store(other, {"a": one}, {})
    assert FeatureStore.open(other).dim == 2


def configured(**task: object) -> DictConfig:
    keys = {"download": False, "steps": None, "prepare": None, "num_concepts": None, "tag_threshold": 1}
    keys |= {"lemmatise": True, "tagger": "nltk", "wordnet": None, "tags_dir": None, "min_count": 5}
    return OmegaConf.create({"task": keys | task, "model": {}})


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"prepare": "concept"}, r"found task\.steps=\[concept\], expected some of transcode, .*concepts"),
        ({"prepare": []}, r"found task\.steps=\[\], expected some of"),
        ({"prepare": "vocabulary", "min_count": "many"}, r"found task\.min_count=many, expected a whole number"),
        ({"prepare": ["concepts"], "tagger": "spacy"}, r"task\.tagger=spacy, expected nltk or wordnet"),
        ({"prepare": ["concepts"], "lemmatise": False, "num_concepts": 0}, r"num_concepts=0, expected a whole number"),
        ({"prepare": ["concepts"], "lemmatise": False, "tag_threshold": -1}, r"tag_threshold=-1, expected a whole"),
        ({"prepare": ["concepts"], "tagger": "wordnet", "wordnet": "nowhere"}, r"nowhere lacks index\.noun"),
    ],
)
def test_mistakes_are_named_before_anything_is_read(task: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare.run(configured(**task))
