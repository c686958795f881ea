"""task=prepare task.steps=[features]: frame features of the authors' layout to the stores of experts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from src.data.features.bigfile import FEATURES, bigfile_source
from src.data.features.source import Source, import_source, unite
from src.data.features.store import MANIFEST, FeatureStore
from src.errors import UserError
from src.models.dual_encoding import TARGETS
from src.tasks.build import plain, store_folders
from src.tasks.convert_features import missing_notes
from src.tasks.prepare_text import say

FOLDER = "FeatureData"


def run(cfg: DictConfig) -> None:
    """Import what the experts of the run read and no store holds, from ROOT/COLLECTION/FeatureData/STORE.

    Data sets of several collections have a folder of that name in each; their items make up one store. A store that
    was imported before is compared with its files, a store of other origin is left alone.

    Raises:
        UserError: no expert, neither store nor files, files that contradict the experts, or a store of other files.
    """
    stores = wanted_stores(cfg)
    if not stores:
        raise UserError("found no expert that reads frame features, expected some; give experts=[NAME,concepts]")
    for name, path in stores.items():
        store = FeatureStore.open(path) if _is_finished(path) else None
        if store is None:
            _import(cfg, name, path)
        elif _is_imported(store) and not _unfound(_places(cfg, name)):
            _import_again(cfg, name, store)
        else:
            say(f"features {name}: found {path}")


def found(cfg: DictConfig) -> str | None:
    """Where the stores of the experts are; None when one is lacking."""
    stores = wanted_stores(cfg)
    if not all(_is_finished(path) for path in stores.values()):
        return None
    return ", ".join(str(path) for path in stores.values()) or "no expert reads frame features"


def wanted_stores(cfg: DictConfig) -> dict[str, Path]:
    """Name -> folder of the stores that the chosen experts read, the concept targets aside."""
    names = [entry.get("store") or name for name, entry in plain(cfg.experts).items() if name != TARGETS]
    folders = store_folders(cfg)
    return {name: folders[name] for name in names}


def _is_finished(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def _is_imported(store: FeatureStore) -> bool:
    return bool({"imported", "united"} & set(store.recipe))


def _import(cfg: DictConfig, name: str, path: Path) -> None:
    source = _source(cfg, name, path)
    _check_dim(cfg, name, source)
    store = import_source(source, path, nan=cfg.task.nan)
    say(f"features {name}: imported {len(store):,} items, {store.num_rows:,} vectors of {store.dim}, to {path}")
    for note in (*source.notes, *missing_notes(store)):
        say(f"features {name}: {note}")


def _import_again(cfg: DictConfig, name: str, store: FeatureStore) -> None:
    """Nothing is copied: the writer refuses other files, and has nothing to do for the same ones."""
    import_source(_source(cfg, name, store.path), store.path, dtype=str(store.dtype), nan=store.recipe["nan"])  # type: ignore[arg-type]
    say(f"features {name}: found {store.path}, made of the same files")


def _source(cfg: DictConfig, name: str, path: Path) -> Source:
    """The BigFile folders of all collections, as one.

    Raises:
        UserError: a collection lacks its folder.
    """
    places = _places(cfg, name)
    lacking = _unfound(places)
    if not places:
        raise UserError(
            f"features {name!r}: found no store {path}, and dataset={cfg.dataset.name} is not in the authors' layout; "
            "extract them by task=extract, import them by task=convert, or give dataset=visualsearch"
        )
    if lacking:
        known = sorted({one.name for place in places for one in place.parent.glob("*") if (one / FEATURES).is_file()})
        raise UserError(
            f"features {name!r}: found neither the store {path} nor {', '.join(map(str, lacking))} with {FEATURES}; "
            f"features there: {', '.join(known) or 'none'}; name one of them by "
            "dataset.feature= (expert frames) or experts.EXPERT.store=, or check dataset.rootpath and the collections"
        )
    sources = [bigfile_source(place) for place in places]
    return sources[0] if len(sources) == 1 else unite(sources, name)


def _unfound(places: list[Path]) -> list[Path]:
    return [place for place in places if not (place / FEATURES).is_file()]


def _places(cfg: DictConfig, name: str) -> list[Path]:
    """Where the features of that name should be, one folder for each collection of the split's parts."""
    return [_called(folder / FOLDER, name) for folder in dict.fromkeys(_collections(cfg))]


def _called(parent: Path, name: str) -> Path:
    """The folder of that name, or the only one that differs from it in its signs: resnext101-resnet152 for …101_….

    Stores are named after experts, which are keys of the configuration, and those have no hyphens.
    """
    alike = [one for one in parent.glob("*") if _letters(one.name) == _letters(name)]
    return alike[0] if not (parent / name).is_dir() and len(alike) == 1 else parent / name


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _collections(cfg: DictConfig) -> Iterator[Path]:
    """Folders with FeatureData of the authors' layout; none for a data set that has another one."""
    dataset = cfg.dataset
    if "rootpath" not in dataset or "train_collection" not in dataset:
        return
    root = Path(dataset.rootpath).expanduser()
    for part in dict.fromkeys(cfg.split.parts.values()):
        own, common = dataset.get(f"{part}_collection"), dataset.get("collection")
        if not own and not common:
            raise UserError(
                f"neither dataset.collection nor dataset.{part}_collection is set, expected one of them: a folder of "
                f"{root}; give dataset.collection=, or dataset.train_collection=, dataset.val_collection= and "
                "dataset.test_collection="
            )
        apart = root / f"{common}{part}"
        is_apart = not own and not (root / str(common) / FOLDER).is_dir() and (apart / FOLDER).is_dir()
        yield apart if is_apart else root / (own or common)


def _check_dim(cfg: DictConfig, name: str, source: Source) -> None:
    """Before gigabytes are copied: the experts that read the store expect vectors of this length."""
    first = next((rows for rows in source.read(source.ids) if isinstance(rows, np.ndarray)), None)
    for expert, entry in plain(cfg.experts).items():
        if first is not None and (entry.get("store") or expert) == name and entry["dim"] != first.shape[1]:
            raise UserError(
                f"features {name!r} are vectors of {first.shape[1]}, expected {entry['dim']} as expert {expert!r} "
                f"says; add experts.{expert}.dim={first.shape[1]}"
            )
