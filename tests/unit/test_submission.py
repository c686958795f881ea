"""Submissions: what is written, what is recognised as permuted, edited or useless, and that scores read back."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from src.batch import TextEmbedding, VideoEmbedding
from src.config import compose
from src.data.annotation import CaptionRecord, VideoRecord
from src.data.splits import SplitPart
from src.errors import UserError
from src.metrics.retrieval import evaluate_matrix
from src.reports.submission import (
    RECORD,
    Order,
    check_matrix,
    check_own,
    check_repeated,
    recorded_lists,
    write_matrix,
)
from src.tasks import export_submission, score, submission_files

PAIRS = 60


def order_of(videos: int, per_video: int = 1) -> Order:
    names = tuple(f"v{n}" for n in range(videos))
    captions = tuple(f"{name}#{k}\t{name}\twords {k} of {name}" for name in names for k in range(per_video))
    return Order(captions, names, "the test part")


def scores(order: Order, signal: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(5)
    matrix = rng.standard_normal(order.shape).astype(np.float32)
    matrix[np.arange(len(matrix)), order.own_columns] += signal
    return matrix


@pytest.fixture
def written(tmp_path: Path) -> Path:
    order = order_of(7, 2)
    write_matrix(tmp_path / "sim_matrix.npy", order, [scores(order)[:5], scores(order)[5:]])
    return tmp_path / "sim_matrix.npy"


def load(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def test_what_is_written(written: Path) -> None:
    matrix = load(written)
    assert matrix.dtype == np.float32
    assert np.array_equal(matrix, scores(order_of(7, 2)))
    lists = recorded_lists(written, matrix)
    assert lists == (written.parent / "captions.txt", written.parent / "videos.txt")
    assert lists[0].read_text().splitlines()[3] == "v1#1\tv1\twords 1 of v1"
    assert json.loads((written.parent / RECORD).read_text())["matrices"]["sim_matrix.npy"]["shape"] == [14, 7]


CHANGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "columns": (lambda m: m[:, ::-1], "its rows or columns were permuted"),
    "rows": (lambda m: m[[1, 0, *range(2, len(m))]], "its rows or columns were permuted"),
    "one number": (lambda m: m + np.eye(*m.shape, dtype=np.float32), "holds other numbers than were written"),
    "shape": (lambda m: m[:-1], r"found shape \(13, 7\), expected \(14, 7\)"),
    "transposed": (lambda m: m.T, "it is transposed"),
    "type": (lambda m: m.astype(np.float64), "found float64, expected float32"),
    "nan": (lambda m: np.where(np.eye(*m.shape) > 0, np.float32("nan"), m), "found nan in row 0, column 0"),
    "infinite": (lambda m: np.where(m == m[3, 2], np.float32("inf"), m), "found inf in row 3, column 2"),
    "constant": (lambda m: np.where(np.arange(len(m))[:, None] == 4, np.float32(1), m), r"\(first: row 4\)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_matrix_is_refused(written: Path, change: str) -> None:
    apply, reason = CHANGES[change]
    np.save(written, np.ascontiguousarray(apply(load(written))))
    with pytest.raises(UserError, match=reason):
        recorded_lists(written, load(written))


def test_a_permuted_copy_is_recognised_under_another_name(written: Path) -> None:
    copy = written.with_name("mine.npy")
    np.save(copy, load(written))
    assert recorded_lists(copy, load(copy)) == recorded_lists(written, load(written))
    np.save(copy, load(written)[:, ::-1])
    with pytest.raises(UserError, match="its rows or columns were permuted"):
        recorded_lists(copy, load(copy))
    np.save(copy, load(written) + 1)
    assert recorded_lists(copy, load(copy)) is None  # another model's matrix is none of the record's business


def test_a_changed_list_is_refused(written: Path) -> None:
    videos = written.with_name("videos.txt")
    videos.write_text("".join(f"{line}\n" for line in reversed(videos.read_text().split())))
    with pytest.raises(UserError, match=r"videos.txt was changed since"):
        recorded_lists(written, load(written))
    videos.unlink()
    with pytest.raises(UserError, match=r"videos.txt is missing"):
        recorded_lists(written, load(written))


def test_nothing_unusable_stays_on_disk(tmp_path: Path) -> None:
    order = order_of(4)
    for block, reason in (
        (np.full(order.shape, np.nan), "nan"),
        (np.full(order.shape, 1e300), "inf"),
        (np.zeros(order.shape), "4 rows in which all videos score the same"),
    ):
        with pytest.raises(UserError, match=reason):
            write_matrix(tmp_path / "S.npy", order, [block])
        assert list(tmp_path.iterdir()) == []
    entry = write_matrix(tmp_path / "S.npy", order, [np.zeros(order.shape)], constant_rows=True)
    assert entry["constant_rows"] == 4
    assert recorded_lists(tmp_path / "S.npy", load(tmp_path / "S.npy")) is not None


def test_objects_and_integers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found int64, expected float32"):
        check_matrix(np.arange(12).reshape(4, 3), (4, 3), "S.npy")
    assert check_matrix(np.zeros((3, 1), dtype=np.float32), (3, 1), "S.npy") == 0  # one video leaves no choice


def test_own_videos_speak_for_a_matrix_without_lists(caplog: pytest.LogCaptureFixture) -> None:
    order = order_of(PAIRS)
    videos = list(order.videos)
    shuffled = [videos[n] for n in np.random.default_rng(1).permutation(PAIRS)]
    columns = np.array([videos.index(name) for name in shuffled])
    good = scores(order, 2.0)
    check_own(good, order, {"other.json": shuffled}, "S.npy")
    assert not caplog.records
    with pytest.raises(UserError, match=r"by chance in the order of the test part, but not in that of other.json"):
        check_own(good[:, columns], order, {"other.json": shuffled}, "S.npy")
    with caplog.at_level(logging.WARNING):  # of noise nobody can tell
        check_own(scores(order), order, {"other.json": shuffled}, "S.npy")
    assert "nothing shows whether rows and columns are in order" in caplog.text
    with pytest.raises(UserError, match="single out one video, each another"):
        check_own(scores(order, 8.0)[:, columns], order, {}, "S.npy")


def test_a_permuted_matrix_of_a_fair_model_is_recognised(caplog: pytest.LogCaptureFixture) -> None:
    order, rng = order_of(400), np.random.default_rng(2)
    fair = scores(order, 3.5)
    top = np.sort(fair, axis=1)[:, -2:]
    assert 0.6 < np.mean(fair.argmax(axis=1) == np.arange(400)) < 0.9
    assert np.mean(top[:, 1] - top[:, 0] > fair.std(axis=1)) < 0.5  # not clear enough for each caption by itself
    check_own(fair, order, {}, "S.npy")
    for moved in (fair[:, rng.permutation(400)], fair[rng.permutation(400)]):
        with pytest.raises(UserError, match="rows or columns are permuted"):
            check_own(moved, order, {}, "S.npy")
    assert not caplog.records
    for _ in range(20):  # noise, also of vectors in few dimensions and of hubs, is only warned of
        text, video = rng.standard_normal((2, 400, 8)) + rng.integers(3)
        check_own(text @ video.T, order, {}, "S.npy")
    assert len(caplog.records) == 20


def test_captions_with_the_same_words_show_transposed_and_permuted_rows() -> None:
    rng = np.random.default_rng(3)
    names = tuple(f"v{n}" for n in range(80))
    order = Order(tuple(f"{name}#0\t{name}\twords {n % 60}" for n, name in enumerate(names)), names, "the test part")
    text, video = rng.standard_normal((60, 16))[np.arange(80) % 60], rng.standard_normal((80, 16))
    matrix = (text @ video.T + 1e-6 * rng.standard_normal((80, 80))).astype(np.float32)
    check_repeated(matrix, order, "S.npy")
    check_repeated(matrix.astype(np.float16), order, "S.npy")
    check_repeated(np.ones((80, 80), np.float32), order, "S.npy")
    check_repeated(rng.standard_normal((80, 80)), order, "S.npy")  # of a model that rolls dice, nothing follows
    with pytest.raises(UserError, match=r"20 captions that repeat another's words.*it is transposed, expected"):
        check_repeated(matrix.T, order, "S.npy")
    with pytest.raises(UserError, match=r"other rows are equal: rows are permuted; give captions=FILE"):
        check_repeated(matrix[rng.permutation(80)], order, "S.npy")
    check_repeated(matrix.T, order_of(80), "S.npy")  # without repeated words nobody can tell


def composed(folder: Path, *words: str) -> DictConfig:
    """The task's configuration on a data set of `PAIRS` captions in the layout of TextVR."""
    entries = [entry(f"{'AB'[n % 2]}/v{n}", f"text {n}") for n in range(PAIRS)]
    (folder / "TextVR_test.json").write_text(json.dumps(entries))
    shuffled = [entries[n] for n in np.random.default_rng(1).permutation(PAIRS)]
    (folder / "TextVR_test_rand.json").write_text(json.dumps(shuffled))
    chosen = [
        *(
            "task=export_submission",
            "dataset=textvr",
            "split=textvr_test",
            *(f"split.expected.test.{key}={PAIRS}" for key in ("videos", "captions")),
        ),
        *(f"dataset.annotations_dir={folder}", f"dataset.videos_dir={folder}", f"paths.run_dir={folder}/run", *words),
    ]
    (values,) = compose.preflight(compose.parse(chosen))
    return OmegaConf.create(values)


