"""Inline SVG charts whose colours follow the page's light or dark theme."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Matplotlib writes literal colours; each of these is replaced by the page's variable.
_THEME = {
    "#010203": "var(--ink)",
    "#020304": "var(--muted)",
    "#030405": "var(--line)",
    "#040506": "var(--dense)",
    "#050607": "var(--pruned)",
    "#060708": "var(--panel)",
}
INK, MUTED, LINE, DENSE, PRUNED, PANEL = _THEME

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "secateur",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": LINE,
}

Row = dict[str, Any]


def latency_chart(rows: Sequence[Row]) -> str:
    """Dense and pruned latency of one variant by batch, with the speed-up above the pair."""

    def draw(axes: Axes) -> None:
        for place, row in enumerate(rows):
            axes.bar(place - 0.2, row["dense_ms"], 0.36, color=DENSE)
            axes.bar(place + 0.2, row["pruned_ms"], 0.36, color=PRUNED)
            axes.annotate(
                f"{row['dense_ms'] / row['pruned_ms']:.2f}\N{MULTIPLICATION SIGN}",
                (place + 0.2, row["pruned_ms"]),
                (0, 4),
                textcoords="offset points",
                ha="center",
                weight="bold",
                color=INK,
            )
        axes.set_xticks(range(len(rows)), [f"batch {row['batch']}" for row in rows])
        axes.set_ylabel("ms, median")
        axes.grid(axis="y", linewidth=0.8)
        axes.margins(y=0.14)

    return _svg(draw, (4.2, 2.7))


def efficiency_chart(rows: Sequence[Row]) -> str:
    """Speed-up efficiency of every row with p10 to p90; 1.0 is what the FLOPs promise."""

    def draw(axes: Axes) -> None:
        axes.axvline(1.0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for place, row in enumerate(reversed(rows)):
            spread = [row["efficiency_p10"], row["efficiency_p90"]]
            axes.plot(spread, [place, place], color=PRUNED, linewidth=5, alpha=0.35,
                      solid_capstyle="round")  # fmt: skip
            axes.plot(row["efficiency"], place, "o", color=PRUNED, markersize=9)
            axes.annotate(f"{row['efficiency']:.2f}", (row["efficiency"], place), (0, 9),
                          textcoords="offset points", ha="center", color=INK)  # fmt: skip
        labels = [f"{row['variant']}, batch {row['batch']}" for row in reversed(rows)]
        axes.set_yticks(range(len(rows)), labels)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(-0.6, len(rows) - 0.3)
        lowest = min(0.75, *(row["efficiency_p10"] - 0.03 for row in rows))
        axes.set_xlim(lowest, max(1.1, *(row["efficiency_p90"] + 0.03 for row in rows)))
        axes.set_xlabel("speed-up ÷ FLOPs ratio  (1.0: all of it arrives)")
        axes.grid(axis="x", linewidth=0.8)

    return _svg(draw, (4.8, 0.9 + 0.48 * len(rows)))


def memory_chart(rows: Sequence[tuple[str, float, float]]) -> str:
    """Dense and pruned figures in MiB, one pair a line: (label, dense, pruned)."""

    def draw(axes: Axes) -> None:
        for place, (_, dense, pruned) in enumerate(reversed(rows)):
            axes.barh(place + 0.19, dense, 0.34, color=DENSE)
            axes.barh(place - 0.19, pruned, 0.34, color=PRUNED)
            for offset, value in ((0.19, dense), (-0.19, pruned)):
                axes.annotate(f"{value:.0f}", (value, place + offset), (4, 0),
                              textcoords="offset points", va="center", color=INK)  # fmt: skip
        axes.set_yticks(range(len(rows)), [label for label, _, _ in reversed(rows)])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xlabel("MiB")
        axes.grid(axis="x", linewidth=0.8)
        axes.margins(x=0.12)

    return _svg(draw, (4.8, 0.8 + 0.55 * len(rows)))


def _svg(draw: Callable[[Axes], None], inches: tuple[float, float]) -> str:
    """Draw on a fresh figure; no window system, no global state."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=inches)
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Type": None, "Format": None}
        figure.savefig(
            buffer, format="svg", bbox_inches="tight", transparent=True, metadata=nothing
        )
    drawing = buffer.getvalue()
    return _for_page(drawing, prefix=f"c{zlib.crc32(drawing.encode()):08x}")


def _for_page(svg: str, prefix: str) -> str:
    """The drawing alone, its ids made unique on the page and its colours the page's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    for colour, variable in _THEME.items():
        svg = svg.replace(colour, variable)
    return svg


__all__ = ["efficiency_chart", "latency_chart", "memory_chart"]
