"""task=compare fuse=[…]: weights that are right, that see nothing of the test, and runs that do not belong together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from src.config import compose
from src.errors import UserError
from src.metrics.fusion import Scale, fused_score, learn_weights
from src.metrics.retrieval import evaluate_matrix
from src.reports.report import ReportFacts, write_report
from src.tasks import compare

SIZE = 200
PROTOCOL = {"dataset": "made", "split": "full", "subset": "", "selection": "val", "seed": 0, "checkpoint": "best"}


def noisy(noise: float, seed: int, size: int = SIZE) -> np.ndarray:
    """Scores in which caption i belongs to video i, on a scale of their own."""
    generator = np.random.default_rng(seed)
    scores = np.eye(size) + noise * generator.standard_normal((size, size))
    return (scores * (3 + seed) - seed).astype(np.float32)


def lists(part: str, size: int = SIZE) -> tuple[list[str], list[str]]:
    videos = [f"{part}{n}" for n in range(size)]
    return [f"{name}#0\t{name}\tcaption of {name}" for name in videos], videos


def make_run(
    folder: Path, val: np.ndarray, test: np.ndarray, model: str = "A", ties: Any = "optimistic", **protocol: object
) -> Path:
    """A finished run as save_similarity=true leaves it."""
    owners = torch.arange(test.shape[1])
    facts = ReportFacts(protocol={**PROTOCOL, "model": model, **protocol}, captions={}, videos={})
    write_report(folder, evaluate_matrix(test, owners, len(owners), ties=ties), facts)
    for part, prefix, matrix in (("val", "val_", val), ("test", "", test)):
        captions, videos = lists(part, len(matrix))
        save(folder, prefix, matrix, captions, videos)
    return folder


def save(folder: Path, prefix: str, matrix: np.ndarray, captions: list[str], videos: list[str]) -> None:
    np.save(folder / f"{prefix}similarity.npy", matrix)
    (folder / f"{prefix}captions.tsv").write_text("\n".join(captions) + "\n", encoding="utf-8")
    (folder / f"{prefix}videos.txt").write_text("\n".join(videos) + "\n", encoding="utf-8")


def shuffled(folder: Path, prefix: str, seed: int = 5) -> None:
    """The same scores with rows and columns in another order."""
    matrix = np.load(folder / f"{prefix}similarity.npy")
    captions = (folder / f"{prefix}captions.tsv").read_text().splitlines()
    videos = (folder / f"{prefix}videos.txt").read_text().splitlines()
    generator = np.random.default_rng(seed)
    rows, columns = generator.permutation(len(captions)), generator.permutation(len(videos))
    changed = matrix[rows][:, columns], [captions[n] for n in rows], [videos[n] for n in columns]
    save(folder, prefix, *changed)


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Errors that are independent: half as large in the first run."""
    first = make_run(tmp_path / "a", noisy(0.3, 1), noisy(0.3, 2), "A")
    return [first, make_run(tmp_path / "b", noisy(0.6, 3), noisy(0.6, 4), "B")]


@pytest.fixture
def fuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def call(runs: list[Path], objective: str = "SumR", ties: str = "optimistic") -> dict[str, Any]:
        task = {"fuse": [str(run) for run in runs], "objective": objective}
        out = tmp_path / "out"
        cfg = OmegaConf.create({"task": task, "runs": [], "ties": ties, "paths": {"run_dir": str(out)}})
        compare.run(cfg)
        found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
        return {**found, "printed": capsys.readouterr().out, "table": (out / "comparison.md").read_text()}

    return call


def test_ties_are_ranked_as_the_runs_ranked_them(tmp_path: Path, fuse: Callable[..., dict[str, Any]]) -> None:
    tied = [np.round(noisy(0.5, seed) / 2) for seed in range(4)]
    runs = [make_run(tmp_path / name, *tied[k : k + 2], name, ties="average") for k, name in ((0, "a"), (2, "b"))]
    found = fuse(runs)
    assert found["protocol"]["ties"] == "average"
    for run in runs:  # each run's row is its own number
        assert f"{single(run):.1f}" in next(line for line in found["table"].splitlines() if f"| {run.name} " in line)
    assert fuse(runs, ties="pessimistic")["protocol"]["ties"] == "pessimistic"
    other = make_run(tmp_path / "c", *tied[2:], "c", ties="pessimistic")
    assert fuse([runs[0], other])["protocol"]["ties"] == "optimistic"