def entry(name: str, caption: str) -> dict[str, object]:
    infos = [{"caption": caption, "caption_info": {"duration": 10.0, "desc_id": 0}}]
    return {
        "path": f"{name}.mp4",
        "captions_info": infos,
        "videos_info": {"source": "yc2", "split": "test", "Kwai_OCR": f"{name}.json"},
    }


def given(folder: Path, matrix: np.ndarray) -> str:
    np.save(folder / "S.npy", matrix)
    return f"similarity={folder}/S.npy"


def test_export_of_a_matrix_and_its_way_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = scores(order_of(PAIRS), 2.0)
    value = export_submission.run(
        composed(tmp_path, given(tmp_path, matrix), f"task.video_order={tmp_path}/TextVR_test_rand.json")
    )
    assert value is None or value >= 0
    run = tmp_path / "run"
    expected = evaluate_matrix(matrix, torch.arange(PAIRS), PAIRS).to_json()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["t2v"] == expected["t2v"]
    assert {name: row["num_captions"] for name, row in metrics["domains"].items()} == {"A": PAIRS / 2, "B": PAIRS / 2}
    assert np.array_equal(load(run / "sim_matrix.npy"), matrix)
    names = [
        Path(e["path"]).with_suffix("").as_posix() for e in json.loads((tmp_path / "TextVR_test.json").read_text())
    ]
    shuffled = (run / "textvr.videos.txt").read_text().split()
    assert (run / "videos.txt").read_text().split() == names
    assert shuffled != names
    assert np.array_equal(load(run / "textvr.npy"), matrix[:, [names.index(name) for name in shuffled]])
    printed = capsys.readouterr().out
    assert "textvr.npy in the order of TextVR_test_rand.json" in printed
    assert f"read back by python -m src.run task=score similarity={run}/sim_matrix.npy ties=" in printed
    assert "by domain" in printed
    for name in ("sim_matrix.npy", "textvr.npy"):
        back = score_config(tmp_path / "back", similarity=str(run / name))
        score.run(back)
        found = json.loads((tmp_path / "back" / "metrics.json").read_text())
        assert {key: found[key] for key in expected} == expected
    np.save(run / "textvr.npy", load(run / "textvr.npy")[::-1])
    with pytest.raises(UserError, match="its rows or columns were permuted"):
        score.run(score_config(tmp_path / "back", similarity=str(run / "textvr.npy")))


