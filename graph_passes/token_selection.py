"""Put token selectors into a graph: at a cut of the residual stream fewer tokens go on."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes import signals
from secateur.graph_passes.attention import Cut, Site, find_sites, site_named
from secateur.graph_passes.axes import AxisMap, Expr, analyse_axes, size
from secateur.graph_passes.opset import SELECTION_OPSET, opset_of, raise_opset
from secateur.graph_passes.prepare import prepare
from secateur.graph_passes.restore import Dropped, Restorer
from secateur.graph_passes.selection.budget import (
    Budget,
    Kept,
    Tokens,
    count_valid,
    keep,
    protect,
)
from secateur.graph_passes.selection.checks import check_regions
from secateur.graph_passes.selection.emit import Emitter, named
from secateur.graph_passes.selection.flow import readers
from secateur.graph_passes.selection.folds import Requests, requests
from secateur.graph_passes.selection.pointers import Pointers
from secateur.graph_passes.selection.region import Cut as CutPoint
from secateur.graph_passes.selection.region import Regions, crossings, map_regions
from secateur.graph_passes.selection.rewire import repair_shapes, rewire
from secateur.graph_passes.selection.validity import validity
from secateur.graph_passes.selection.versions import Versions
from secateur.graph_passes.shape_repair import restore_shapes, tokens_before
from secateur.graph_passes.splice import required_signals, splice

logger = logging.getLogger(__name__)

SITES_KEY = "secateur.sites"
"""Metadata entry of a selecting model: a JSON list with one record per site."""

_SELECTOR_KEY = "secateur.selector"


@dataclass(frozen=True, slots=True)
class Selection:
    """One selection to insert.

    Attributes:
        site: Name of an attention block, or a unique end of it.
        graph: The selector: inputs named after signals, output ``score`` (B, N).
        budget: How many tokens stay.
        cut: Where in the block tokens leave.
        expose_kept: Whether ``<site>.kept``, int64 (B, K), becomes an output: original
            positions, -1 in slots that hold no token.
    """

    site: str
    graph: ir.Model
    budget: Budget = Budget()  # noqa: RUF009 - frozen
    cut: Cut = "block"
    expose_kept: bool = False


def insert_selections(
    model: ir.Model, selections: tuple[Selection, ...], *, outputs: Dropped = "zero"
) -> ir.Model:
    """Return a model that drops tokens at the given sites; the input stays as it is.

    Args:
        model: The dense model.
        selections: One per site, in any order; the sites must follow one another.
        outputs: What outputs with one row per token hold at dropped tokens.

    Raises:
        BadInputError: unknown site, no attention, a selector that does not fit.
        PreconditionError: a node behind a cut that tokens cannot be taken from.
    """
    copy = prepare(model)
    InsertTokenSelection(selections, outputs=outputs).insert(copy)
    return copy


def insert_selection(
    model: ir.Model, site: Site | str, selector_graph: ir.Model, budget: Budget
) -> ir.Model:
    """Return a model that drops tokens at one site; see ``insert_selections``."""
    name = site if isinstance(site, str) else site.name
    return insert_selections(model, (Selection(name, selector_graph, budget),))


class InsertTokenSelection(InPlacePass):
    """Readers of the residual stream behind a site get its selected rows.

    Given   y = Op(tokens, mask, ...)
    Result  y = Op(GatherND(tokens, index), gathered mask with validity, ...)
    """

    def __init__(self, selections: tuple[Selection, ...], *, outputs: Dropped = "zero") -> None:
        self.selections = selections
        self.outputs = outputs

    def requires(self, model: ir.Model) -> None:
        """The graph selects nothing yet, and functions are inlined."""
        check_selectable(model)

    def call(self, model: ir.Model) -> PassResult:
        """Insert all selections."""
        self.insert(model)
        return PassResult(model, modified=bool(self.selections))

    def ensures(self, model: ir.Model) -> None:
        """Every site has its record and every cut its gather."""
        records = json.loads(model.metadata_props.get(SITES_KEY, "[]"))
        if len(records) != len(self.selections):
            raise PreconditionError(f"{len(records)} of {len(self.selections)} sites were made")

    def insert(self, model: ir.Model) -> None:
        """Insert all selections in place; nothing is changed where one is refused."""
        check_selectable(model)
        if not self.selections:
            return
        raise_opset(model, max(SELECTION_OPSET, *map(_selector_opset, self.selections)))
        axes = analyse_axes(model)
        sites = find_sites(model, axes)
        chosen = []
        for selection in self.selections:
            site = site_named(sites, selection.site)
            value = site.cut(selection.cut)
            cut = CutPoint(selection.site, value, tuple(readers(value)))
            chosen.append((selection, site, cut))
        insert_at(model, axes, chosen, outputs=self.outputs)


Chosen = tuple[Selection, Site, CutPoint]


def check_selectable(model: ir.Model) -> None:
    """Refuse a model that selects already or that still has functions.

    Raises:
        BadInputError: with what to do about it.
    """
    if json.loads(model.metadata_props.get(SITES_KEY, "[]")):
        raise BadInputError(
            "the model selects tokens already",
            next_step="insert all selections into the dense model in one call",
        )
    if model.functions:
        raise BadInputError(
            "the model has functions, which hide attention",
            next_step="inline them first, with secateur.graph_passes.prepare.prepare",
        )


def insert_at(model: ir.Model, axes: AxisMap, chosen: list[Chosen], *, outputs: Dropped) -> None:
    """Insert selections at given cut points of an analysed model, in place."""
    order = {node: i for i, node in enumerate(model.graph)}
    in_order = sorted(chosen, key=lambda item: _position(item[2].value, order))
    regions = map_regions(model, axes, tuple(cut for _, _, cut in in_order))
    protected = min(selection.budget.protected for selection, _, _ in in_order)
    emit = Emitter(model.graph)
    pointers = Pointers(emit, regions)
    check_regions(regions, protected, pointers.nodes)
    found = [crossing for crossing in crossings(regions) if crossing.node not in pointers.nodes]
    versions = Versions(emit, regions)
    restore_shapes(emit, regions)
    for number, (selection, site, cut) in enumerate(in_order, start=1):
        emit.prefix = f"{cut.site}/selection"
        kept = _select((selection, site, cut), versions, regions, pointers)
        versions.kept.append(kept)
        _cut(cut, versions, number)
        pointers.follow(kept, number)
        asked = requests(regions, number) if kept.valid is not None else Requests()
        here = [crossing for crossing in found if crossing.region == number]
        rewire(emit, versions, regions, here, asked)
        repair_shapes(emit, regions, number, kept)
    _finish(model, in_order, versions, regions, outputs)
    logger.info(
        "selected tokens at %s with %d nodes",
        ", ".join(cut.site for _, _, cut in in_order),
        len(emit.emitted),
    )


def _select(chosen: Chosen, versions: Versions, regions: Regions, pointers: Pointers) -> Kept:
    """Splice the selector and the budget arithmetic of one site."""
    selection, site, cut = chosen
    emit = versions.emit
    tokens = _tokens(site, versions, regions)
    context = signals.Context(emit, regions, site, cut.value, tokens)
    given = signals.build(context, required_signals(selection.graph))
    score = splice(emit, selection.graph, given)
    score = protect(emit, score, tokens, selection.budget.protected)
    score = pointers.protect(score, tokens.length)
    if tokens.valid is not None:
        padding = emit.number(-np.inf, ir.DataType.FLOAT)
        score = emit.op("Where", tokens.valid, score, padding)
    named(score, f"{cut.site}.score")
    biased = emit.op("Add", score, _bias(emit, cut.site))
    budget = selection.budget
    always = budget.protected + len(pointers)
    return keep(emit, biased, tokens, replace(budget, protected=always), cut.site)


def _tokens(site: Site, versions: Versions, regions: Regions) -> Tokens:
    """Return what the selection starts from: the last one's tokens, or all that are valid."""
    if versions.kept:
        last = versions.kept[-1]
        return Tokens(last.length, last.valid, last.counts, None)
    found = validity(versions.emit, regions, site)
    length = tokens_before(versions.emit, regions)
    if found is None:
        return Tokens(length, None, None, None)
    versions.valid_source = found.source
    return count_valid(versions.emit, length, found.valid)


