"""The published rows beside a result, through the real command line: a recipe in miniature, trained and tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmark_files import write_benchmark

Cli = Callable[..., Any]
Metrics = Callable[[str], dict[str, Any]]


def test_a_fine_tuned_model_stands_beside_both_published_tables(cli: Cli, metrics: Metrics, tmp_path: Path) -> None:
    write_benchmark(tmp_path, "vatex")
    outcome = cli(
        "experiment=internvideo_vatex",
        *("model.arch=videotext-tiny", "model.pretrained=null", "trainer.max_epochs=1", "trainer=cpu"),
        *("dataset.batch_size=4", "dataset.num_workers=0", "~split.expected", "logger=none"),
        tiny=False,
        env={"VIDEOTEXT_DATA": str(tmp_path)},
    ).succeeded()
    found = metrics("run")
    assert [row["t2v"]["R1"] for row in found["published"]] == [72.0, 71.1]
    assert {row["setting"] for row in found["published"]} == {"fine-tuned"}
    title = "published: InternVideo fine-tuned, vatex/vatex_hgr, 1500 videos, with DSL (transductive"
    _, table = outcome.out.split(title)
    lines = {line.split("  ")[0]: line.split() for line in table.splitlines()}
    assert lines["text to video: authors, first table (ViT-L/14)"][-5:] == ["72.0", "95.1", "97.8", "1.0", "2.4"]
    assert lines["text to video: authors, second table (ViT-L/14)"][-3:] == ["71.1", "94.7", "97.6"]
    own = [f"{found['rescored']['t2v'][key]:.1f}" for key in ("R1", "R5", "R10", "R50", "MdR", "MnR")]
    assert lines["text to video: this run"][-6:] == own
    # By the published rules the re-scored video to text of several captions is the plain one.
    rules = found["clip4clip"]
    assert rules["DSL (transductive)"]["v2t"] == rules["plain"]["v2t"]
    assert lines["video to text: this run, published rules"][-1] == f"{rules['plain']['v2t']['MeanR']:.1f}"
    assert "this run ranks 6 videos, not 1500: its numbers do not compare" in table
    assert title in (tmp_path / "run" / "report" / "index.html").read_text()
