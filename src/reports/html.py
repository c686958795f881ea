"""The report page: one file that works from disk, without a network, and with hostile captions.

Captions, ids and file names are data from outside. They reach the page in two ways only: through jinja2 with
autoescape, or as JSON in which every character that could end the script element is escaped; the script puts
them on the page as text nodes, never as markup.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from src.metrics.result import RetrievalResult
from src.reports.figures import learning_curve, rank_histogram
from src.reports.report import ReportFacts, VideoFacts, best_own_captions, rank_numbers, video_names
from src.reports.table import result_table, skills_table

TEMPLATES = Path(__file__).parent / "templates"
MAX_QUERIES = 1000  # per direction; beyond that the worst, the best and a sample
MAX_PICTURE_BYTES = 5_000_000  # of all thumbnails together, as base64
MAX_TEXT = 1000  # characters of a caption
MAX_WORDS = 20  # read in the picture of a video
MAX_WORD = 40  # characters of such a word
SHOWN = 10
UNSAFE_IN_SCRIPT = {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render_page(result: RetrievalResult, facts: ReportFacts, protocol: dict[str, object], folder: Path) -> str:
    """The whole page as a string.

    Args:
        result: ranks and metrics.
        facts: captions, videos, history and problems.
        protocol: shown in full.
        folder: where the page will be; links to local videos are relative to it.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    data = page_data(result, facts, folder)
    curve = learning_curve(facts.history)
    return environment.get_template("report.html").render(
        protocol=protocol,
        headline=_headline(result),
        metrics=result_table(result, protocol),
        tables=facts.tables,
        skills=skills_table(facts.skills) if facts.skills else None,
        skill_rows=facts.skills or {},
        histogram=Markup(rank_histogram(result.t2v_ranks.numpy(), result.v2t_ranks.numpy())),
        curve=Markup(curve) if curve else None,
        problems=facts.problems,
        excluded=_excluded_names(result, facts),
        sampled={side: len(data[side]) for side in ("t2v", "v2t")},
        totals={"t2v": len(result.caption_ids), "v2t": len(result.v2t_ids)},
        without_picture=sum(video["picture"] is None for video in data["videos"]) if facts.thumbnail else 0,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        data=Markup(safe_json(data)),
    )


