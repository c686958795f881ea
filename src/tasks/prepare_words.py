"""task=prepare task.steps=[words]: what is written in the videos into `dataset.ocr_dir`, read by PP-OCR."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from src.config.validate import CONF
from src.data.features.store import MANIFEST, PLAN
from src.errors import UserError
from src.tasks import extract
from src.tasks.build import empty_model, plain
from src.tasks.prepare_text import say

ALONE = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}  # whatever trains afterwards


def run(cfg: DictConfig) -> None:
    """Extract the store of `extractor=ocr` with its default settings; an interrupted one goes on.

    Raises:
        UserError: no folder is named, it holds something else, rapidocr is missing, or see `src.tasks.extract`.
    """
    folder = _folder(cfg)
    if folder is None:
        raise UserError("found dataset.ocr_dir=null, expected the folder for what is read; set dataset.ocr_dir=FOLDER")
    if _holds_files(folder):
        say(f"words: found {folder}")
        return
    extractor = _defaults("extractor", "ocr") | {"max_frames": cfg.task.words_frames}
    task = _defaults("task", "extract") | {"output": str(folder)}
    # Videos that cannot be read are listed by the training itself; here they would be counted twice.
    paths = plain(cfg.paths) | {"run_dir": str(Path(cfg.paths.run_dir) / "words")}
    changed = {"extractor": extractor, "task": task, "paths": paths, "trainer": plain(cfg.trainer) | ALONE}
    extract.run(OmegaConf.create(plain(cfg) | changed))


def found(cfg: DictConfig) -> str | None:
    """Where the words are; None when they are lacking, or not complete, and the model reads them."""
    folder = _folder(cfg)
    if empty_model(cfg).input_spec.words is None:
        return "nothing to read: this model does not read words"
    return str(folder) if folder is not None and ((folder / MANIFEST).is_file() or _holds_files(folder)) else None


def _folder(cfg: DictConfig) -> Path | None:
    return None if cfg.dataset.ocr_dir is None else Path(cfg.dataset.ocr_dir).expanduser()


def _holds_files(folder: Path) -> bool:
    """Whether somebody else's files are there, which are not to be touched."""
    is_store = (folder / PLAN).is_file() or (folder / MANIFEST).is_file()
    return not is_store and next(folder.rglob("*.json"), None) is not None


def _defaults(group: str, name: str) -> dict[str, object]:
    values = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"), resolve=False)
    return {str(key): value for key, value in values.items() if key != "folder"} if isinstance(values, dict) else {}
