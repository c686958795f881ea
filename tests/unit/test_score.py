"""task=score: reading matrices and id lists, and the user's mistakes with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from src.errors import UserError
from src.tasks.score import read_labels, read_mask, read_matrix, run

TASK = Path(__file__).resolve().parents[2] / "conf" / "task" / "score.yaml"


def saved(folder: Path, matrix: np.ndarray, name: str = "S.npy") -> Path:
    path = folder / name
    np.save(path, matrix)
    return path


def lines(folder: Path, name: str, *rows: str) -> Path:
    path = folder / name
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def config(tmp_path: Path, **keys: object) -> object:
    """Keys of the task, such as `labels`, may stand among those of the run."""
    base = {
        "compatibility": "none",
        "rescoring": None,
        "similarity": None,
        "captions": None,
        "videos": None,
        "ties": "optimistic",
    }
    paths = {"run_dir": str(tmp_path / "run")}
    method = keys.pop("rescoring", None)
    if method is not None:
        keys["rescoring"] = yaml.safe_load((TASK.parents[1] / "rescoring" / f"{method}.yaml").read_text())
        keys["rescoring"] |= {key: keys.pop(key) for key in list(keys) if key in keys["rescoring"]}
    task = yaml.safe_load(TASK.read_text()) | {key: keys.pop(key) for key in list(keys) if key not in base}
    return OmegaConf.create({**base, "optimized_metric": "val/t2v/R1", "paths": paths, "task": task, **keys})


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_matrices_of_all_float_types_are_mapped_not_loaded(tmp_path: Path, dtype: str) -> None:
    matrix = read_matrix(saved(tmp_path, np.eye(3, dtype=dtype)))
    assert isinstance(matrix, np.memmap)
    assert matrix.dtype == dtype


@pytest.mark.parametrize(
    ("matrix", "found"),
    [
        (np.zeros((3, 3), dtype=np.int64), "found int64"),
        (np.zeros(3), r"found \(3,\)"),
        (np.zeros((2, 3, 4)), r"found \(2, 3, 4\)"),
        (np.zeros((0, 4)), r"found \(0, 4\)"),
        (np.array([[object()]]), "not a readable .npy"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, matrix: np.ndarray, found: str) -> None:
    with pytest.raises(UserError, match=found):
        read_matrix(saved(tmp_path, matrix))


def test_files_that_are_no_matrix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_matrix(tmp_path / "absent.npy")
    for content in (b"", b"not numpy", np.lib.format.magic(1, 0) + b"\x00"):
        (tmp_path / "bad.npy").write_bytes(content)
        with pytest.raises(UserError, match="not a readable"):
            read_matrix(tmp_path / "bad.npy")
    np.savez(tmp_path / "archive.npz", a=np.eye(2))
    with pytest.raises(UserError, match="an archive"):
        read_matrix(tmp_path / "archive.npz")


def test_a_square_matrix_needs_no_lists() -> None:
    labels = read_labels((3, 3), None, None)
    assert labels.column_of_row == [0, 1, 2]
    with pytest.raises(UserError, match="found 4 rows and 3 columns"):
        read_labels((4, 3), None, None)


def test_lists_say_whose_row_it_is(tmp_path: Path) -> None:
    videos = lines(tmp_path, "videos.txt", "b", "a", "c")
    plain = lines(tmp_path, "captions.txt", "a", "a", "b", "c")
    assert read_labels((4, 3), plain, videos).column_of_row == [1, 1, 0, 2]
    full = lines(tmp_path, "full.txt", "1\ta\tA dog.\tRuns.", "2\tb\t", "3\tc", "4\ta\tمرحبا 🐕")
    labels = read_labels((4, 3), full, videos)
    assert labels.column_of_row == [1, 0, 2, 1]
    assert labels.captions == ["A dog.\tRuns.", "2", "3", "مرحبا 🐕"]
    assert labels.videos == ["b", "a", "c"]


def test_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "videos.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
    assert read_labels((2, 2), None, path).videos == ["a", "b"]


@pytest.mark.parametrize(
    ("captions", "videos", "found"),
    [
        (("a", "b"), ("a", "b", "c"), "captions: found 2 lines"),
        (("a", "b", "x"), ("a", "b", "c"), "names 1 videos that .* does not .first: 'x'"),
        (("a", "", "c"), ("a", "b", "c"), "line 2 of .* is empty"),
        (("a", "b", "c"), ("a", "b"), "videos: found 2 lines"),
        (("a", "b", "c"), ("a", "b", "a"), "names 'a' twice"),
        (("a", "a", "c"), None, "give videos=FILE"),
    ],
)
def test_lists_that_do_not_fit(
    tmp_path: Path, captions: tuple[str, ...], videos: tuple[str, ...] | None, found: str
) -> None:
    with pytest.raises(UserError, match=found):
        read_labels(
            (3, 3),
            lines(tmp_path, "captions.txt", *captions),
            lines(tmp_path, "videos.txt", *videos) if videos else None,
        )


def test_run_writes_everything_and_returns_the_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.4]], dtype=np.float32)
    found = run(
        config(
            tmp_path,
            similarity=str(saved(tmp_path, matrix)),
            captions=str(lines(tmp_path, "c.txt", "v0", "v1", "v1")),
            videos=str(lines(tmp_path, "v.txt", "v0", "v1")),
        )
    )
    assert found == pytest.approx(200 / 3)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["t2v"]["R1"] == pytest.approx(200 / 3)
    assert metrics["v2t"]["R1"] == 100.0
    assert metrics["protocol"]["captions_per_video"] == 1.5
    assert metrics["protocol"]["rescoring"] == "none"
    assert (tmp_path / "run" / "report" / "index.html").is_file()
    out = capsys.readouterr().out
    assert "text to video 66.7 100.0" in " ".join(out.split())
    assert "2 videos, 3 captions, 1.5 per video | rescoring none" in out


def test_nan_names_rows_and_columns(tmp_path: Path) -> None:
    matrix = np.eye(4)
    matrix[2] = np.nan
    with pytest.raises(UserError, match=r"1 captions \(ids 2\)"):
        run(config(tmp_path, similarity=str(saved(tmp_path, matrix))))


def result_of(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_a_mask_leaves_rows_out_and_says_whose_row_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((15, 5)).astype(np.float32)
    mask = np.ones((5, 3))
    mask[2, 2] = mask[4, 1] = 0
    kept = np.flatnonzero(mask)
    names = [str(row // 3) for row in kept]
    run(config(tmp_path, similarity=str(saved(tmp_path, matrix)), query_mask=str(saved(tmp_path, mask, "m.npy"))))
    masked = result_of(tmp_path)
    videos, captions = lines(tmp_path, "v.txt", *map(str, range(5))), lines(tmp_path, "c.txt", *names)
    lists = {"captions": str(captions), "videos": str(videos)}
    run(config(tmp_path, similarity=str(saved(tmp_path, matrix[kept])), **lists))
    plain = result_of(tmp_path)
    assert masked["t2v"] == plain["t2v"]
    assert masked["v2t"] == plain["v2t"]
    assert masked["protocol"]["num_captions"] == 13
    assert read_mask((15, 5), saved(tmp_path, mask.ravel(), "m.npy")).shape == (15,)
    for wrong in (mask[:4], mask[:, :, None], np.ones(14)):
        with pytest.raises(UserError, match=r"task\.query_mask: found .*expected 15 numbers"):
            read_mask((15, 5), saved(tmp_path, wrong, "m.npy"))
    with pytest.raises(UserError, match=r"task\.query_mask: found 3 rows, expected 5"):
        read_labels((15, 5), None, None, np.ones((3, 5), dtype=bool))
    (tmp_path / "m.npy").write_bytes(b"x")
    with pytest.raises(UserError, match="not a readable"):
        read_mask((15, 5), tmp_path / "m.npy")


def test_a_query_bank_rescores_text_to_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Video 0 is the best of every query, until the bank tells that it is of all others too."""
    matrix = 0.5 * np.eye(6, dtype=np.float32)
    matrix[:, 0] = 0.6
    keys = {"similarity": str(saved(tmp_path, matrix)), "rescoring": "qb_norm"}
    bank = str(saved(tmp_path, np.concatenate([matrix[1:], matrix]), "bank.npy"))
    assert run(config(tmp_path, **keys, querybank=bank)) == pytest.approx(100 / 6)
    found = result_of(tmp_path)
    assert found["t2v"]["R1"] == pytest.approx(100 / 6), "plain numbers stay"
    assert found["protocol"]["rescoring"] == "none"
    rescored = found["rescored"]
    assert rescored["t2v"]["R1"] == 100.0
    assert (rescored["name"], rescored["transductive"], rescored["v2t"]) == ("qb_norm", False, None)
    assert rescored["settings"]["bank_queries"] == 11
    printed = capsys.readouterr().out
    words = "QB-Norm t2v only: beta 20, k 1, bank queries of bank.npy, bank queries 11"
    assert f"rescoring {words}" in printed
    assert printed.index("rescoring none") < printed.index("\nQB-Norm t2v only ") < printed.index("report:")
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "<h3>QB-Norm t2v only</h3>" in page
    assert words in page
    run(config(tmp_path, similarity=keys["similarity"]))
    plain = result_of(tmp_path)
    assert "rescored" not in plain
    assert (plain["t2v"], plain["v2t"]) == (found["t2v"], found["v2t"])
    # Video to text with other videos, here the same ones: what their own queries as the bank give.
    shown = str(saved(tmp_path, matrix, "videos.npy"))
    same = str(saved(tmp_path, matrix, "same.npy"))
    run(config(tmp_path, **keys, querybank=same, videobank=shown))
    both = result_of(tmp_path)["rescored"]
    run(config(tmp_path, **keys))
    own = result_of(tmp_path)["rescored"]
    assert (own["transductive"], own["settings"]["bank"], own["label"]) == (True, "test", "QB-Norm (transductive)")
    assert (both["t2v"], both["v2t"]) == (own["t2v"], own["v2t"])


