"""Comparison tables: seeds, protocols, bootstrap."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from src.errors import UserError
from src.metrics.dual_softmax import DualSoftmax
from src.metrics.qb_norm import QbNorm
from src.metrics.rescoring import Banks, Rescoring, rescore
from src.metrics.retrieval import MatrixScore, evaluate_matrix
from src.metrics.score_blocks import Scores
from src.reports.compare import compare_runs, paired_bootstrap, read_ranks
from src.reports.report import ReportFacts, write_report
from src.tasks.compare import find_runs, run


def make_run(
    folder: Path, noise: float, seed: int, *, split: str = "test-a", model: str = "M", **config: object
) -> Path:
    """A finished run of a fake model: diagonal plus noise."""
    matrix = np.eye(40) + noise * np.random.default_rng(seed + int(1000 * noise)).standard_normal((40, 40))
    result = evaluate_matrix(matrix.repeat(2, axis=0), torch.arange(80) // 2, 40)
    protocol = {"dataset": "toy", "split": split, "model": model, "checkpoint": "best", "seed": seed}
    write_report(folder, result, ReportFacts(protocol=protocol, captions={}, videos={}))
    values = {"seed": seed, "paths": {"run_dir": str(folder)}, "model": {"noise": noise}, **config}
    values["trainer"] = {"default_root_dir": f"{folder}/x"}  # differs between seeds and must not matter
    (folder / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder


def recall(folder: Path, side: str = "t2v") -> float:
    return json.loads((folder / "metrics.json").read_text())[side]["R1"]


def test_seeds_become_mean_and_standard_deviation(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"{noise}_{seed}", noise, seed) for noise in (0.3, 0.6) for seed in (0, 1, 2)]
    (table,) = compare_runs(runs).tables
    assert len(table.rows) == 2
    assert [row[-1] for row in table.rows] == ["0,1,2", "0,1,2"]
    assert table.rows[0][0] == "M model.noise=0.3"
    values = [recall(folder) for folder in runs[:3]]
    assert table.rows[0][1] == f"{np.mean(values):.1f} ({np.std(values, ddof=1):.1f})"
    assert (0, 1) in table.best
    assert (1, 1) not in table.best
    assert "mean (sample standard deviation) over seeds; GeoMean: of the population, as published" in table.notes
    column = table.columns.index("t2v GeoMean")
    means = [json.loads((folder / "metrics.json").read_text())["t2v"]["GeoMean"] for folder in runs[:3]]
    assert table.rows[0][column] == f"{np.mean(means):.1f} ({np.std(means):.1f})"


def test_an_ablation_has_the_published_layout(tmp_path: Path) -> None:
    """Rows are named by what was typed, not by the many settings that follow from it."""
    presets = {"scene": 19_461_947, "scene_rgb": 41_124_924, "all": 1_083_448_607, "tiny": 12, "small": 1_234}
    for job, (preset, seed) in enumerate((preset, seed) for preset in presets for seed in (0, 1)):
        experts = {name: {"dim": len(name)} for name in preset.split("_")}
        folder = make_run(tmp_path / str(job), 0.3, seed, experts=experts)
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text(f"- experts={preset}\n- seed={seed}\n- model=ce\n")
        metrics = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps({**metrics, "parameters": presets[preset]}))
    (table,) = compare_runs(find_runs([str(tmp_path)])).tables
    keys = ("R@1", "R@5", "R@10", "R@50", "MdR", "MnR", "GeoMean")
    sides = [f"{side} {key}" for side in ("t2v", "v2t") for key in keys]
    assert table.columns == ("experts", "Params", *sides, "SumR", "seeds")
    found = {row[0]: row[1] for row in table.rows}
    assert found == {"scene": "19.46M", "scene_rgb": "41.12M", "all": "1.08B", "tiny": "12", "small": "1.23k"}
    assert all(row[-1] == "0,1" for row in table.rows)
    assert all(0 < column < len(table.columns) - 1 for _, column in table.best)
    assert (0, 1) not in table.best, "parameters are no result"
    assert "| experts | Params | t2v R@1 |" in table.markdown()
    assert r"experts & Params & t2v R@1 &" in table.latex()
    assert table.csv().startswith("experts,Params,t2v R@1,")


def test_rows_that_differ_in_several_words_show_them_all(tmp_path: Path) -> None:
    typed = ({"model": "ce", "+text": "w2v"}, {"model": "moee"}, {"model": "moee", "model.x": "2"})
    for job, words in enumerate(typed):
        folder = make_run(tmp_path / str(job), 0.3 + job, 0)
        (folder / ".hydra").mkdir()
        lines = [f"{key}={value}" for key, value in words.items()]
        (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([*lines, "paths.data_dir=x"]))
    (table,) = compare_runs(find_runs([str(tmp_path)])).tables
    assert table.columns[0] == "run"
    assert [row[0] for row in table.rows] == ["model=ce text=w2v", "model=moee", "model=moee model.x=2"]


def test_protocols_are_never_mixed(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / split, 0.3, 0, split=split) for split in ("test-a", "test-b")]
    tables = compare_runs(runs).tables
    assert len(tables) == 2
    assert "test-a" in tables[0].title
    assert "test-b" in tables[1].title
    assert all("2 protocols: compare numbers within one table only" in table.notes for table in tables)
    assert all(len(table.rows) == 1 and not table.best for table in tables)


def rescored_run(folder: Path, noise: float, seed: int, method: Rescoring | None, **config: object) -> Path:
    """As `make_run`, perhaps re-scored."""
    make_run(folder, noise, seed, **config)
    if method is None:
        return folder
    matrix = np.eye(40) + noise * np.random.default_rng(seed + int(1000 * noise)).standard_normal((40, 40))
    scores = Scores(MatrixScore(matrix.repeat(2, axis=0)), torch.arange(80) // 2, 40)
    plain = evaluate_matrix(matrix.repeat(2, axis=0), torch.arange(80) // 2, 40)
    entry = rescore(method, scores, plain, None if method.bank == "test" else bank_of_ones()).to_json()
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**metrics, "rescored": entry}))
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(f"- rescoring={method.name}\n- seed={seed}\n")
    values = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**values, "rescoring": {"_target_": method.name}}))
    return folder


def bank_of_ones() -> Banks:
    return Banks("captions of train", [torch.eye(40)[:7]])


def test_rescored_numbers_have_tables_of_their_own(tmp_path: Path) -> None:
    """A sweep over re-scorings: the plain numbers stand once, and no table has both kinds."""
    methods = (None, DualSoftmax(), QbNorm(bank="test"), QbNorm(beta=2.0))
    runs = [
        rescored_run(tmp_path / f"{n}_{noise}_{seed}", noise, seed, method)
        for n, method in enumerate(methods)
        for noise in (0.3, 0.6)
        for seed in (0, 1)
    ]
    for chosen, tables in ((runs, 4), (runs[4:], 4), (list(reversed(runs)), 4), (runs[4:8], 2)):
        found = {table.title.split("rescoring ")[1].split(" |")[0]: table for table in compare_runs(chosen).tables}
        assert len(found) == tables
        plain = found.pop("none")
        assert sorted(row[0] for row in plain.rows) == ["M model.noise=0.3", "M model.noise=0.6"]
        assert {row[-1] for row in plain.rows} == {"0,1"}, "no seed counts twice"
        assert plain.rows[0][1] == compare_runs(chosen[:2]).tables[0].rows[0][1]
        for words, table in found.items():
            assert len(table.rows) == 2
            assert words in (
                "DSL (transductive): temperature 1",
                "QB-Norm (transductive): beta 0.5025, k 1, bank test",
                "QB-Norm t2v only: beta 2, k 1, bank captions of train, bank_queries 7",
            )
            assert ("v2t R@1" in table.columns) == (" t2v only" not in words)
            assert not any("bootstrap" in note for note in table.notes), "ranks.csv holds the plain ranks"
    dsl = json.loads((runs[4] / "metrics.json").read_text())
    (_, table) = compare_runs(runs[4:5]).tables
    assert table.rows[0][1] == f"{dsl['rescored']['t2v']['R1']:.1f}"
    assert dsl["rescored"]["t2v"] != dsl["t2v"]


def test_rows_are_named_by_what_differs(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", 0.3, 0, optimizer={"lr": 0.1, "name": "x"}),
        make_run(tmp_path / "b", 0.3, 0, optimizer={"lr": 0.2, "name": "x"}),
        make_run(tmp_path / "c", 0.5, 0, model="Other", optimizer={"lr": 0.1, "name": "x"}),
    ]
    (table,) = compare_runs(runs).tables
    assert [row[0] for row in table.rows] == ["M optimizer.lr=0.1", "M optimizer.lr=0.2", "Other optimizer.lr=0.1"]


def test_runs_without_configuration_are_told_apart_by_model_or_folder(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, 0.3, 0, model=model) for name, model in (("a", "M"), ("b", "N"))]
    for folder in runs:
        (folder / "config.yaml").unlink()
    (table,) = compare_runs(runs).tables
    assert [row[0] for row in table.rows] == ["M", "N"]


def test_a_repeated_seed_is_pointed_out(tmp_path: Path) -> None:
    (table,) = compare_runs([make_run(tmp_path / name, 0.3, 0) for name in "ab"]).tables
    assert table.rows[0][-1] == "0,0 (repeated)"


def test_two_runs_get_a_paired_bootstrap(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", 0.8, 0), make_run(tmp_path / "b", 0.1, 0)]
    (table,) = compare_runs(runs).tables
    difference = recall(runs[1]) - recall(runs[0])
    assert any(f"= {difference:+.1f} points" in note and "p < 0.001" in note for note in table.notes)


def test_searches_by_topics_are_compared_by_inferred_precision(tmp_path: Path) -> None:
    for seed, precision in ((0, 0.05), (1, 0.07)):
        (tmp_path / f"{seed}").mkdir()
        row = {"infAP": precision, "infNDCG": 2 * precision}
        found = {"protocol": {"dataset": "avs", "model": "M", "seed": seed}, "topics": {"tv18": {"all": row}}}
        (tmp_path / f"{seed}" / "metrics.json").write_text(json.dumps(found))
    recalls = make_run(tmp_path / "recalls", 0.3, 0)
    table, other = compare_runs([tmp_path / "0", tmp_path / "1", recalls]).tables
    assert table.columns == ("run", "tv18 infAP", "tv18 infNDCG", "seeds")
    assert table.rows == (("M", "6.0 (1.4)", "12.0 (2.8)", "0,1"),)
    assert "in percent" in table.notes
    assert other.columns[1] == "t2v R@1"
    (tmp_path / "0" / "metrics.json").write_text('{"protocol": {}, "topics": {"tv18": {"all": {}}}}')
    with pytest.raises(UserError, match="metrics are missing"):
        compare_runs([tmp_path / "0"])


def test_bootstrap_against_the_known_distribution() -> None:
    rng = np.random.default_rng(0)
    a = {str(n): (str(n), 1.0 + float(rng.random() < 0.5)) for n in range(500)}
    same = paired_bootstrap(a, dict(a))
    assert (same.value, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    b = {q: (v, 1.0 + float(rng.random() < 0.5)) for q, (v, _) in a.items()}
    found = paired_bootstrap(a, b)
    gain = np.array([float(b[q][1] <= 1) - float(a[q][1] <= 1) for q in a])
    half_width = 1.96 * 100 * gain.std() / np.sqrt(len(gain))
    assert found.value == pytest.approx(100 * gain.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half_width, rel=0.05)
    assert found == paired_bootstrap(a, b), "not reproducible"


def test_captions_of_one_video_are_not_independent() -> None:
    """Ten copies of each query add no evidence."""
    rng = np.random.default_rng(1)
    ranks = [(1.0 + float(rng.random() < 0.5), 1.0 + float(rng.random() < 0.5)) for _ in range(100)]
    one = [{str(v): (str(v), pair[side]) for v, pair in enumerate(ranks)} for side in (0, 1)]
    ten = [{f"{v}-{n}": (str(v), pair[side]) for v, pair in enumerate(ranks) for n in range(10)} for side in (0, 1)]
    assert paired_bootstrap(*ten) == paired_bootstrap(*one)


def test_bootstrap_wants_the_same_queries(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found 1 and 2 queries"):
        paired_bootstrap({"a": ("v", 1.0)}, {"a": ("v", 1.0), "b": ("v", 1.0)})
    runs = [make_run(tmp_path / "a", 0.8, 0), make_run(tmp_path / "b", 0.1, 0)]
    (runs[0] / "ranks.csv").unlink()
    (table,) = compare_runs(runs).tables
    assert any("not compared" in note for note in table.notes)


def test_ranks_are_read_back(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", 0.5, 0)
    ranks = read_ranks(folder, "t2v")
    assert len(ranks) == 80
    assert ranks["5"][0] == "2"
    assert 100 * np.mean([rank <= 1 for _, rank in ranks.values()]) == pytest.approx(recall(folder))
    assert len(read_ranks(folder, "v2t")) == 40


@pytest.mark.parametrize("has_config", [True, False])
def test_what_was_trained_on_is_no_protocol(tmp_path: Path, has_config: bool) -> None:
    """Runs with and without caption mask answer the same queries: two rows of one table."""
    folders = [make_run(tmp_path / name, 0.3, 0, dataset={"caption_mask": name}) for name in ("none", "mask")]
    metrics = json.loads((folders[1] / "metrics.json").read_text())
    metrics["protocol"]["caption_mask"] = "9 of 80 training captions left out"
    (folders[1] / "metrics.json").write_text(json.dumps(metrics))
    for folder in folders if not has_config else ():
        (folder / "config.yaml").unlink()
    (table,) = compare_runs(folders).tables
    assert len(table.rows) == 2


def test_written_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "runs" / "a", 0.3, 0)
    make_run(tmp_path / "runs" / "b", 0.6, 0)
    run(OmegaConf.create({"runs": [str(tmp_path / "runs")], "paths": {"run_dir": str(tmp_path / "out")}}))
    assert "M model.noise=0.3" in capsys.readouterr().out
    assert "| M model.noise=0.3 |" in (tmp_path / "out" / "comparison.md").read_text()
    assert r"\begin{tabular}" in (tmp_path / "out" / "comparison.tex").read_text()
    rows = list(csv.reader((tmp_path / "out" / "comparison.csv").read_text().splitlines()[1:]))
    assert rows[0][:2] == ["run", "t2v R@1"]
    assert float(rows[1][1]) == pytest.approx(recall(tmp_path / "runs" / "a"), abs=0.05)


def test_run_folders_are_found_once_and_mistakes_are_named(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "x" / "a", 0.3, 0), make_run(tmp_path / "x" / "b", 0.6, 0)
    assert find_runs([str(a), str(tmp_path / "*"), str(b)]) == [a.resolve(), b.resolve()]
    with pytest.raises(UserError, match="holds no metrics"):
        find_runs([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="expected runs="):
        find_runs([])
    (a / "metrics.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="no usable metrics"):
        compare_runs([a])
    (a / "metrics.json").write_text(json.dumps({"protocol": {}, "t2v": {}, "v2t": {}}), encoding="utf-8")
    with pytest.raises(UserError, match="metrics are missing"):
        compare_runs([a])


def test_a_benchmark_with_skills_gets_their_pair_accuracies(tmp_path: Path) -> None:
    found = {(0.3, 0): 90.0, (0.3, 1): 96.0, (0.6, 0): 50.0, (0.6, 1): 40.0}
    folders = []
    for (noise, seed), accuracy in found.items():
        folders.append(make_run(tmp_path / f"{noise}_{seed}", noise, seed))
        path = folders[-1] / "metrics.json"
        skills = {"motion": {"R1": 1.0, "pair_accuracy": 50.0}, "sound": {"R1": 2.0, "pair_accuracy": accuracy}}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"skills": skills}))
    _, table = compare_runs(folders).tables
    assert table.columns == ("run", "motion", "sound")
    assert [row[0] for row in table.rows] == ["M model.noise=0.3", "M model.noise=0.6"]
    assert [row[2] for row in table.rows] == ["93.0 (4.2)", "45.0 (7.1)"]
    assert table.best == {(0, 1), (1, 1), (0, 2)}  # equally good, and the better one
    assert len(compare_runs([*folders, make_run(tmp_path / "without", 0.9, 0)]).tables) == 1
