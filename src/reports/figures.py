"""Pictures for the report as inline SVG; text and axes take the page's colour, so they suit light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Replaced by CSS values after drawing.
INK, FIRST, SECOND = "#010203", "#010204", "#010205"
CSS = {INK: "currentColor", FIRST: "var(--t2v)", SECOND: "var(--v2t)"}
BINS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 100_000, 1_000_000)


def rank_histogram(t2v_ranks: np.ndarray, v2t_ranks: np.ndarray) -> str:
    """Share of the queries by the rank of their true item; bins grow with the rank."""
    worst = max(t2v_ranks.max(), v2t_ranks.max())
    edges = [edge for edge in BINS if edge <= worst] + [next(edge for edge in (*BINS, np.inf) if edge > worst)]
    labels = [str(a) if b - a == 1 else f"{a}–{b - 1:.0f}" for a, b in pairwise(edges)]
    figure, axes = _axes()
    for ranks, color, shift, label in (
        (t2v_ranks, FIRST, -0.2, "text to video"),
        (v2t_ranks, SECOND, 0.2, "video to text"),
    ):
        share = 100 * np.histogram(ranks, bins=edges)[0] / len(ranks)
        axes.bar(np.arange(len(share)) + shift, share, width=0.4, color=color, label=label)
    axes.set_xticks(range(len(labels)), labels, rotation=35 if len(labels) > 6 else 0)
    axes.set_xlabel("rank of the true item")
    axes.set_ylabel("% of queries")
    figure.legend(frameon=False, labelcolor=INK, loc="outside upper center", ncols=2, fontsize=8)
    return _svg(figure, "Histogram of ranks")


def learning_curve(history: Sequence[Mapping[str, float]]) -> str | None:
    """Loss and recall over the epochs; None when nothing was logged."""
    losses = _series(history, ("train/loss", "train/loss_epoch", "loss"))
    recalls = {side: _series(history, (f"val/{side}/R1", f"test/{side}/R1")) for side in ("t2v", "v2t")}
    if not losses and not any(recalls.values()):
        return None
    figure, axes = _axes()
    axes.set_xlabel("epoch")
    lines = []
    if any(recalls.values()):
        for (side, points), color in zip(recalls.items(), (FIRST, SECOND), strict=True):
            if points:
                lines += axes.plot(*zip(*points, strict=True), color=color, marker="o", ms=3, label=f"{side} R@1")
        axes.set_ylabel("R@1, %")
        axes.set_ylim(bottom=0)
    if losses:
        loss_axes = _style(axes.twinx()) if lines else axes
        lines += loss_axes.plot(*zip(*losses, strict=True), color=INK, ls="--", lw=1, label="training loss")
        loss_axes.spines["right"].set_visible(True)
        loss_axes.set_ylabel("loss")
    figure.legend(handles=lines, frameon=False, labelcolor=INK, loc="outside upper center", ncols=3, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    if len(history) == 1:  # one point has no range
        axes.set_xlim(losses[0][0] - 1 if losses else -1, losses[0][0] + 1 if losses else 1)
    return _svg(figure, "Learning curve")


def _series(history: Sequence[Mapping[str, float]], keys: Sequence[str]) -> list[tuple[float, float]]:
    """(epoch, value) of the first key that was ever logged."""
    for key in keys:
        points = [
            (float(row.get("epoch", n)), float(row[key]))
            for n, row in enumerate(history)
            if row.get(key) not in (None, "") and np.isfinite(float(row[key]))
        ]
        if points:
            return points
    return []


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 3.1), layout="constrained")
    figure.patch.set_alpha(0)
    return figure, _style(figure.add_subplot())


def _style(axes: Axes) -> Axes:
    axes.patch.set_alpha(0)
    axes.spines[:].set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return axes


def _svg(figure: Figure, title: str) -> str:
    out = io.StringIO()
    # Text stays text (small, selectable); a fixed salt makes equal pictures equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "videotext", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    for color, css in CSS.items():
        svg = svg.replace(color, css)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # The page scales the picture; two pictures on one page must not share ids.
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    name = title.lower().replace(" ", "-")
    svg = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
