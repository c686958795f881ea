"""The feature folders of Collaborative Experts: which file holds which expert.

A folder as the `sync_experts` archives unpack it (`data/<Dataset>/structured-symlinks`, `symlinked-feats`, …) has some
experts under names of their own and the others under a path derived from their settings,
`aggregated_{type}_{fps}fps_{pixels}px_stride{n}[_offset{n}][_inner_stride{n}][_num_segments{n}]/{model}-{agg}.pickle`.
Source: albanie/collaborative-experts, data_loader/*_dataset.py and utils/util.py describe the layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from src.data.features.hdf5 import hdf5_source
from src.data.features.pickles import load_pickle, pickle_source
from src.data.features.source import Source
from src.errors import UserError

# Where the features lie below the folder that the user names, tried in this order.
ROOTS = ("high-quality/structured-symlinks", "structured-symlinks", "symlinked-feats", "challenge-release-1", ".")
ENDINGS = (".pickle", ".pkl", ".hickle")
# The first file that is there counts; data sets differ.
NAMED: dict[str, tuple[str, ...]] = {
    "audio": (
        "aggregated_audio_feats/Audio_MSRVTT_new.pickle",
        "aggregated_audio_feats/vggish-audio-raw.pickle",
        "aggregated_audio/vggish-raw.pickle",
        "aggregated_audio/vggish-audio-raw.pickle",
        "aggregated_audio/vggish-raw.hickle",
    ),
    "speech": (
        "aggregated_speech/speech-w2v.pickle",
        "aggregated_speech_feats/stt_w2v.pickle",
        "aggregated_speech/goog_w2v-speech-raw.pickle",
    ),
    "ocr": (
        "aggregated_ocr_feats/ocr-raw.pickle",
        *(
            f"{folder}{file}"
            for folder in ("aggregated_ocr_feats/", "aggregated_ocr/", "")
            for file in ("ocr-w2v.pickle", "ocr-w2v.pkl", "ocr-feats.pkl")
        ),
    ),
    "face": (
        "aggregated_face_feats/facefeats-avg.pickle",
        "aggregated_face_feats/face-avg.pickle",
        "aggregated_facefeats_25fps_256px_stride1/face-avg.pickle",
        "antoine/face-max-with-blank-val.pickle",
    ),
    "antoine-face": ("antoine/facefeats-clone.pickle",),
    "antoine-rgb": ("antoine/resnet_features.pickle",),
    "antoine-flow": ("antoine/flow_features.pickle",),
    "antoine-audio": ("antoine/audio_features.pickle",),
}
# Features of captions that have names of their own; the parts of one list are put together.
NAMED_TEXTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "text.openai": (
        ("w2v_MSRVTT_openAIGPT.pickle",),
        ("openai-caption-train.pkl", "openai-caption-val.pkl", "openai-caption-test.pkl"),
        ("openai-feats.pkl",),
        ("openai-text.pickle",),
        ("openai-train.pkl", "openai-val1.pkl"),
    )
}
TEXT = "text."  # beginning of the names of features of captions
TEXT_FOLDERS = ("aggregated_text_feats", "text_embeddings", "text-embeddings")
MAPPING = "dict_youtube_mapping.pkl"  # MSVD: YouTube id -> the other id by which its caption features are keyed
# Stride that the number at the end of an expert's name stands for, by type; others are named by their stride.
STRIDES: dict[str, tuple[tuple[str, ...], ...]] = {
    "imagenet": (("1", "5"),),  # 5: YouCook2
    "scene": (("1", "5"),),
    "i3d": (("25",), ("4",)),
    "r2p1d": (("32",), ("8",)),
    "s3dg": (("16",), ("8",)),
    "moments_2d": (("1",),),
    "moments_3d": (("8",),),
    "trn": (("8",),),
}
_FOLDER = re.compile(
    r"aggregated_(?P<type>\w+?)_\d+fps_\d+px_stride(?P<stride>\d+)"
    r"(?:_offset\d+)?(?:_inner_stride\d+)?(?:_num_segments\d+)?"
)
_FILE = re.compile(r"(?P<model>.+)-(?P<agg>avg|max|ent|std)(?P<logits>-logits)?")


@dataclass(frozen=True)
class ExpertFile:
    """One expert of a folder.

    Attributes:
        name: of its store: that of the expert, with `.max` and the like for aggregations other than the mean and
            `-logits` for logits; `text.<name>` for features of captions.
        files: usually one; several hold different items.
        mapping: pickle of new id -> the id in the files.
        cut_ids: ids end at their first dot.
    """

    name: str
    files: tuple[Path, ...]
    mapping: Path | None = None
    cut_ids: bool = False

    def load(self, *, trust: bool = False) -> Source:
        """Read the file (a pickle has to be read as a whole).

        Raises:
            UserError: the file is damaged or would run code.
        """
        if self.files[0].suffix == ".hickle":
            source = hdf5_source(self.files[0], self.name, trust=trust)
        else:
            source = pickle_source(self.files, self.name, trust=trust)
        if self.name.startswith(TEXT):
            source = _numbered(source)
        if self.mapping is not None:
            source = _translated(source, self.mapping, trust=trust)
        return cut_ids(source) if self.cut_ids else source


@dataclass(frozen=True)
class ExpertFolder:
    """What `find_experts` found.

    Attributes:
        root: where they lie: the folder asked for, or one below it.
        experts: by name.
        unknown: feature files of no known name; they are not imported.
    """

    root: Path
    experts: tuple[ExpertFile, ...]
    unknown: tuple[Path, ...] = field(default=())


def find_experts(folder: Path) -> ExpertFolder:
    """Every expert in a folder of Collaborative Experts, or in the places below it where the archives put them."""
    for root in (folder / place for place in ROOTS):
        files = {path.relative_to(root).as_posix(): path for path in _files(root)}
        cut = "didemo" in (part.lower() for part in (*root.absolute().parts, *root.resolve().parts))
        experts: dict[str, ExpertFile] = {}
        for expert in (*_named(files, cut), *_texts(files, cut), *_derived(files, cut)):
            experts.setdefault(expert.name, expert)
        if experts:
            used = {path for expert in experts.values() for path in (*expert.files, expert.mapping)}
            unknown = tuple(path for path in files.values() if path not in used)
            return ExpertFolder(root, tuple(experts[name] for name in sorted(experts)), unknown)
    return ExpertFolder(folder, ())


def cut_ids(source: Source) -> Source:
    """The source with ids that end at their first dot, as those of DiDeMo; `#` and the caption's number stay."""

    def rename(item: str) -> str:
        video, sign, number = item.partition("#")
        return video.partition(".")[0] + sign + number

    return source.renamed(rename, "cut at the first dot")


