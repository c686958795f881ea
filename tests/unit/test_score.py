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
    base = {"similarity": None, "captions": None, "videos": None, "ties": "optimistic"}
    paths = {"run_dir": str(tmp_path / "run")}
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
    bank = saved(tmp_path, np.concatenate([matrix[1:], matrix]), "bank.npy")
    run(config(tmp_path, similarity=str(saved(tmp_path, matrix)), querybank=str(bank)))
    found = result_of(tmp_path)
    assert found["t2v"]["R1"] == 100.0
    assert found["qb_norm"]["raw_t2v"]["R1"] == pytest.approx(100 / 6)
    assert found["qb_norm"]["bank_queries"] == 11
    words = "QB-Norm t2v only (beta 20, k 1, bank 11 queries of bank.npy)"
    assert found["protocol"]["rescoring"] == words
    assert f"rescoring {words}" in capsys.readouterr().out
    run(config(tmp_path, similarity=str(saved(tmp_path, matrix))))
    assert result_of(tmp_path)["v2t"] == found["v2t"]
    bank = saved(tmp_path, np.ones((4, 5)), "bank.npy")
    with pytest.raises(UserError, match=r"task\.querybank: found 5 columns in .*expected 6"):
        run(config(tmp_path, similarity=str(saved(tmp_path, matrix)), querybank=str(bank)))


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
