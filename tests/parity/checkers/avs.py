"""Ad-hoc video search: the official evaluation, and the chain from a score file to its submission and run file."""

from __future__ import annotations

import tempfile
from pathlib import Path

from src.data.caption_files import read_judgements, read_topics
from src.metrics.infap import evaluate_run
from src.reports.trecvid import Results, Submission, perf_text, read_run, with_names_of, write_run
from tests.parity.cases import Case


def check_evaluation(case: Case) -> None:
    for name, run in case.meta["runs"].items():
        if "expected" not in run:
            continue  # the chain, below
        judgements = read_judgements(case.folder / f"{name}.qrels", ())
        result = evaluate_run(read_run(case.folder / f"{name}.run"), judgements)
        rows = {topic: rounded(row) for topic, row in {**result.topics, "all": result.all}.items()}
        assert rows == run["expected"], name
        assert perf_text(result) == (case.folder / f"{name}.expected.txt").read_text(), name


def check_chain(case: Case) -> None:
    """Score file, submission, run file and evaluation, byte by byte; all three files are the same run."""
    golden = {suffix: case.folder / f"id.sent.score.txt{suffix}" for suffix in ("", ".xml", ".treceval")}
    lines = [line.split() for line in golden[""].read_text().splitlines()]
    topics = [(fields[0], list(zip(fields[1::2], fields[2::2], strict=True))) for fields in lines]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "id.sent.score.txt"
        written = write_run(path, topics, Submission())
        for suffix, expected in golden.items():
            assert Path(f"{path}{suffix}").read_bytes() == expected.read_bytes(), suffix
    text = case.folder / "root" / "iacc.3" / "TextData"
    judgements = read_judgements(text / "avs.qrels.tv18", read_topics(text / "tv18.avs.txt"))
    perf = (case.folder / "perf.txt").read_text()
    runs: dict[str, Results] = {"written": written} | {suffix: read_run(path) for suffix, path in golden.items()}
    for name, run in runs.items():
        result = evaluate_run(with_names_of(run, {line.topic for line in judgements}), judgements)
        assert perf_text(result, prefix="1") == perf, name
    assert case.meta["runs"]["chain"]["stdout"] == f"tv18 infAP: {result.all['infAP']:.3f}"


def rounded(row: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.4f}") for key, value in row.items()}


def check_infap(case: Case) -> None:
    check_evaluation(case)
    check_chain(case)


CHECKERS = {"dual_encoding": {"infap": check_infap}}