@pytest.mark.parametrize(
    ("method", "keys", "message"),
    [
        ("qb_norm", {"querybank": (4, 5)}, r"task\.querybank: found 5 columns in .*expected 6, the videos"),
        ("qb_norm", {"querybank": (4, 6), "videobank": (5, 6)}, r"task\.videobank: found 5 rows in .*the captions"),
        ("qb_norm", {"videobank": (6, 6)}, r"give task\.querybank=FILE\.npy, too"),
        ("qb_norm", {"bank": "train"}, r"rescoring\.bank=train: a matrix has no other part"),
        ("sinkhorn", {"bank": "test", "querybank": (4, 6)}, r"found rescoring\.bank=test and task\.querybank"),
        ("inverted_softmax", {"video_bank": True, "querybank": (4, 6)}, r"give task\.videobank=FILE\.npy"),
        ("dsl", {"querybank": (4, 6)}, "but rescoring=dsl uses none"),
        (None, {"querybank": (4, 6)}, "but rescoring=none uses none"),
        ("qb_norm", {"k": 7}, r"rescoring\.k: found 7, expected 1 to 6"),
        ("dsl", {"temperature": -1.0}, r"rescoring\.temperature: found -1\.0"),
        ("dsl", {"predictions": "x.csv"}, r"task\.predictions has no captions to re-score"),
    ],
)
def test_rescoring_that_cannot_be(tmp_path: Path, method: str, keys: dict[str, Any], message: str) -> None:
    files = {
        key: str(saved(tmp_path, np.ones(value), f"{key}.npy")) if isinstance(value, tuple) else value
        for key, value in keys.items()
    }
    matrix = str(saved(tmp_path, np.eye(6)))
    with pytest.raises(UserError, match=message):
        run(config(tmp_path, similarity=matrix, rescoring=method, **files))