def _bias(emit: Emitter, site: str) -> ir.Value:
    """(1, 1) zero that is an input too: [B, N] in the forced twin, protection at run time."""
    value = ir.Value(
        name=f"{site}.score_bias",
        const_value=ir.tensor(np.zeros((1, 1), dtype=np.float32)),
        shape=ir.Shape([f"{site}.score_bias.rows", f"{site}.score_bias.columns"]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    emit.graph.register_initializer(value)
    emit.graph.inputs.append(value)
    return value


def _cut(cut: CutPoint, versions: Versions, region: int) -> None:
    """Let the recorded readers see the kept rows."""
    rows = named(versions.gather(cut.value, region), f"{cut.site}.tokens")
    rows.type = cut.value.type
    for node, slot in cut.readers:
        node.replace_input_with(slot, rows)


# --- after the last cut --------------------------------------------------------------------


def _finish(
    model: ir.Model,
    chosen: list[Chosen],
    versions: Versions,
    regions: Regions,
    outputs: Dropped,
) -> None:
    restorer = Restorer(versions.emit, versions, regions)
    for i, value in enumerate(tuple(model.graph.outputs)):
        _finish_output(model.graph, i, value, restorer, outputs)
    records = []
    for number, (selection, _, cut) in enumerate(chosen, start=1):
        if selection.expose_kept:
            _expose_kept(model.graph, cut.site, restorer, number)
        records.append(_record(selection, cut, regions, versions.kept[number - 1]))
    model.metadata_props[SITES_KEY] = json.dumps(records)
    _forget_shapes(regions)
    RemoveUnusedNodesPass()(model)
    model.graph.sort()


def _finish_output(
    graph: ir.Graph, i: int, value: ir.Value, restorer: Restorer, outputs: Dropped
) -> None:
    regions = restorer.regions
    producer = value.producer()
    region = 0 if producer is None else regions.of.get(producer, 0)
    exprs = _axes_of(regions, value)
    if not region or not any(map(regions.bears, exprs)):
        return
    if outputs == "leave":
        dims = [None if regions.bears(expr) else _dim(value, k) for k, expr in enumerate(exprs)]
        value.shape = ir.Shape(dims)
        return
    restored = restorer.restore(value, region, outputs)
    restored.type, restored.shape = value.type, value.shape
    name, value.name = value.name, f"{value.name}/kept"
    graph.outputs[i] = named(restored, str(name))


def _expose_kept(graph: ir.Graph, site: str, restorer: Restorer, region: int) -> None:
    emit, kept = restorer.emit, restorer.kept(region)
    positions = restorer.original_positions(region)
    if kept.valid is None:
        positions = emit.op("Identity", positions)
    else:
        positions = emit.op("Where", kept.valid, positions, emit.ints(-1))
    named(positions, f"{site}.kept")
    positions.type = ir.TensorType(ir.DataType.INT64)
    positions.shape = ir.Shape(["batch", f"{site}.length"])
    graph.outputs.append(positions)


def _record(selection: Selection, cut: CutPoint, regions: Regions, kept: Kept) -> dict[str, object]:
    budget = selection.budget
    return {
        "site": cut.site,
        "selector": selection.graph.metadata_props.get(_SELECTOR_KEY, selection.graph.graph.name),
        "budget": {
            "kind": budget.kind,
            "input": budget.input_name(cut.site) if budget.is_input else None,
            "default": budget.default,
        },
        "protected": budget.protected,
        "score_output": None,
        "index_output": None,
        "kept_output": f"{cut.site}.kept" if selection.expose_kept else None,
        "bias": f"{cut.site}.score_bias",
        "values": {
            "score": f"{cut.site}.score",
            "length": kept.length.name,
            "valid": None if kept.valid is None else kept.valid.name,
        },
        "tokens": str(size(regions.tokens)),
        "per_sample": kept.valid is not None,
    }


def _forget_shapes(regions: Regions) -> None:
    """Drop declared sizes that count the tokens of before; ranks stay known."""
    for node, region in regions.in_region():
        site = regions.cuts[region - 1].site
        for value in node.outputs:
            if value.shape is None or value.is_graph_output():
                continue
            exprs = _axes_of(regions, value)
            dims: list[int | str | None] = []
            for k, expr in enumerate(exprs):
                if not regions.bears(expr):
                    dims.append(_dim(value, k))
                else:
                    dims.append(f"{site}.length" if regions.is_tokens(expr) else None)
            value.shape = ir.Shape(dims)


def _axes_of(regions: Regions, value: ir.Value) -> tuple[Expr, ...]:
    try:
        return regions.axes.of(value)
    except KeyError:
        return ()


def _dim(value: ir.Value, axis: int) -> int | str | None:
    assert value.shape is not None
    found = value.shape[axis]
    return found if isinstance(found, int) else found.value


def _position(value: ir.Value, order: dict[ir.Node, int]) -> int:
    producer = value.producer()
    return -1 if producer is None else order[producer]


def _selector_opset(selection: Selection) -> int:
    return opset_of(selection.graph)


__all__ = [
    "SITES_KEY",
    "InsertTokenSelection",
    "Selection",
    "check_selectable",
    "insert_at",
    "insert_selection",
    "insert_selections",
]