def _files(root: Path) -> Iterator[Path]:
    if not root.is_dir():
        return
    # The folders are symbolic links in the published layout, which rglob does not enter.
    for child in sorted(root.iterdir()):
        if child.is_dir():
            yield from (path for path in sorted(child.iterdir()) if path.suffix in ENDINGS and path.is_file())
        elif child.suffix in ENDINGS:
            yield child


def _named(files: Mapping[str, Path], cut: bool) -> Iterator[ExpertFile]:
    for name, places in NAMED.items():
        found = next((files[place] for place in places if place in files), None)
        if found is not None:
            yield ExpertFile(name, (found,), cut_ids=cut)


def _texts(files: Mapping[str, Path], cut: bool) -> Iterator[ExpertFile]:
    named = {file for choices in NAMED_TEXTS.values() for parts in choices for file in parts}
    for place, path in files.items():
        folder, _, file = place.rpartition("/")
        if folder in TEXT_FOLDERS and file not in named and "captions" not in file:
            yield ExpertFile(TEXT + path.stem, (path,), cut_ids=cut)
    mapping = next((path for path in files.values() if path.name == MAPPING), None)
    for name, choices in NAMED_TEXTS.items():
        for parts in choices:
            found = tuple(path for part in parts for path in files.values() if path.name == part)
            if found:
                yield ExpertFile(name, found, mapping if parts[0].startswith("openai-caption") else None, cut)
                break


def _derived(files: Mapping[str, Path], cut: bool) -> Iterator[ExpertFile]:
    for place, path in files.items():
        folder, file = _FOLDER.fullmatch(place.rpartition("/")[0]), _FILE.fullmatch(path.stem)
        if folder is None or file is None or place in NAMED["face"]:
            continue
        kind, stride = folder["type"], folder["stride"]
        numbers = [str(number) for number, strides in enumerate(STRIDES.get(kind, ())) if stride in strides]
        name = f"{kind}.{file['model']}.{numbers[0] if numbers else f'stride{stride}'}"
        aggregation = "" if file["agg"] == "avg" else f".{file['agg']}"
        yield ExpertFile(name + aggregation + (file["logits"] or ""), (path,), cut_ids=cut)


def _numbered(source: Source) -> Source:
    """The source with a number for captions of videos that have a single array in place of a list of them."""
    if all("#" in item for item in source.ids):
        return source
    return source.renamed(lambda item: item if "#" in item else f"{item}#0", "one caption a video")


def _translated(source: Source, mapping: Path, *, trust: bool) -> Source:
    with mapping.open("rb") as file:
        table = load_pickle(file, str(mapping), trust=trust)
    if not isinstance(table, dict):
        raise UserError(f"{mapping}: holds {type(table).__name__}, expected a dict of YouTube id -> id of the features")
    back = {str(old): str(new) for new, old in table.items()}

    def rename(item: str) -> str:
        video, sign, number = item.partition("#")
        if video not in back:
            raise UserError(
                f"{mapping}: does not name {video!r}, which has features in {source.name}; get its own file"
            )
        return back[video] + sign + number

    return source.renamed(rename, f"translated by {mapping.name}")