@pytest.mark.parametrize("method", ["dsl", "sinkhorn", "inverted_softmax"])
def test_each_method_has_rows_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    rng = np.random.default_rng(0)
    matrix = (0.2 * rng.standard_normal((30, 15)) + 0.2 * rng.standard_normal(15)).astype(np.float32)
    matrix[np.arange(30), np.arange(30) // 2] += 0.3
    videos = lines(tmp_path, "v.txt", *map(str, range(15)))
    lists = {"captions": str(lines(tmp_path, "c.txt", *(str(n // 2) for n in range(30)))), "videos": str(videos)}
    found = {}
    for name in (method, None):
        run(config(tmp_path, similarity=str(saved(tmp_path, matrix)), rescoring=name, **lists))
        found[name] = result_of(tmp_path)
    rescored = found[method].pop("rescored")
    assert {**found[method], "timing": 0} == {**found[None], "timing": 0}
    assert rescored["transductive"]
    assert all(rescored[side] != found[None][side] for side in ("t2v", "v2t", "SumR")), "some videos are near to all"
    printed = capsys.readouterr().out
    assert f"\n{rescored['label']} " in printed
    assert "transductive: a rank depends on the other test queries" in printed
    rows = [line for line in printed.split("\n") if line.startswith("text to video")]
    assert len(rows) == 3
    assert rows[0] == rows[2] != rows[1], "plain, re-scored, plain of the second run"


def test_the_published_rules_are_printed_beside_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {"compatibility": "clip4clip", "rescoring": "dsl"}
    constant = saved(tmp_path, np.full((6, 6), 0.5, dtype=np.float32))
    run(config(tmp_path, similarity=str(constant), **keys))
    found = result_of(tmp_path)["clip4clip"]
    # Each of 6 queries counts once at each of 6 tied ranks.
    expected = {"R1": 100 / 6, "R5": 500 / 6, "R10": 100, "MedianR": 3.5, "MeanR": 3.5}
    assert found["plain"]["t2v"] == pytest.approx(expected)
    assert set(found) == {"plain", "DSL (transductive)"}
    printed = capsys.readouterr().out
    for label in found:
        assert f"CLIP4Clip's evaluation, {label} " in printed
    names = [str(n // 3) for n in range(9)]
    videos, captions = lines(tmp_path, "v.txt", *"0123"), lines(tmp_path, "c.txt", *names)
    lists = {"captions": str(captions), "videos": str(videos)}
    matrix = saved(tmp_path, np.random.default_rng(0).random((9, 4)))
    with pytest.raises(UserError, match=r"compatibility=clip4clip: found 1 videos without a caption"):
        run(config(tmp_path, similarity=str(matrix), **keys, **lists))


def test_rows_may_be_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = np.array([[0.9, 0.1, 0.3], [0.8, 0.7, 0.2], [0.2, 0.3, 0.1]], dtype=np.float32)
    labels = lines(tmp_path, "labels.txt", "v0\tcooking\tmusic", "v1\tsport", "v2")
    keys = {
        "similarity": str(saved(tmp_path, matrix)),
        "captions": str(lines(tmp_path, "names.txt", "cooking", "music", "sport")),
        "videos": str(lines(tmp_path, "videos.txt", "v0", "v1", "v2")),
        "labels": str(labels),
    }
    # cooking and music lead for v0; sport is second for v1.
    assert run(config(tmp_path, **keys)) == pytest.approx((200 / 3 * 100 * 100) ** (1 / 3))
    found = result_of(tmp_path)
    assert found["labels"]["R1"] == pytest.approx(200 / 3)
    assert found["protocol"]["num_pairs"] == 3
    assert found["excluded"] == {"videos_without_label": 1, "labels_without_video": 0}
    rows = (tmp_path / "run" / "ranks.csv").read_text().splitlines()
    assert rows == ["video,label,rank", "v0,cooking,1", "v0,music,1", "v1,sport,2"]
    assert "labels of a video" in capsys.readouterr().out
    for line, message in (("v0\tdance", "names label 'dance'"), ("v9\tsport", "names video 'v9'")):
        labels.write_text(line + "\n")
        with pytest.raises(UserError, match=message):
            run(config(tmp_path, **keys))


@pytest.mark.real
def test_real_scores_are_printed(tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(config(tmp_path, similarity=str(shared_data / "scores" / "msrvtt_titles_matrix.npy")))
    out = capsys.readouterr().out
    assert "text to video  29.7  55.8  66.6" in out
    assert "video to text  28.4  54.9  66.8" in out