def score_config(run_dir: Path, **keys: str) -> DictConfig:
    words = [f"{key}={value}" for key, value in keys.items()]
    (values,) = compose.preflight(compose.parse(["task=score", f"paths.run_dir={run_dir}", *words]))
    return OmegaConf.create(values)


def test_a_matrix_in_another_order_is_refused_or_put_in_order(tmp_path: Path) -> None:
    matrix = scores(order_of(PAIRS), 2.0)
    rand = tmp_path / "TextVR_test_rand.json"
    composed(tmp_path)  # writes the files
    names, shuffled = (
        [str(Path(e["path"]).with_suffix("")) for e in json.loads((tmp_path / name).read_text())]
        for name in ("TextVR_test.json", "TextVR_test_rand.json")
    )
    rows = np.random.default_rng(2).permutation(PAIRS)
    (tmp_path / "c.txt").write_text("".join(f"{names[n]}\n" for n in rows))
    moved = matrix[rows][:, [names.index(name) for name in shuffled]]
    word = given(tmp_path, moved)
    with pytest.raises(UserError, match=r"captions=FILE videos=FILE|as by chance"):
        export_submission.run(
            composed(
                tmp_path, given(tmp_path, matrix[:, [names.index(n) for n in shuffled]]), f"task.video_order={rand}"
            )
        )
    given(tmp_path, moved)
    lists = [word, f"captions={tmp_path}/c.txt", f"videos={rand}"]
    with pytest.raises(UserError, match=r"rows are permuted: .*c.txt has another order"):
        export_submission.run(composed(tmp_path, *lists))
    export_submission.run(composed(tmp_path, *lists, "task.reorder=true"))
    assert np.array_equal(load(tmp_path / "run" / "sim_matrix.npy"), matrix)


def test_lists_of_another_test_part_are_refused(tmp_path: Path) -> None:
    word = given(tmp_path, scores(order_of(PAIRS)))
    (tmp_path / "v.txt").write_text("".join(f"x{n}\n" for n in range(PAIRS)))
    with pytest.raises(UserError, match=rf"names {PAIRS} videos, of which {PAIRS} are not among"):
        export_submission.run(composed(tmp_path, word, f"videos={tmp_path}/v.txt"))
    with pytest.raises(UserError, match=r"task.video_order: .*v.txt names"):
        export_submission.run(composed(tmp_path, word, f"task.video_order={tmp_path}/v.txt"))


