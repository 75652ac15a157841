"""What a selection asks for, held against what its site has, before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.axes import AxisMap
from secateur.graph_passes.signals import check_signal
from secateur.graph_passes.sites import Site
from secateur.recipe import Profile, Traffic
from secateur.runtime.expressions import evaluate
from secateur.runtime.traffic import profiles_from_traffic, read_traffic
from secateur.workflow.golden import site_records

if TYPE_CHECKING:
    from secateur.workflow.selecting import Select


def check_signals(model: ir.Model, axes: AxisMap, site: Site, wanted: Select) -> None:
    """Refuse a method that reads what the site cannot give.

    This comes before the method is traced: what it says of grids and sizes helps nobody at a
    site where it cannot be used at all.

    Raises:
        BadInputError: an unknown method or option, or a signal that the site lacks.
    """
    from secateur.models.selectors import resolve_selector

    for name in resolve_selector(wanted.by, dict(wanted.options)).signals:
        if name not in wanted.signals:
            check_signal(name, site, model.graph, axes, class_token=wanted.class_token)


def check_counts(model: ir.Model, largest: Mapping[str, int] | None = None) -> None:
    """Refuse a site that is told to keep more tokens than ever reach it.

    A site with a number of tokens that only an input decides is not refused: there the count is
    clamped when the graph runs.

    Args:
        model: With its selections.
        largest: Largest size of each dimension, by name, where it is known.

    Raises:
        BadInputError: naming the site, its count and its tokens.
    """
    for record in site_records(model):
        budget = record["budget"]
        most = evaluate(record["tokens"], largest or {})
        if budget["kind"] != "count" or most is None or budget["default"] <= most:
            continue
        raise BadInputError(
            "the site is told to keep more tokens than it ever has",
            where=f"site {record['site']!r}",
            got=f"keep: {budget['default']}",
            wanted=f"at most {most} tokens" + ("" if not largest else ", by the largest shapes"),
            next_step="give fewer, or a share such as 0.6",
        )


def largest_sizes(model: ir.Model, source: Sequence[Profile] | Traffic) -> dict[str, int]:
    """Return the largest size of every named dimension of the inputs, over all profiles.

    Raises:
        BadInputError: recorded requests that cannot be read.
    """
    found: dict[str, int] = {}
    for shapes in _largest_shapes(source):
        for value in model.graph.inputs:
            for dim, size in zip(value.shape or (), shapes.get(str(value.name), ()), strict=False):
                if isinstance(dim, ir.SymbolicDim) and dim.value:
                    found[dim.value] = max(size, found.get(dim.value, 0))
    return found


def _largest_shapes(source: Sequence[Profile] | Traffic) -> list[Mapping[str, Sequence[int]]]:
    if isinstance(source, Traffic):
        profiles = profiles_from_traffic(read_traffic(source.file), 1)
        return [{name: span.high for name, span in one.shapes.items()} for one in profiles]
    return [one.max for one in source]


__all__ = ["check_counts", "check_signals", "largest_sizes"]