def weights(found: dict[str, Any]) -> list[float]:
    return [run["weight"] for run in found["fusion"]["runs"]]


def single(run: Path) -> float:
    return float(json.loads((run / "metrics.json").read_text())["SumR"])


@pytest.mark.parametrize("objective", ["SumR", "SumAP", "t2v/MnR"])
def test_independent_errors_are_weighed_as_theory_says_and_beat_both(
    two: list[Path], fuse: Callable[..., dict[str, Any]], objective: str
) -> None:
    """Of standardised scores, the best weights are in proportion to signal over noise: 2 to 1."""
    found = fuse(two, objective)
    assert weights(found)[0] == pytest.approx(2 / 3, abs=0.1)
    assert sum(weights(found)) == pytest.approx(1)
    assert found["SumR"] > max(single(run) for run in two) + 1
    assert found["protocol"]["model"] == "fusion"
    assert f"weights learnt on val for {objective}" in found["protocol"]["fusion"]
    line = found["table"].splitlines()[0]
    assert "fusion 0." in line
    assert "weights learnt on val" in line
    for name in ("A", "B", "fusion"):
        assert f"| {name}" in found["table"]
    assert f"{found['SumR']:.1f}" in found["printed"]


def test_weights_are_those_of_the_better_run_where_the_other_is_noise(
    tmp_path: Path, fuse: Callable[..., dict[str, Any]]
) -> None:
    good = make_run(tmp_path / "good", noisy(0.3, 1), noisy(0.3, 2))
    noise = [make_run(tmp_path / name, noisy(50.0, seed), noisy(50.0, seed + 1)) for name, seed in (("x", 7), ("y", 9))]
    for runs in ([good, noise[0]], [noise[0], good], [noise[0], good, noise[1]]):
        found = fuse(runs, "SumAP")
        assert weights(found)[runs.index(good)] >= 0.88
        assert found["SumR"] >= single(good) - 5
    assert "A good" in found["table"]


def test_nothing_is_learnt_of_the_test(two: list[Path], fuse: Callable[..., dict[str, Any]]) -> None:
    learnt = weights(fuse(two))
    make_run(two[0], noisy(0.3, 1), noisy(0.9, 8), "A")
    make_run(two[1], noisy(0.6, 3), noisy(0.1, 9), "B")
    assert weights(fuse(two)) == learnt


def test_rows_and_columns_are_matched_by_what_they_are(two: list[Path], fuse: Callable[..., dict[str, Any]]) -> None:
    expected = fuse(two)
    shuffled(two[1], "")
    shuffled(two[1], "val_", seed=6)
    found = fuse(two)
    for key in ("t2v", "v2t", "SumR", "fusion"):
        assert found[key] == expected[key]


