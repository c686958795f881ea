"""The conditions under which a number holds; they stand beside every number that is printed or stored."""

from __future__ import annotations

from collections.abc import Mapping

from src.metrics.result import RetrievalResult

PROTOCOL_KEYS = (
    "dataset",
    "split",
    "subset",
    "num_videos",
    "num_captions",
    "captions_per_video",
    "rescoring",
    "selection",
    "ties",
    "model",
    "checkpoint",
    "seed",
)
FURTHER_KEYS = ("v2t", "caption_mask", "held_out", "without_ocr", "windows", "fusion")  # where there is one


def full_protocol(result: RetrievalResult, known: Mapping[str, object]) -> dict[str, object]:
    """All protocol keys; None where nobody knows. Sizes and the tie rule are those of the result itself."""
    captions, queries = len(result.caption_ids), len(result.v2t_ids)
    protocol: dict[str, object] = {"rescoring": "none", **known}
    protocol["num_videos"], protocol["num_captions"] = len(result.video_ids), captions
    protocol["captions_per_video"] = captions // queries if captions % queries == 0 else round(captions / queries, 2)
    protocol["ties"] = result.ties
    if result.v2t_protocol != "captions":
        protocol["v2t"] = result.v2t_protocol
    further = [key for key in FURTHER_KEYS if key in protocol]
    return {key: protocol.get(key) for key in (*PROTOCOL_KEYS, *further)}


def protocol_line(protocol: Mapping[str, object]) -> str:
    """The protocol in one line; unknown values are left out."""
    per_video = protocol.get("captions_per_video")
    counts = [
        f"{protocol['num_videos']} videos" if protocol.get("num_videos") is not None else "",
        f"{protocol['num_captions']} captions" if protocol.get("num_captions") is not None else "",
        f"{per_video} per video" if per_video is not None else "",
    ]
    named = [
        f"{key} {protocol[key]}"
        for key in ("subset", "rescoring", "selection", "ties", *FURTHER_KEYS, "search", "seed", "model", "checkpoint")
        if protocol.get(key) not in (None, "")
    ]
    place = "/".join(str(protocol[key]) for key in ("dataset", "split") if protocol.get(key))
    return " | ".join(part for part in (place, ", ".join(filter(None, counts)), *named) if part)
