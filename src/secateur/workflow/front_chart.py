"""The front of time against agreement as an SVG file of its own."""

from __future__ import annotations

import io
from collections.abc import Sequence

from secateur.calibration.search.pareto import Point


def front_chart(points: Sequence[Point], front: Sequence[Point]) -> str:
    """Every schedule that was looked at, and those that no other beats in both."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "secateur"}):
        figure = Figure(figsize=(5.6, 3.8))
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.scatter(
            [p.cost for p in points], [p.loss for p in points], s=10, color="#9aa0a6", label="tried"
        )
        axes.step(
            [p.cost for p in front],
            [p.loss for p in front],
            where="post",
            marker="o",
            markersize=4,
            color="#1a73e8",
            label="front",
        )
        axes.set_xlabel("expected ms a batch")
        axes.set_ylabel("1 - cosine to the dense model")
        axes.set_yscale("symlog", linthresh=1e-4)
        axes.legend(frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()


__all__ = ["front_chart"]
