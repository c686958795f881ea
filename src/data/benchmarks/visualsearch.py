"""Own data in Dual Encoding's VisualSearch folders: caption files, and frame features in BigFile folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from src.data.annotation import Annotation, CaptionRecord, VideoRecord
from src.data.bigfile_checks import find_in_captions, find_in_collection
from src.data.caption_files import caption_file, read_captions
from src.data.checks import Finding
from src.data.datamodule import RetrievalDataModule
from src.data.splits import PARTS
from src.errors import UserError

LAYOUT = (
    "expected layout, one folder: ROOT/<c>/TextData/<c>train.caption.txt (and <c>val, <c>test) with "
    "dataset.collection=<c>; several folders: ROOT/<subset>/TextData/<subset>.caption.txt with "
    "dataset.train_collection=, dataset.val_collection= and dataset.test_collection=; lines '<video>#<n> <sentence>'; "
    "features in ROOT/<folder>/FeatureData/<feature>/{feature.bin,shape.txt,id.txt,video2frames.txt}; "
    "set dataset.rootpath=ROOT"
)


@dataclass(eq=False, kw_only=True, repr=False)
class VisualSearchDataModule(RetrievalDataModule):
    """A VisualSearch root of Dual Encoding, in the one-folder or the multi-folder layout.

    Attributes:
        rootpath: the folder with the collections.
        collection: one-folder layout: its parts are <collection>train, <collection>val, <collection>test, together in
            one folder or in one folder each.
        train_collection: multi-folder layout: subset that trains; it goes before `collection`.
        val_collection: likewise, for validation.
        test_collection: likewise, for the test.
        feature: feature folder that `task=check_data` checks; null = all.

    Source: formats of danieljf24/hybrid_space@b934eff.
    Deviates: two captions of one id keep their own texts (upstream gives both the text of the last); .jpg and .mp4 are
        cut off a caption's video id everywhere, not in training alone.
    """

    rootpath: str
    collection: str | None = None
    train_collection: str | None = None
    val_collection: str | None = None
    test_collection: str | None = None
    feature: str | None = None

    def read(self) -> Annotation:
        captions: list[CaptionRecord] = []
        splits: dict[str, tuple[str, ...]] = {}
        for part in self._used():
            of_part = [line.record() for line in read_captions(self.file_of(part))]
            captions += of_part
            splits[part] = tuple(dict.fromkeys(caption.video_id for caption in of_part))
        videos = dict.fromkeys(caption.video_id for caption in captions)
        return Annotation(tuple(VideoRecord(video_id) for video_id in videos), tuple(captions), splits)

    def file_of(self, part: str) -> Path:
        """Caption file of a part.

        Raises:
            UserError: it is not there, or nothing says how it is called.
        """
        root = Path(self.rootpath).expanduser()
        if not root.is_dir():
            raise UserError(f"dataset.rootpath={root} is not a folder; {LAYOUT}")
        named = {"train": self.train_collection, "val": self.val_collection, "test": self.test_collection}[part]
        if named is None and self.collection is None:
            raise UserError(f"neither dataset.collection nor dataset.{part}_collection is set; {LAYOUT}")
        path = caption_file(root, named, "") if named else caption_file(root, self.collection or "", part)
        if path is None:
            name = named or f"{self.collection}{part}"
            raise UserError(
                f"split {self.split.name!r} ({part}) needs {name}.caption.txt, not found in {root}; {LAYOUT}; "
                f"without this part: ~split.parts.{part}"
            )
        return path

    def own_findings(self) -> list[Finding]:
        """Caption ids, and the feature folders of every collection."""
        findings: list[Finding] = []
        videos: dict[Path, list[str]] = {}
        for part in self._used():
            path = self.file_of(part)
            lines = read_captions(path)
            findings += find_in_captions(path, lines)
            videos.setdefault(path.parent.parent, []).extend(line.video_id for line in lines)
        return findings + [f for folder, ids in videos.items() for f in find_in_collection(folder, ids, self.feature)]

    def _used(self) -> list[str]:
        """Lists that the split uses: train, val, test."""
        return [part for part in PARTS if part in self.split.parts.values()]
