"""Turn marker nodes of a model that prunes tokens itself into what the pass makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.attention import attention_sites
from secateur.graph_passes.axes import analyse_axes, node_name
from secateur.graph_passes.opset import SELECTION_OPSET, opset_of, raise_opset
from secateur.graph_passes.prepare import prepare
from secateur.graph_passes.restore import Dropped
from secateur.graph_passes.selection.budget import Budget
from secateur.graph_passes.selection.choice import Chosen, Selection
from secateur.graph_passes.selection.flow import reads_shape_only
from secateur.graph_passes.selection.region import Cut as CutPoint
from secateur.graph_passes.sites import Site
from secateur.graph_passes.stream_sites import site_at, stream_site
from secateur.graph_passes.token_selection import Back, check_selectable, insert_at

MARKER = ("secateur", "SelectTokens")
"""Domain and type of the node that ``secateur.models.select_tokens`` exports to."""

Options = Mapping[str, bool | int | float | str]
Tracer = Callable[[str, Site, int, Options], ir.Model]
"""(selector, site, opset of the host, options) -> selector graph; export provides it."""


def has_markers(model: ir.Model) -> bool:
    """Tell whether the model carries its own pruning logic."""
    return any((node.domain, node.op_type) == MARKER for node in model.graph)


def lower_markers(
    model: ir.Model,
    trace: Tracer,
    *,
    is_input: bool = True,
    expose_kept: bool = False,
    outputs: Dropped = "zero",
) -> ir.Model:
    """Return a model in which every marker is a selection; the input stays as it is.

    Args:
        model: With ``secateur::SelectTokens`` nodes.
        trace: Makes the graph of a selector for a site.
        is_input: Whether each site's share is a graph input; else the marker's constant.
        expose_kept: Whether kept positions become outputs.
        outputs: What outputs with one row per token hold at dropped tokens.

    Raises:
        BadInputError: a marker names a site that the graph does not have.
        PreconditionError: a node behind a marker that tokens cannot be taken from.
    """
    copy = prepare(model)
    check_selectable(copy)
    markers = [node for node in copy.graph if (node.domain, node.op_type) == MARKER]
    if not markers:
        return copy
    cuts = [_bypass(node, copy.graph) for node in markers]
    copy.opset_imports.pop(MARKER[0], None)
    raise_opset(copy, SELECTION_OPSET)
    axes = analyse_axes(copy)
    sites = attention_sites(copy, axes)
    chosen: list[Chosen] = []
    for marker, cut in zip(markers, cuts, strict=True):
        site = site_at(copy, axes, cut.site)
        if site.attention is None:
            site = stream_site(axes, cut.value, cut.site)
        options = json.loads(marker.attributes.get_string("options", "{}"))
        selection = Selection(
            site=cut.site,
            graph=trace(marker.attributes["by"].as_string(), site, opset_of(copy), options),
            budget=_budget(marker, is_input=is_input),
            expose_kept=expose_kept,
            close_gaps=site.attention is None,  # as the model does that drops tokens by itself
        )
        chosen.append((selection, site, cut))
    insert_at(copy, axes, chosen, sites=sites, back=Back(outputs))
    return copy


def _bypass(marker: ir.Node, graph: ir.Graph) -> CutPoint:
    """Take the marker out and remember who read it."""
    hidden, marked = marker.inputs[0], marker.outputs[0]
    if hidden is None or marked.is_graph_output():
        raise BadInputError(
            "a marker must stand between two parts of the model",
            where=f"node {node_name(marker)}",
            next_step="return the hidden state behind the next block instead",
        )
    readers = tuple((node, slot) for node, slot in marked.uses() if not reads_shape_only(node))
    marked.replace_all_uses_with(hidden)
    graph.remove(marker, safe=True)
    return CutPoint(marker.attributes["site"].as_string(), hidden, readers)


def _budget(marker: ir.Node, *, is_input: bool) -> Budget:
    return Budget(
        kind="permille",
        default=marker.attributes.get_int("permille", 1000),
        is_input=is_input,
        protected=marker.attributes.get_int("protected", 1),
    )


__all__ = ["MARKER", "Options", "Tracer", "has_markers", "lower_markers"]