def test_captions_of_unread_videos_are_no_queries_and_equal_captions_stay_apart(
    tmp_path: Path, fuse: Callable[..., dict[str, Any]]
) -> None:
    runs = [make_run(tmp_path / name, noisy(0.3, seed), noisy(0.3, seed + 1)) for name, seed in (("a", 1), ("b", 3))]
    expected = fuse(runs)
    for run in runs:
        captions, videos = lists("test")
        matrix = np.load(run / "similarity.npy")
        more = np.concatenate([np.zeros((1, SIZE), np.float32), matrix, matrix[-1:]])
        save(run, "", more, ["gone#0\tgone\tx", *captions, captions[-1]], videos)
    found = fuse(runs)
    assert found["protocol"]["num_captions"] == SIZE + 1
    assert weights(found) == weights(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "val_similarity.npy").unlink(), "has no val_similarity.npy .*save_similarity=true"),
        (lambda run: (run / "captions.tsv").unlink(), "has no captions.tsv"),
        (lambda run: (run / "metrics.json").unlink(), "holds no metrics.json"),
        (lambda run: save(run, "", noisy(0.1, 1, 100), *lists("test", 100)), "the videos of test are not the same"),
        (lambda run: save(run, "val_", noisy(0.1, 1), *lists("other")), "the videos of val .*200 only in the first"),
        (
            lambda run: save(run, "", noisy(0.1, 1), [f"{c} too" for c in lists("test")[0]], lists("test")[1]),
            "the captions of test are not the same .*'caption of test0' of test0 only in the first",
        ),
        (lambda run: save(run, "", noisy(0.1, 1, 9), *lists("test")), "is 9 x 9, its lists name 200 captions"),
        (lambda run: save(run, "", noisy(0.1, 1), ["x"] * SIZE, lists("test")[1]), "expected caption<TAB>video"),
        (lambda run: save(run, "val_", np.ones((SIZE, SIZE)), *lists("val")), "40000 equal scores"),
        (lambda run: save(run, "val_", noisy(np.nan, 1), *lists("val")), "not finite"),
        (lambda run: make_run(run, noisy(0.3, 1), noisy(0.3, 2), split="other"), "found split full and other"),
        (lambda run: make_run(run, noisy(0.3, 1), noisy(0.3, 2), dataset="x"), "different protocols .*dataset made"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(
    two: list[Path], fuse: Callable[..., dict[str, Any]], change: Callable[[Path], object], message: str
) -> None:
    change(two[1])
    with pytest.raises(UserError, match=message):
        fuse(two)


def test_other_mistakes_are_refused(two: list[Path], fuse: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="expected at least two different ones"):
        fuse(two[:1])
    with pytest.raises(UserError, match="expected at least two different ones"):
        fuse([two[0], two[0]])
    with pytest.raises(UserError, match=r"task\.objective=R1, expected one of SumR, SumAP, t2v/R1"):
        fuse(two, "R1")
    for run in two:
        save(run, "val_", np.load(run / "similarity.npy"), *lists("test"))
    with pytest.raises(UserError, match="200 captions are in the validation and in the test part"):
        fuse(two)


def test_protocol_keeps_what_the_runs_share(two: list[Path], fuse: Callable[..., dict[str, Any]]) -> None:
    make_run(two[1], noisy(0.6, 3), noisy(0.6, 4), "B", selection="test", seed=3, without_ocr=7)
    protocol = fuse(two)["protocol"]
    assert (protocol["dataset"], protocol["split"], protocol["selection"]) == ("made", "full", "test+val")
    assert protocol["seed"] is None
    assert "without_ocr" not in protocol


def test_scale_is_that_of_the_whole_matrix() -> None:
    matrix = np.random.default_rng(0).normal(1000, 0.5, (3000, 7)).astype(np.float32)
    found = Scale.of(matrix, "")
    assert (found.mean, found.std) == pytest.approx((matrix.astype(float).mean(), matrix.astype(float).std()), rel=1e-9)


def test_fused_scores_are_the_weighted_sum() -> None:
    first, second = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[10.0, 0.0], [0.0, 10.0]])
    score = fused_score((first, second), (Scale(1, 2), Scale(5, 5)), (0.25, 0.75))
    expected = 0.25 * (first - 1) / 2 + 0.75 * (second - 5) / 5
    np.testing.assert_allclose(score(slice(0, 2), slice(0, 2)), expected)
    np.testing.assert_allclose(score(torch.tensor([1]), slice(0, 2)), expected[1:])


@pytest.mark.parametrize("optimum", [(0.2, 0.8), (1.0, 0.0), (0.1, 0.6, 0.3), (0.0, 0.0, 1.0), (0.4, 0.1, 0.2, 0.3)])
def test_weights_find_the_optimum(optimum: tuple[float, ...]) -> None:
    found, value = learn_weights(lambda w: -sum((a - b) ** 2 for a, b in zip(w, optimum, strict=True)), len(optimum))
    assert found == pytest.approx(optimum, abs=0.011)
    assert sum(found) == pytest.approx(1)
    assert value == pytest.approx(0, abs=1e-3)


def test_of_equal_values_the_most_even_weights_are_taken() -> None:
    assert learn_weights(lambda w: float(w[0] >= 0.7), 2)[0] == (0.7, 0.3)
    assert learn_weights(lambda w: 0.0, 3)[0] == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_the_command_line_takes_the_bare_key() -> None:
    words = compose.task_keys_named(["task=compare", "fuse=[runs/a,runs/b]", "objective=SumAP"])
    assert words == ["task=compare", "task.fuse=[runs/a,runs/b]", "task.objective=SumAP"]
    (values,) = compose.preflight(compose.parse(words))
    assert values["task"]["fuse"] == ["runs/a", "runs/b"]
