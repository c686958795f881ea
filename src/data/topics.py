"""The topics of an ad-hoc search as a part of a split: queries that describe no video."""

from __future__ import annotations

from collections.abc import Sequence

from src.batch import ExpertSpec
from src.data.annotation import Annotation, CaptionRecord
from src.data.splits import SplitPart
from src.errors import UserError


def topics_part(annotation: Annotation, text_features: Sequence[ExpertSpec]) -> SplitPart:
    """Topics of all editions in their order; the video of each is -1.

    Args:
        annotation: holds them.
        text_features: precomputed features of captions that the model reads.

    Raises:
        UserError: it reads some, which topics do not have.
    """
    if text_features:
        names = ", ".join(spec.name for spec in text_features)
        raise UserError(
            f"the model reads precomputed text features ({names}), but topics have none; "
            "search with a model that reads words"
        )
    topics = [topic for edition in annotation.topics.values() for topic in edition]
    texts = tuple(CaptionRecord("", topic.text) for topic in topics)
    return SplitPart("topics", (), texts, (-1,) * len(texts))
