"""The marker that ``secateur.models.select_tokens`` exports to."""

from __future__ import annotations

from collections.abc import Iterator

from secateur.graph_passes.axes.relations import (
    AXIS_RULES,
    Relation,
    carried,
)
from secateur.graph_passes.axes.view import View


@AXIS_RULES.register("secateur:SelectTokens")
def marker(view: View) -> Iterator[Relation]:
    """(B, N, D) -> (B, N, D): tokens come out as they went in until the marker is lowered."""
    for axis in range(view.rank(0) or 0):
        yield carried(axis)
