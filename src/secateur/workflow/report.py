"""One HTML file that shows what was done to a model and how well it still agrees."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from secateur.workflow import charts
from secateur.workflow.results import LayerRemoval, Results, Sample, spell_error

_MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Word:
    """A piece of a sample and the number of the site that dropped it (0: kept to the end)."""

    text: str
    dropped_at: int
    glued: bool
    """Whether the piece continues the word before it."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A square of an image, in grid units, and the number of the site that dropped it."""

    x: int
    y: int
    dropped_at: int


def render_report(results: Results) -> str:
    """The report as one HTML page without external resources."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("secateur.workflow", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=spell_count, error=spell_error, mebibytes=_mebibytes, percent=_percent
    )
    return environment.get_template("report.html.j2").render(
        r=results,
        headline=list(_headline(results)),
        layers=_layers(results.removed),
        texts=[(sample, _words(sample)) for sample in results.samples if sample.tokens],
        images=[(s, _png(s), _patches(s)) for s in results.samples if s.image],
        charts={name: Markup(svg) for name, svg in _charts(results)},
        variants=_by_variant(results.bench),
        targets=_by_target(results),
    )


def spell_count(number: float) -> str:
    """1234567 as ``1.23 M``."""
    for limit, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.0f}"


def _mebibytes(number: float) -> str:
    return f"{number / _MEBIBYTE:.1f} MiB"


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %"


def _headline(results: Results) -> Iterator[tuple[str, str, str]]:
    """(figure, what it is, detail) for the cards at the top."""
    if results.bench:
        best = max(results.bench, key=lambda row: row["dense_ms"] / row["pruned_ms"])
        times = f"{best['dense_ms']:.1f} → {best['pruned_ms']:.1f} ms"
        where = f"{best['variant']}, batch {best['batch']}: {times}"
        yield f"{best['dense_ms'] / best['pruned_ms']:.2f}\N{MULTIPLICATION SIGN}", "faster", where
    dense, pruned = results.dense, results.pruned
    saved = f"{spell_count(dense.flops)} → {spell_count(pruned.flops)}"
    yield f"{dense.flops / max(pruned.flops, 1):.2f}\N{MULTIPLICATION SIGN}", "fewer FLOPs", saved
    gone = 1 - pruned.parameters / max(dense.parameters, 1)
    sizes = f"{spell_count(dense.parameters)} → {spell_count(pruned.parameters)}"
    yield f"\N{MINUS SIGN}{100 * gone:.1f} %", "parameters", sizes
    values = [check for check in results.checks if check.part == "value"]
    if values:
        worst = max(values, key=lambda check: check.value)
        bound = f"{worst.target}; bound {spell_error(worst.bound or 0)}"
        yield spell_error(worst.value), "worst value error", bound
    for agreement in results.agreements[:1]:
        yield f"{agreement.value:.3f}", agreement.metric, f"{agreement.target}, against dense"


def _layers(removed: Sequence[LayerRemoval]) -> list[tuple[str, dict[str, LayerRemoval]]]:
    """The removals of one layer side by side, layers in graph order."""
    rows: dict[str, dict[str, LayerRemoval]] = {}
    for removal in removed:
        rows.setdefault(removal.layer, {})[removal.what] = removal
    return list(rows.items())


def _dropped_at(sample: Sample, position: int) -> int:
    """1 for the first site that dropped the position, and so on; 0 if none did."""
    kept = list(sample.kept.values())
    return next((n for n, alive in enumerate(kept, start=1) if position not in alive), 0)


def _words(sample: Sample) -> list[Word]:
    return [
        Word(token.removeprefix("##"), _dropped_at(sample, position), token.startswith("##"))
        for position, token in enumerate(sample.tokens)
    ]


def _patches(sample: Sample) -> list[Patch]:
    """Every patch in row-major order; the class token (position 0) has no patch."""
    down, across = sample.grid
    return [
        Patch(column, row, _dropped_at(sample, 1 + row * across + column))
        for row in range(down)
        for column in range(across)
    ]


def _png(sample: Sample) -> str:
    """The sample's grey values as a data address."""
    import matplotlib.image
    import numpy as np

    buffer = io.BytesIO()
    pixels = np.asarray(sample.image, dtype=np.float32)
    matplotlib.image.imsave(buffer, pixels, cmap="gray", vmin=0.0, vmax=1.0, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _by_variant(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(name, list(group)) for name, group in groupby(rows, key=lambda row: row["variant"])]


def _by_target(results: Results) -> list[tuple[str, list[Any]]]:
    targets = dict.fromkeys(check.target for check in results.checks)
    return [(name, [c for c in results.checks if c.target == name]) for name in targets]


def _charts(results: Results) -> Iterator[tuple[str, str]]:
    for variant, rows in _by_variant(results.bench):
        yield f"latency {variant}", charts.latency_chart(rows)
    if results.bench:
        yield "efficiency", charts.efficiency_chart(results.bench)
    memory = [
        (f"{row['variant']}, batch {row['batch']}", row["dense_peak_mib"], row["pruned_peak_mib"])
        for row in results.bench
        if row.get("dense_peak_mib")
    ]
    if memory:
        yield "memory", charts.memory_chart(memory)


__all__ = ["Patch", "Word", "render_report", "spell_count"]