def safe_json(value: object) -> str:
    """JSON that may stand inside a script element, whatever its strings hold."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return "".join(UNSAFE_IN_SCRIPT.get(c, c) for c in text) if any(c in text for c in UNSAFE_IN_SCRIPT) else text


def page_data(result: RetrievalResult, facts: ReportFacts, folder: Path) -> dict[str, Any]:
    """What the script browses. Videos and captions stand once and are referred to by their place."""
    rng = np.random.default_rng(0)
    pick_t2v = _choose(result.t2v_ranks.numpy(), rng)
    pick_v2t = _choose(result.v2t_ranks.numpy(), rng)
    videos, captions = _Places(), _Places()
    data: dict[str, Any] = {"t2v": [], "v2t": []}
    ranks = {side: rank_numbers(getattr(result, f"{side}_ranks")) for side in data}
    owner = dict(zip(result.caption_ids.tolist(), result.caption_videos.tolist(), strict=True))
    for n in pick_t2v:
        caption, video = int(result.caption_ids[n]), int(result.caption_videos[n])
        found, scores = _top(result.t2v_topk, n)
        row = {"q": captions[caption], "true": videos[video], "rank": ranks["t2v"][n]}
        own = _score(float(result.own_scores[n]))
        data["t2v"].append({**row, "top": [videos[v] for v in found], "scores": scores, "own": own})
    best_own = best_own_captions(result)
    for n in pick_v2t:
        video = int(result.v2t_ids[n])
        found, scores = _top(result.v2t_topk, n)
        caption, own_score = best_own[video]
        row = {"q": videos[video], "true": captions[caption], "rank": ranks["v2t"][n]}
        top = [captions[c] for c in found]
        data["v2t"].append({**row, "top": top, "scores": scores, "own": _score(own_score)})
    data["captions"] = [{"text": _text(facts, c), "video": videos[owner[c]]} for c in captions.ids]
    name = video_names(facts)
    pictures = _pictures(facts, videos.ids)
    data["videos"] = [
        {"name": name(v), "picture": pictures.get(v), **_media(facts.videos.get(v), folder), **_words(facts, v)}
        for v in videos.ids
    ]
    return data


def _words(facts: ReportFacts, video: int) -> dict[str, list[str] | None]:
    """What was read in the picture, None without OCR; nothing for models that read no words."""
    if facts.words is None:
        return {}
    words = facts.words.get(video)
    if words is None:
        return {"words": None}
    return {"words": [word if len(word) <= MAX_WORD else f"{word[:MAX_WORD]}…" for word in words[:MAX_WORDS]]}


class _Places(dict[int, int]):
    """id -> place in the order of first use."""

    def __missing__(self, key: int) -> int:
        self[key] = len(self)
        return self[key]

    @property
    def ids(self) -> list[int]:
        return list(self)


def _choose(ranks: np.ndarray, rng: np.random.Generator) -> list[int]:
    """All queries, or 300 with the worst ranks, 200 with the best, and a random half."""
    if len(ranks) <= MAX_QUERIES:
        return list(range(len(ranks)))
    order = np.argsort(ranks, kind="stable")
    best, worst = order[: MAX_QUERIES // 5], order[-3 * MAX_QUERIES // 10 :]
    rest = order[len(best) : len(order) - len(worst)]
    sample = rng.choice(rest, MAX_QUERIES - len(best) - len(worst), replace=False)
    return sorted(int(n) for n in (*best, *worst, *sample))


def _top(topk: tuple[Any, Any], n: int) -> tuple[list[int], list[float | None]]:
    ids, scores = topk[0][n].tolist(), topk[1][n].tolist()
    kept = [(i, _score(s)) for i, s in zip(ids, scores, strict=True) if i >= 0][:SHOWN]
    return [i for i, _ in kept], [s for _, s in kept]


def _text(facts: ReportFacts, caption: int) -> str:
    text = facts.captions.get(caption, f"caption {caption}")
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text)} characters)"


def _score(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _pictures(facts: ReportFacts, ids: Sequence[int]) -> dict[int, str]:
    """Each distinct video once, until the page would become too large."""
    pictures: dict[int, str] = {}
    left = MAX_PICTURE_BYTES
    for video in ids if facts.thumbnail else ():
        assert facts.thumbnail is not None
        jpeg = facts.thumbnail(video)
        if jpeg is None:
            continue
        left -= len(jpeg) * 4 // 3
        if left < 0:
            break
        pictures[video] = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
    return pictures


def _media(video: VideoFacts | None, folder: Path) -> dict[str, object]:
    if video is None:
        return {"tags": [], "file": None}
    tags = [f"{key}: {value}" for key, value in video.tags]
    if video.path is None:
        return {"tags": tags, "file": None}
    link = quote(Path(os.path.relpath(video.path.resolve(), folder.resolve())).as_posix())
    if video.start_s is not None or video.end_s is not None:
        link += f"#t={video.start_s or 0:g}" + (f",{video.end_s:g}" if video.end_s is not None else "")
    return {"tags": tags, "file": link}


def _headline(result: RetrievalResult) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(css class, title, [(label, value)]) of the two cards."""
    labels = (("R1", "R@1"), ("R5", "R@5"), ("R10", "R@10"), ("MdR", "median rank"))
    return [
        (side, title, [(label, f"{getattr(result, side)[key]:.1f}") for key, label in labels])
        for side, title in (("t2v", "Text → video"), ("v2t", "Video → text"))
    ]


def _excluded_names(result: RetrievalResult, facts: ReportFacts) -> list[str]:
    return [_text(facts, c) for c in result.excluded_captions[:100]]