class _Dots:
    """Stands for a model: scores are dot products."""

    def scorer(
        self, text: TextEmbedding, video: VideoEmbedding
    ) -> Callable[[TextEmbedding, VideoEmbedding], torch.Tensor]:
        return lambda t, v: t.parts["x"] @ v.parts["x"].T


def test_embeddings_are_written_in_the_order_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("b", "a", "c")
    captions = tuple(CaptionRecord(name, "w", (f"{name}#{k}",)) for name in names for k in range(2))
    part = SplitPart("test", tuple(VideoRecord(name) for name in names), captions, (0, 0, 1, 1, 2, 2))
    order = Order(tuple(f"{c.keys[0]}\t{c.video_id}\tw" for c in captions), names, "the test part")
    monkeypatch.setattr(submission_files, "whole_test", lambda cfg: (part, order))
    text_QD, video_VD = torch.randn(6, 4), torch.randn(3, 4)
    rows, columns = torch.tensor([4, 0, 5, 2, 1, 3]), torch.tensor([2, 0, 1])  # embeddings come in any order
    text = TextEmbedding(rows, {"x": text_QD[rows]}, video_ids=rows // 2)
    video = VideoEmbedding(columns, {"x": video_VD[columns]})
    task = {
        "matrix": "m.npy",
        "file": None,
        "video_order": None,
        "fill_unreadable": False,
        "allow_constant_rows": False,
    }
    cfg = OmegaConf.create({"paths": {"run_dir": str(tmp_path)}, "task": task, "ties": "average"})
    submission_files.write_embedded(cfg, part, (text, video), _Dots())  # type: ignore[arg-type]
    expected = (text_QD @ video_VD.T).numpy()
    np.testing.assert_allclose(load(tmp_path / "m.npy"), expected, rtol=1e-6)
    with pytest.raises(UserError, match=r"1 of 3 videos of the test part could not be read \(first: 'a'\)"):
        submission_files.write_embedded(cfg, part, (text, video[torch.tensor([0, 1])]), _Dots())  # type: ignore[arg-type]
    cfg.task.fill_unreadable = True
    submission_files.write_embedded(cfg, part, (text, video[torch.tensor([0, 1])]), _Dots())  # type: ignore[arg-type]
    filled = load(tmp_path / "m.npy")
    assert (filled[:, 1] < filled[:, [0, 2]].min(axis=1)).all()
    with pytest.raises(UserError, match="1 of 6 captions of the test part were not encoded"):
        submission_files.write_embedded(cfg, part, (text[torch.arange(5)], video), _Dots())  # type: ignore[arg-type]


def test_the_matrix_is_not_overwritten_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    given(tmp_path / "run", scores(order_of(PAIRS)))
    words = f"similarity={tmp_path}/run/S.npy", "task.matrix=S.npy"
    with pytest.raises(UserError, match="would be overwritten"):
        export_submission.run(composed(tmp_path, *words))


@pytest.mark.real
def test_published_test_file(tmp_path: Path, shared_data: Path) -> None:
    """2,727 captions with random embeddings: accepted as written, refused permuted or in another shape."""
    rng = np.random.default_rng(0)
    text, video = (rng.standard_normal((2727, 16)).astype(np.float32) for _ in range(2))
    chosen = [
        *("task=export_submission", "dataset=textvr", "split=textvr_test", given(tmp_path, text @ video.T)),
        *(f"dataset.annotations_dir={shared_data}/annotations/textvr", f"paths.run_dir={tmp_path}/run"),
    ]
    (values,) = compose.preflight(compose.parse(chosen))
    export_submission.run(OmegaConf.create(values))
    written = tmp_path / "run" / "textvr.npy"
    matrix = load(written)
    assert matrix.shape == (2727, 2727)
    assert recorded_lists(written, matrix) is not None
    for changed, reason in (
        (matrix[:, rng.permutation(2727)], "its rows or columns were permuted"),
        (matrix[:-1], r"found shape \(2726, 2727\), expected \(2727, 2727\)"),
    ):
        np.save(written, changed)
        with pytest.raises(UserError, match=reason):
            score.run(score_config(tmp_path / "back", similarity=str(written)))
    given(tmp_path, matrix[:, :-1])
    with pytest.raises(UserError, match=r"found shape \(2727, 2726\), expected \(2727, 2727\)"):
        export_submission.run(OmegaConf.create(values))
