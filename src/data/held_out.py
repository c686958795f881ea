"""Held-out captions of the same videos: parts that share videos by declaration and never share a sentence.

What such a part measures is another question than unseen videos: whether a model found the videos it was trained on by
sentences that it never read. `SplitSpec.caption_holdout` declares it, and the protocol line of every number says it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from src.data.annotation import CaptionRecord
from src.errors import UserError

TRAIN = "train"


def may_share(caption_holdout: Mapping[str, int], first: str, second: str) -> bool:
    """Whether two parts may hold the same videos: one holds captions out, the other trains or does so as well."""
    declared = set(caption_holdout)
    return bool({first, second} & declared) and {first, second} <= declared | {TRAIN}


def check_trained(lists: Mapping[str, Sequence[str]], name: str, caption_holdout: Mapping[str, int]) -> None:
    """Raise UserError when a part holds captions out of videos that train does not have."""
    trained = set(lists.get(TRAIN, ()))
    for part in caption_holdout:
        strangers = [video_id for video_id in lists.get(part, ()) if video_id not in trained]
        if strangers:
            raise UserError(
                f"split {name!r}: caption_holdout.{part} concerns {len(strangers)} videos that train does not have "
                f"(first: {strangers[0]!r}), expected training videos; set split.parts.{part} to the list of train, "
                f"or remove this part from split.caption_holdout: all its captions are held out anyway"
            )


def deal_out(
    captions: Mapping[str, list[CaptionRecord]],
    part: str,
    caption_holdout: Mapping[str, int],
    holders: Mapping[str, Iterable[str]],
) -> dict[str, list[CaptionRecord]]:
    """The captions of each video that belong to one part.

    Sentences, not rows, are dealt out: the same words twice are one sentence, and go to one part. Their order is that
    of a hash, so that every run and machine holds out the same. The first one trains; the others are held out, part by
    part, as long as there are any.

    Args:
        captions: video id -> all its captions, in the order of their file.
        part: whose captions are asked for; a part that holds none out has all that is left.
        caption_holdout: part -> sentences of each of its videos to hold out.
        holders: part -> ids of its videos, of the same parts.

    Returns:
        Video id -> captions in the order of the file; none where the video has too few sentences.
    """
    ids = {name: set(of_part) for name, of_part in holders.items()}
    return {
        video_id: _own(
            video_id, of_video, part, {n: count for n, count in caption_holdout.items() if video_id in ids[n]}
        )
        for video_id, of_video in captions.items()
    }


def _own(video_id: str, captions: Sequence[CaptionRecord], part: str, wanted: Mapping[str, int]) -> list[CaptionRecord]:
    sentences = {_words(caption): None for caption in captions if _words(caption)}
    ordered = sorted(sentences, key=lambda words: hashlib.sha256(f"{video_id}\n{words}".encode()).hexdigest())
    place: dict[str, str] = {}
    left = ordered[1:]  # the first one trains
    for name, count in wanted.items():
        place |= dict.fromkeys(left[:count], name)
        left = left[count:]
    asked = part if part in wanted else TRAIN
    return [caption for caption in captions if place.get(_words(caption), TRAIN) == asked]


def in_words(count: int | None) -> dict[str, str]:
    """What a number on a part means that holds `count` sentences of each video out; empty for other parts."""
    if count is None:
        return {}
    captions = "1 caption" if count == 1 else f"up to {count} captions"
    return {"held_out": f"{captions} of each training video; its others were trained on"}


def _words(caption: CaptionRecord) -> str:
    return " ".join(caption.text.split()).casefold()
