"""Ad-hoc video search of TRECVID: trained on TGIF and MSR-VTT, tested on the shots of IACC.3 by judged topics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from src.data.annotation import Annotation, CaptionRecord, Judgement, TopicRecord, VideoRecord
from src.data.benchmarks.published import read_ids
from src.data.bigfile_checks import ENCODING, find_in_captions, find_in_collection
from src.data.caption_files import caption_file, read_captions, read_judgements, read_topics
from src.data.checks import Finding
from src.data.datamodule import RetrievalDataModule
from src.data.features.bigfile import FRAMES, parse_frames
from src.errors import UserError

STEPS = (
    "get tgif-msrvtt10k-sent.tar.gz, tv2016train-sent.tar.gz and iacc.3-avs-topics.tar.gz of Dual Encoding "
    "(https://github.com/danieljf24/hybrid_space) and the frame features; expected layout: "
    "ROOT/{tgif-msrvtt10k,tv2016train}/TextData/<name>.caption.txt, ROOT/iacc.3/TextData/{tv16.avs.txt,"
    "avs.qrels.tv16,…}, ROOT/iacc.3/VideoSets/iacc.3.txt and ROOT/<name>/FeatureData/<feature>/{feature.bin,shape.txt,"
    "id.txt,video2frames.txt}; set dataset.rootpath=ROOT; to train without IACC.3: ~split.parts.test"
)


@dataclass(eq=False, kw_only=True, repr=False)
class AvsDataModule(RetrievalDataModule):
    """Ad-hoc video search in Dual Encoding's folders.

    The test part is a gallery of shots without captions; its queries are the topics of each edition.

    Attributes:
        rootpath: the folder with the collections.
        train_collection: captioned videos that train.
        val_collection: captioned videos for validation.
        test_collection: shots, topics and judgements.
        editions: years of the benchmark: <edition>.avs.txt has topics, avs.qrels.<edition> judgements.
        feature: feature folder that `task=check_data` checks, and whose video2frames.txt lists the shots when there is
            no VideoSets/<test_collection>.txt; null = all, and the first one with such a list.

    Source: formats of danieljf24/hybrid_space@b934eff. The files could not be had: tested on files written in this
        layout.
    """

    rootpath: str
    train_collection: str = "tgif-msrvtt10k"
    val_collection: str = "tv2016train"
    test_collection: str = "iacc.3"
    editions: tuple[str, ...] = ("tv16", "tv17", "tv18")
    feature: str | None = None

    def read(self) -> Annotation:
        used = set(self.split.parts.values())
        captions: list[CaptionRecord] = []
        splits: dict[str, tuple[str, ...]] = {}
        for part, _, path in self._caption_files():
            of_part = [line.record() for line in read_captions(path)]
            captions += of_part
            splits[part] = tuple(dict.fromkeys(caption.video_id for caption in of_part))
        topics: dict[str, tuple[TopicRecord, ...]] = {}
        qrels: dict[str, tuple[Judgement, ...]] = {}
        if "test" in used:
            splits["test"] = self._shots()
            for edition in self.editions:
                topics[edition], qrels[edition] = self._edition(edition)
        videos = dict.fromkeys(video_id for ids in splits.values() for video_id in ids)
        return Annotation(tuple(map(VideoRecord, videos)), tuple(captions), splits, topics=topics, qrels=qrels)

    def own_findings(self) -> list[Finding]:
        """Caption ids, features of every collection, topics without judgements, judgements of unknown shots."""
        annotation = self.read()
        findings: list[Finding] = []
        for part, collection, path in self._caption_files():
            findings += find_in_captions(path)
            findings += find_in_collection(self._root / collection, annotation.splits[part], self.feature)
        if "test" not in annotation.splits:
            return findings
        shots = annotation.splits["test"]
        findings += find_in_collection(self._root / self.test_collection, shots, self.feature)
        gallery = set(shots)
        for edition, topics in annotation.topics.items():
            judgements = annotation.qrels[edition]
            judged = {judgement.topic for judgement in judgements}
            asked = {topic.id for topic in topics}
            strangers = dict.fromkeys(j.shot for j in judgements if j.shot not in gallery)
            for kind, items in (
                ("topic without judgements", tuple(topic.id for topic in topics if topic.id not in judged)),
                ("judgements of an unknown topic", tuple(sorted(judged - asked))),
                ("judged shot that is not in the gallery", tuple(strangers)),
            ):
                findings += [Finding("note", kind, edition, items)] if items else []
        return findings

    @property
    def _root(self) -> Path:
        root = Path(self.rootpath).expanduser()
        if not root.is_dir():
            raise UserError(f"dataset.rootpath={root} is not a folder; {STEPS}")
        return root

    def _caption_files(self) -> Iterator[tuple[str, str, Path]]:
        """(list, collection, caption file) of the captioned parts that the split uses."""
        for part, collection in (("train", self.train_collection), ("val", self.val_collection)):
            if part in self.split.parts.values():
                path = caption_file(self._root, collection, "")
                if path is None:
                    raise UserError(f"no {collection}/TextData/{collection}.caption.txt in {self._root}; {STEPS}")
                yield part, collection, path

    def _shots(self) -> tuple[str, ...]:
        """The gallery, in the order of the shot list or of the features."""
        folder = self._root / self.test_collection
        listed = folder / "VideoSets" / f"{self.test_collection}.txt"
        if listed.is_file():
            return read_ids(listed)
        found = sorted((folder / "FeatureData").glob(f"{self.feature or '*'}/{FRAMES}"))
        if not found:
            raise UserError(f"no {listed} and no video2frames.txt in {folder / 'FeatureData'}; {STEPS}")
        return tuple(parse_frames(found[0].read_text(encoding=ENCODING), found[0]))

    def _edition(self, edition: str) -> tuple[tuple[TopicRecord, ...], tuple[Judgement, ...]]:
        """Topics and judgements of one edition; a run can be made without judgements."""
        folder = self._root / self.test_collection / "TextData"
        if not (folder / f"{edition}.avs.txt").is_file():
            raise UserError(
                f"no {edition}.avs.txt in {folder}; {STEPS}; without this edition: dataset.editions=[tv17,tv18]"
            )
        topics = read_topics(folder / f"{edition}.avs.txt")
        path = folder / f"avs.qrels.{edition}"
        return topics, read_judgements(path, topics) if path.is_file() else ()
