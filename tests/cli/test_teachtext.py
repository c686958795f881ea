"""TeachText and denoising from end to end: teacher, its scores, a caption mask, and the student that uses them."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from src.config import compose
from src.data.features.store import FeatureStore
from src.data.features.writer import StoreWriter
from src.errors import UserError
from src.tasks.build import build_datamodule, build_model, empty_model
from src.tasks.checkpoint import load_weights, read_checkpoint

PARTS = {"train": 12, "val": 4, "test": 6}
CAPTIONS = 3
DIMS = {"rgb": 6, "inst": 5, "words": 7}
TRAINED = "fit/checkpoints/best.ckpt"
OPTIONS = (
    *("dataset=folder", "model=ce", "experts=[rgb,inst]", "text=custom", "text.name=words", "text.dim=7"),
    *("experts.rgb.dim=6", "experts.rgb.store=rgb", "experts.inst.dim=5", "experts.inst.store=inst"),
    *("model.shared_dim=8", "model.vlad_clusters={text: 2}", "model.max_tokens={text: 4}"),
    *("optimizer=radam", "dataset.batch_size=4", "dataset.num_workers=0", "dataset.train_samples=one_per_video"),
    *("trainer=cpu", "trainer.max_epochs=1", "logger=none", "callbacks=none"),
)


def store(folder: Path, name: str, ids: list[str], rows: tuple[int, int]) -> None:
    rng = np.random.default_rng(len(name))
    writer = StoreWriter(folder / name, name=name, dim=DIMS[name], recipe={}, ids=ids)
    for shard in writer.pending():
        items = ((i, rng.normal(size=(rng.integers(*rows), DIMS[name])), None, None) for i in writer.shard_ids(shard))
        writer.write_shard(shard, items)
    writer.finish()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions and features of clips; their files are not needed."""
    root = tmp_path_factory.mktemp("teachtext")
    names = [(f"{part}{n}.mp4", part) for part, size in PARTS.items() for n in range(size)]
    with (root / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["video", "caption", "split"])
        rows.writerows([name, f"what {name} shows, {k}", part] for name, part in names for k in range(CAPTIONS))
    for name, _ in names:
        (root / name).touch()
    features = root / "data" / "folder" / "features"
    for name in ("rgb", "inst"):
        store(features, name, [video for video, _ in names], (1, 2))
    store(features, "words", [f"{video}#{k}" for video, _ in names for k in range(CAPTIONS)], (2, 5))
    return root


@pytest.fixture(scope="module")
def do(folder: Path) -> Callable[..., Path]:
    """Run a task in this process: starting another one is what takes time. Returns its run folder."""

    def run(task: str, *words: str, name: str | None = None) -> Path:
        run_dir = folder / (name or task)
        run_dir.mkdir(exist_ok=True)
        places = [f"dataset.data_dir={folder}", f"paths.data_dir={folder / 'data'}"]
        (values,) = compose.preflight(compose.parse([f"task={task}", *OPTIONS, *places, *words]))
        values["paths"]["run_dir"] = str(run_dir)
        importlib.import_module(f"src.tasks.{task}").run(OmegaConf.create(values))
        return run_dir

    return run


@pytest.fixture(scope="module")
def taught(folder: Path, do: Callable[..., Path]) -> Path:
    """The folder after a teacher was trained and has scored the training part twice."""
    do("fit")
    words = ("extractor=teacher", f"ckpt_path={folder / TRAINED}", "task.batch_size=5")
    do("extract", *words, "task.items_per_shard=10")
    do("extract", *words, "extractor.name=teacher.half", "extractor.factor=0.5", "task.dtype=float32")
    return folder


def features(folder: Path, name: str) -> FeatureStore:
    return FeatureStore.open(folder / "data" / "folder" / "features" / name)


def matrix_of(found: FeatureStore) -> np.ndarray:
    return np.concatenate([found.get(i) for i in found.ids]).astype(np.float64)


