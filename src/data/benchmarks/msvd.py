"""MSVD (YouTube2Text): 1,970 short clips with about 41 captions each, all of them queries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from src.data.annotation import Annotation
from src.data.benchmarks.published import PublishedDataModule, read_ids, read_json, read_lines, sentences, with_captions
from src.data.pickles import load_plain
from src.errors import UserError

CAPTIONS = ("captions_msvd.json", "raw-captions.pkl")
MAPPING = "youtube_video_to_id_mapping.txt"
LISTS = {name: (f"{name}_list.txt",) for name in ("train", "val", "test")}


@dataclass(eq=False, kw_only=True, repr=False)
class MsvdDataModule(PublishedDataModule):
    """MSVD from its captions and id lists.

    Video files are called <id>.avi, for example -4wsuPCjDBc_5_15.avi, or vid1.avi as youtube_video_to_id_mapping.txt
    numbers them; other formats will do.

    Source: facts of the files in CLIP4Clip@508ffa3 `dataloaders/dataloader_msvd_retrieval.py`.
    """

    steps: ClassVar[str] = (
        "get the MSVD clips (YouTubeClips) and msvd_data of CLIP4Clip; expected layout: "
        "DATA/msvd/annotations/{raw-captions.pkl or captions_msvd.json,train_list.txt,val_list.txt,test_list.txt} "
        "and DATA/msvd/videos/-4wsuPCjDBc_5_15.avi …"
    )

    def read(self) -> Annotation:
        path = self.find(CAPTIONS)
        if path is None:
            raise UserError(f"no {' or '.join(CAPTIONS)} in {self.folder}; {self.advice}")
        document = load_plain(path) if path.suffix == ".pkl" else read_json(path, dict)
        if not isinstance(document, dict):
            raise UserError(
                f"{path} holds a {type(document).__name__}, expected captions by id; use the published file"
            )
        captions = {str(video_id): sentences(path, str(video_id), value) for video_id, value in document.items()}
        splits = {}
        for name, files in LISTS.items():
            file = self.need(files, name)
            if file is not None:
                splits[name] = read_ids(file)
        return with_captions(captions, self._paths(captions), splits)

    def _paths(self, captions: dict[str, list[str]]) -> dict[str, Path]:
        files = self.find_videos()
        mapping = self.find((MAPPING,))
        pairs = [line.split() for line in read_lines(mapping)] if mapping is not None else []
        numbered = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
        expected = Path(self.videos_dir)
        return {
            video_id: files.get(video_id) or files.get(numbered.get(video_id, "")) or expected / f"{video_id}.avi"
            for video_id in captions
        }
