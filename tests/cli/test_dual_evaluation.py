"""A checkpoint, captions, features and a vocabulary in the Dual Encoding authors' formats: convert, evaluate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from src.convert.dual_encoding import read_vocabulary_words
from src.data.features.bigfile import bigfile_source
from src.data.features.source import import_source
from tests.parity.cases import ROOT

CASE = ROOT / "tests" / "golden" / "dual_encoding" / "pipeline_onefolder"
TOY = CASE / "root" / "toy"
Cli = Callable[..., Any]
MODEL = (
    *("model=dual_encoding", "model.padding=upstream", "model.num_concepts=10", "model.word_dim=12"),
    *("model.text_rnn_size=5", "model.visual_rnn_size=6", "model.text_kernel_num=4", "model.visual_kernel_num=3"),
    *("model.embed_dim=8", "+experts.feat.dim=9", "+experts.feat.temporal=true", "+experts.feat.max_steps=64"),
)
DATASET = ("dataset=visualsearch", f"dataset.rootpath={CASE / 'root'}", "dataset.collection=toy")


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((CASE / "pipeline_onefolder.json").read_text())


def test_a_published_checkpoint_gives_the_published_files(cli: Cli, tmp_path: Path, expected: dict[str, Any]) -> None:
    data = f"paths.data_dir={tmp_path}"
    # As task=convert and task=prepare do.
    import_source(bigfile_source(TOY / "FeatureData" / "feat"), tmp_path / "visualsearch" / "features" / "feat")
    words = read_vocabulary_words(TOY / "TextData" / "vocabulary" / "bow" / "word_vocab_5.pkl")
    (tmp_path / "visualsearch" / "vocabulary.json").write_text(json.dumps({"words": words}))
    weights = tmp_path / "model.safetensors"
    source = f"task.source={CASE / 'model_best_legacy.pth.tar'}"
    cli("task=convert", *DATASET, *MODEL, data, source, f"task.output={weights}", name="c", tiny=False).succeeded()

    tags = TOY / "TextData" / "tags" / "video_label_th_1" / "tag_vocab_10.json"
    # Batches of four, as the tester had them: in this mode of padding they count.
    loading = ("dataset.eval_batch_size=4", "dataset.num_workers=0")
    asked = (f"ckpt_path={weights}", f"task.concepts={tags}", "task.error_matrix=true", *loading)
    cli("task=evaluate", *DATASET, *MODEL, data, *asked, tiny=False).succeeded()

    run = tmp_path / "run"
    for side in ("text", "video"):
        assert (run / side / "pred_tags.txt").read_bytes() == (CASE / f"pred_tags_{side}.txt").read_bytes()
    written = torch.load(run / "pred_errors_matrix.pth.tar", weights_only=True)
    errors = load_file(CASE / "pipeline_onefolder.safetensors")["out/errors_combined_w0.6"]
    torch.testing.assert_close(written["errors"].double(), errors, rtol=0, atol=1e-5)
    found = json.loads((run / "metrics.json").read_text())
    for side in ("t2v", "v2t"):
        published = expected["test_metrics"][side]
        for ours, theirs, factor in (("R1", "R1", 1), ("R5", "R5", 1), ("MdR", "MedR", 1), ("mAP", "mAP", 100)):
            assert found[side][ours] == pytest.approx(factor * published[theirs]), f"{side} {ours}"