def test_scores_are_those_of_the_trained_model(taught: Path) -> None:
    found, half = features(taught, "teacher.words"), features(taught, "teacher.half")
    assert found.recipe["videos"] == [f"train{n}.mp4" for n in range(PARTS["train"])]
    assert list(found.ids) == [f"train{n}.mp4#{k}" for n in range(PARTS["train"]) for k in range(CAPTIONS)]
    assert (found.dtype, half.dtype, found.recipe["split"]) == (np.float16, np.float32, "folder")
    assert found.recipe["teacher"]["text"] == "words"
    cfg = OmegaConf.create(read_checkpoint(taught / TRAINED)["videotext"]["config"])
    data = build_datamodule(cfg, empty_model(cfg).input_spec)
    model = build_model(cfg).eval()
    load_weights(model, taught / TRAINED)
    videos, captions = (list(loader) for loader in data.eval_dataloaders("train"))
    with torch.no_grad():
        video = [model.encode_video(batch) for batch in videos]
        s_TV = torch.cat(
            [
                torch.cat([model.similarity(text, some) for some in video], 1)
                for text in (model.encode_text(batch) for batch in captions)
            ]
        ).double()
    np.testing.assert_allclose(matrix_of(half), 0.5 * s_TV.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(matrix_of(found), s_TV.numpy(), atol=1e-3)


def test_an_interrupted_extraction_goes_on(taught: Path, do: Callable[..., Path]) -> None:
    target = features(taught, "teacher.words").path
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    for name in ("manifest.json", "shard-00001.json", "shard-00001.npy"):
        (target / name).unlink()
    kept = (target / "shard-00000.npy").stat().st_mtime_ns
    do("extract", "extractor=teacher", f"ckpt_path={taught / TRAINED}", "task.batch_size=5", "task.items_per_shard=10")
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert (target / "shard-00000.npy").stat().st_mtime_ns == kept


def test_a_teacher_that_saw_the_test_videos_is_refused(taught: Path, do: Callable[..., Path]) -> None:
    words = ("extractor=teacher", f"ckpt_path={taught / TRAINED}", "extractor.name=teacher.leak")
    with pytest.raises(UserError, match="was trained on split 'folder', which holds 12 test videos"):
        do("extract", *words, "split.parts={train: test, test: train}", "selection=last")
    assert not (taught / "data" / "folder" / "features" / "teacher.leak").exists()


def test_denoising_drops_captions_below_the_rank(
    taught: Path, do: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    do("prepare", "task.steps=[denoise]", "task.teacher=teacher.half", "task.rank_threshold=5")
    found = json.loads((taught / "data" / "folder" / "caption_mask_less5.json").read_text())
    s_TV = matrix_of(features(taught, "teacher.half")).reshape(PARTS["train"], CAPTIONS, PARTS["train"])
    own = np.einsum("vkv->vk", s_TV)
    ranks = 1 + (s_TV > own[..., None]).sum(-1)
    expected = {f"train{v}.mp4": "".join("01"[int(rank <= 5)] for rank in ranks[v]) for v in range(len(ranks))}
    assert found["masks"] == expected
    assert "unverified" in found["origin"]["caveat"]
    dropped, total = int((ranks > 5).sum()), ranks.size
    assert 0 < dropped < total
    assert f"denoise: {dropped} of {total} training captions" in capsys.readouterr().out


def test_student_learns_from_both_on_the_command_line(
    taught: Path, do: Callable[..., Path], cli: Callable[..., Any], tmp_path: Path
) -> None:
    """The report says what was left out; the loss has both parts; nothing is needed of the teachers afterwards."""
    if not (taught / "data" / "folder" / "caption_mask_less5.json").is_file():
        do("prepare", "task.steps=[denoise]", "task.teacher=teacher.half", "task.rank_threshold=5")
    masks = json.loads((taught / "data" / "folder" / "caption_mask_less5.json").read_text())["masks"]
    empty = sum("1" not in digits for digits in masks.values())
    places = (f"dataset.data_dir={taught}", f"paths.data_dir={taught / 'data'}")
    words = (
        *("model.teachers=[teacher.words,teacher.half]", "trainer.max_epochs=2", "dataset.batch_size=3"),
        f"dataset.caption_mask={taught / 'data' / 'folder' / 'caption_mask_less5.json'}",
    )
    done = cli(*OPTIONS, *places, *words, name="student", tiny=False).succeeded()
    left_out = "".join(masks.values()).count("0")
    said = f"{left_out} of {PARTS['train'] * CAPTIONS} training captions left out"
    said += f", {empty} videos without any" if empty else ""
    assert said in done.out
    protocol = json.loads((tmp_path / "student" / "metrics.json").read_text())["protocol"]
    assert protocol["caption_mask"] == f"{said} (caption_mask_less5.json)"
    with (tmp_path / "student" / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    parts = [float(last[f"train/{name}"]) for name in ("ranking", "distillation")]
    assert min(parts) > 0
    assert float(last["train/loss"]) == pytest.approx(sum(parts))
    # Neither teachers nor the mask are asked for afterwards.
    run = do("evaluate", f"ckpt_path={tmp_path / 'student'}", "model.teachers=[teacher.absent]")
    again, before = (json.loads((folder / "metrics.json").read_text()) for folder in (run, tmp_path / "student"))
    assert (again["t2v"], again["v2t"]) == (before["t2v"], before["v2t"])
