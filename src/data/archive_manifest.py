"""The published archives of each data set: `src/data/archives/<name>.yaml`, read and checked.

A manifest says what can be fetched (addresses, size, accepted checksums), what has to be done by hand, and how the
files lie in the end. It holds facts that others published; a file is taken only when a checksum matches.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from src.data.download import SCHEMES, Checksum
from src.errors import UserError

FOLDER = Path(__file__).with_name("archives")
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "MB": 10**6, "GB": 10**9}
CODE = "{code}"  # in an address: the first ten hex digits of the access code's sha256, and a dash


@dataclass(frozen=True)
class Archive:
    """One published file.

    Attributes:
        manifest: the manifest it stands in.
        name: what `task.archives` calls it.
        about: what is in it.
        urls: addresses of the same file, by preference; empty = it cannot be fetched without a person.
        file: its name on our disk.
        size: bytes as published, rounded; None = not published.
        checksums: the published values, any of which is accepted; empty = none is published.
        into: where its contents go, relative to the data root.
        unpack: False for a single file that stays as it is.
        strip: leading parts of the paths in it to leave out.
        default: fetched when no archives are named.
        steps: what to do by hand; "" = nothing.
    """

    manifest: str
    name: str
    about: str
    urls: tuple[str, ...]
    file: str
    size: int | None
    checksums: tuple[Checksum, ...]
    into: str
    unpack: bool
    strip: int
    default: bool
    steps: str

    @property
    def needs_code(self) -> bool:
        return any(CODE in url for url in self.urls)

    @property
    def label(self) -> str:
        return f"{self.manifest}/{self.name}"


@dataclass(frozen=True)
class Manifest:
    """All archives of one data set, and what a person has to know about it.

    Attributes:
        name: name of the file.
        title: the data set's name.
        page: its official page, where the conditions of use are.
        steps: how to get what cannot be fetched, in order.
        layout: where the files are expected; DATA stands for the data root.
        archives: by name.
        datasets: further data sets that it is for.
    """

    name: str
    title: str
    page: str
    steps: tuple[str, ...]
    layout: str
    archives: Mapping[str, Archive]
    datasets: tuple[str, ...] = ()


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_manifest(name: str) -> Manifest:
    """The manifest of a data set, or one of the shared ones (`clip`, `dual_encoding`).

    Raises:
        UserError: there is none.
    """
    manifests = {known: read_file(FOLDER / f"{known}.yaml") for known in names()}
    for manifest in manifests.values():
        if name == manifest.name or name in manifest.datasets:
            return manifest
    raise UserError(
        f"{name} has no published archives to fetch, expected one of {', '.join(manifests)}; give dataset=NAME, "
        "or put your own files where the yaml of the data set says"
    )


def choose(manifest: Manifest, wanted: Sequence[str]) -> list[Archive]:
    """The archives that are asked for: by name, as MANIFEST/NAME of another manifest, or the default ones.

    Raises:
        UserError: an unknown name.
    """
    if not wanted:
        return [archive for archive in manifest.archives.values() if archive.default]
    chosen = []
    for word in wanted:
        other, slash, name = word.rpartition("/")
        source = read_manifest(other) if slash else manifest
        if name not in source.archives:
            near = difflib.get_close_matches(name, source.archives, 1)
            raise UserError(
                f"found task.archives with {word!r}, expected some of {', '.join(source.archives)} of {source.name}"
                + (f"; did you mean {near[0]!r}?" if near else "; give task.archives=[NAME]")
            )
        chosen.append(source.archives[name])
    return list(dict.fromkeys(chosen))


def read_file(path: Path) -> Manifest:
    """A manifest file, for example one of the user's.

    Raises:
        UserError: there is none, or it is malformed.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as a manifest ({error}), expected a yaml file") from error
    needed = {"title", "page", "layout", "archives"}
    if not isinstance(document, dict) or needed - set(document) or not isinstance(document["archives"], dict):
        raise UserError(
            f"{path} is no manifest, expected the keys {', '.join(sorted(needed))}; see {FOLDER.name}/*.yaml"
        )
    archives = {str(key): _archive(path.stem, str(key), facts) for key, facts in document["archives"].items()}
    return Manifest(
        path.stem,
        str(document["title"]),
        str(document["page"]),
        tuple(map(str, document.get("steps", ()))),
        str(document["layout"]).rstrip("\n"),
        archives,
        tuple(map(str, document.get("datasets", ()))),
    )


def _archive(manifest: str, name: str, facts: Mapping[str, Any]) -> Archive:
    unknown = set(facts) - {field.name for field in fields(Archive)} | set(facts) & {"manifest", "name"}
    missing = {"about", "into"} - set(facts) | (
        {"urls or file"} if not facts.get("urls") and "file" not in facts else set()
    )
    urls = tuple(map(str, facts.get("urls", ())))
    foreign = [url for url in urls if urlsplit(url).scheme not in SCHEMES]
    if unknown or missing or foreign:
        raise UserError(
            f"{manifest}: {name} has unknown keys {sorted(unknown)}, lacks {sorted(missing)}, has addresses that are "
            f"not http(s) {foreign}, expected none of these; mend the manifest"
        )
    into = str(facts["into"])
    if PurePosixPath(into).is_absolute() or ".." in PurePosixPath(into).parts:
        raise UserError(
            f"{manifest}: {name} goes into {into!r}, expected a path below the data root; mend the manifest"
        )
    return Archive(
        manifest=manifest,
        name=name,
        about=str(facts["about"]),
        urls=urls,
        file=str(facts.get("file") or PurePosixPath(urlsplit(urls[0]).path).name.replace(CODE, "")),
        size=parse_size(facts["size"]) if "size" in facts else None,
        checksums=tuple(Checksum.parse(str(text)) for text in facts.get("checksums", ())),
        into=into,
        unpack=bool(facts.get("unpack", True)),
        strip=int(facts.get("strip", 0)),
        default=bool(facts.get("default", False)),
        steps=str(facts.get("steps", "")),
    )


def parse_size(text: str) -> int:
    """Bytes of `19.6 GiB`."""
    match = re.fullmatch(r"([\d.]+) (\w+)", str(text))
    if match is None or match[2] not in UNITS:
        raise UserError(f"found the size {text!r}, expected for example 19.6 GiB; mend the manifest")
    return round(float(match[1]) * UNITS[match[2]])
