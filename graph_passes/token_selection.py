"""Put token selectors into a graph: at a cut of the residual stream fewer tokens go on."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.attention import attention_sites
from secateur.graph_passes.attention_steps import axes_of
from secateur.graph_passes.axes import AxisMap, analyse_axes, size
from secateur.graph_passes.opset import SELECTION_OPSET, opset_of, raise_opset
from secateur.graph_passes.prepare import prepare
from secateur.graph_passes.restore import Dropped, Restorer
from secateur.graph_passes.selection.budget import Budget, Kept
from secateur.graph_passes.selection.checks import Always, check_regions
from secateur.graph_passes.selection.choice import Chosen, Selection, Surroundings, choose
from secateur.graph_passes.selection.cut_points import cut_value, value_at
from secateur.graph_passes.selection.emit import Emitter, named
from secateur.graph_passes.selection.flow import ancestors, descendants, readers
from secateur.graph_passes.selection.folds import Requests, requests
from secateur.graph_passes.selection.pointers import Pointers
from secateur.graph_passes.selection.region import Cut as CutPoint
from secateur.graph_passes.selection.region import Regions, crossings, map_regions
from secateur.graph_passes.selection.rewire import repair_shapes, rewire
from secateur.graph_passes.selection.versions import Versions
from secateur.graph_passes.selection.window import Window, window_of
from secateur.graph_passes.shape_repair import restore_shapes
from secateur.graph_passes.sites import Site
from secateur.graph_passes.stream_sites import site_at

logger = logging.getLogger(__name__)

SITES_KEY = "secateur.sites"
"""Metadata entry of a selecting model: a JSON list with one record per site."""

RESTORE_KEY = "secateur.restore"
"""Metadata entry of one that puts tokens back: a JSON list of where."""

_SELECTOR_KEY = "secateur.selector"


def insert_selections(
    model: ir.Model,
    selections: tuple[Selection, ...],
    *,
    outputs: Dropped = "zero",
    restore: tuple[str, ...] = (),
) -> ir.Model:
    """Return a model that drops tokens at the given sites; the input stays as it is.

    Args:
        model: The dense model.
        selections: One per site, in any order; the sites must follow one another.
        outputs: What outputs with one row per token hold at dropped tokens.
        restore: Values behind the sites, by name or module path, at which all tokens are put
            back, dropped ones as they left: what follows may be a grid. Hidden states, or what
            the selections name as ``leaves``.

    Raises:
        BadInputError: unknown site, a selector that does not fit, or needs attention where
            there is none.
        PreconditionError: a node behind a cut that tokens cannot be taken from.
    """
    copy = prepare(model)
    InsertTokenSelection(selections, outputs=outputs, restore=restore).insert(copy)
    return copy


class InsertTokenSelection(InPlacePass):
    """Readers of the residual stream behind a site get its selected rows.

    Given   y = Op(tokens, mask, ...)
    Result  y = Op(GatherND(tokens, index), gathered mask with validity, ...)
    """

    def __init__(
        self,
        selections: tuple[Selection, ...],
        *,
        outputs: Dropped = "zero",
        restore: tuple[str, ...] = (),
    ) -> None:
        self.selections = selections
        self.outputs = outputs
        self.restore = restore

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
        sites = attention_sites(model, axes)
        chosen = []
        for selection in self.selections:
            site = site_at(model, axes, selection.site)
            value = cut_value(model, site, selection.cut)
            cut = CutPoint(selection.site, value, _readers(model, value, selection))
            chosen.append((selection, site, cut))
        joins = tuple(_join(model, name) for name in self.restore)
        left = {one.site: value_at(model, one.leaves) for one in self.selections if one.leaves}
        back = Back(self.outputs, joins, left)
        insert_at(model, axes, chosen, sites=sites, back=back)
        if self.restore:
            model.metadata_props[RESTORE_KEY] = json.dumps(self.restore)


@dataclass(frozen=True, slots=True)
class Back:
    """How tokens come back: in outputs with one row per token, and at values in the graph."""

    outputs: Dropped = "zero"
    joins: tuple[CutPoint, ...] = ()
    left_with: Mapping[str, ir.Value] = field(default_factory=dict)
    """By site: what tokens that left there have where they are put back, if not their state."""


def _readers(
    model: ir.Model, value: ir.Value, selection: Selection
) -> tuple[tuple[ir.Node, int], ...]:
    """Return what reads a cut from now on: not a head whose answer decides who leaves.

    A head is what leads to a signal, or to what tokens leave with, and to nothing that the
    cut's other readers lead to.
    """
    signals = set(selection.signals.values())
    values = [made for node in model.graph for made in node.outputs if made.name in signals]
    values += [value_at(model, selection.leaves)] if selection.leaves else []
    deciding = {node for made in values for node in ancestors(made)}
    everyone = tuple(readers(value))
    others = tuple(reader for reader in everyone if reader[0] not in deciding)
    beyond = {node for reader in others for node in _reached(reader[0])}
    head = {node for reader in everyone if reader not in others for node in _reached(reader[0])}
    return everyone if beyond & head else others


def _reached(node: ir.Node) -> set[ir.Node]:
    return {node}.union(*(descendants(output) for output in node.outputs))


def _join(model: ir.Model, name: str) -> CutPoint:
    value = value_at(model, name)
    return CutPoint(name, value, tuple(readers(value)))


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


def insert_at(
    model: ir.Model,
    axes: AxisMap,
    chosen: list[Chosen],
    *,
    sites: tuple[Site, ...],
    back: Back,
) -> None:
    """Insert selections at given cut points of an analysed model, in place."""
    order = {node: i for i, node in enumerate(model.graph)}
    in_order = sorted(chosen, key=lambda item: _position(item[2].value, order))
    regions = map_regions(model, axes, tuple(cut for _, _, cut in in_order), back.joins)
    protected = min(selection.budget.protected for selection, _, _ in in_order)
    emit = Emitter(model.graph)
    pointers = Pointers(emit, regions, protected)
    windows = {
        cut.site: window_of(emit, regions, value_at(model, selection.among), cut.site)
        for selection, _, cut in in_order
        if selection.among
    }
    keeps_last = bool(windows) and not any(one.ends_inside for one in windows.values())
    may_close = all(selection.close_gaps for selection, _, _ in in_order)
    check_regions(regions, Always(protected, keeps_last), pointers.nodes, may_close=may_close)
    _check_windows(in_order, windows, pointers)
    found = [crossing for crossing in crossings(regions) if crossing.node not in pointers.nodes]
    versions = Versions(emit, regions)
    around = Surroundings(versions, regions, pointers, sites, windows)
    restore_shapes(emit, regions)
    for number, one in enumerate(in_order, start=1):
        cut = one[2]
        emit.prefix = f"{cut.site}/selection"
        kept = choose(one, around)
        versions.kept.append(kept)
        _cut(cut, versions, regions, number)
        pointers.follow(kept, number)
        asked = requests(regions, number) if kept.valid is not None else Requests()
        here = [crossing for crossing in found if crossing.region == number]
        rewire(emit, versions, regions, here, asked)
        repair_shapes(emit, regions, number, kept)
    _finish(model, in_order, around, back)
    logger.info(
        "selected tokens at %s with %d nodes",
        ", ".join(cut.site for _, _, cut in in_order),
        len(emit.emitted),
    )


def _check_windows(chosen: list[Chosen], windows: Mapping[str, Window], pointers: Pointers) -> None:
    """All sites of a chain select from the same tokens, and nothing points into them."""
    exprs = {one.expr for one in windows.values()}
    if windows and (len(exprs) > 1 or len(windows) != len(chosen)):
        raise BadInputError(
            "the sites of one model select from different tokens",
            got=", ".join(f"{cut.site}: {one.among or 'all'}" for one, _, cut in chosen),
            wanted="the same value in the option among of every site",
        )
    if windows and len(pointers):
        raise PreconditionError(
            "a token that the model reads at a computed position may be in the window",
            where=", ".join(windows),
            next_step="leave the option among out, or read the last token",
        )


def _cut(cut: CutPoint, versions: Versions, regions: Regions, region: int) -> None:
    """Let the recorded readers see the kept rows."""
    merge = versions.kept[region - 1].merge
    rows = versions.gather(cut.value, region) if merge is None else merge(cut.value)
    rows = named(rows, f"{cut.site}.tokens")
    rows.type = cut.value.type
    # a runtime that does not know the rank fuses nothing with what reads these rows
    rows.shape = _shape_behind(cut.value, cut.site, regions)
    versions.opening.append(rows)
    for node, slot in cut.readers:
        node.replace_input_with(slot, rows)


# --- after the last cut --------------------------------------------------------------------


def _finish(model: ir.Model, chosen: list[Chosen], around: Surroundings, back: Back) -> None:
    versions, regions = around.versions, around.regions
    restorer = Restorer(versions.emit, versions, regions)
    left_with = tuple(back.left_with.get(cut.site, cut.value) for _, _, cut in chosen)
    joiner = Restorer(versions.emit, versions, regions, left_with)
    for join in regions.joins:
        producer = join.value.producer()
        assert producer is not None
        rows = joiner.restore(join.value, regions.of[producer], "exit")
        rows.type = join.value.type
        for node, slot in join.readers:
            node.replace_input_with(slot, rows)
    for i, value in enumerate(tuple(model.graph.outputs)):
        _finish_output(model.graph, i, value, restorer, back.outputs)
    records = []
    for number, (selection, _, cut) in enumerate(chosen, start=1):
        if selection.expose_kept:
            _expose_kept(model.graph, cut.site, restorer, number)
        records.append(_record(selection, cut, around, versions.kept[number - 1]))
    model.metadata_props[SITES_KEY] = json.dumps(records)
    _forget_shapes(regions)
    RemoveUnusedNodesPass()(model)
    model.graph.sort()


def _finish_output(
    graph: ir.Graph, i: int, value: ir.Value, restorer: Restorer, outputs: Dropped
) -> None:
    regions = restorer.regions
    region, rows = restorer.reaches(value)
    exprs = axes_of(regions.axes, value) or ()
    if not region or not any(map(regions.bears, exprs)):
        return
    if outputs == "leave":
        dims = [None if regions.bears(expr) else _dim(value, k) for k, expr in enumerate(exprs)]
        if rows is value:
            value.shape = ir.Shape(dims)
            return
        made = restorer.emit.op("Identity", rows)
        made.shape = ir.Shape(dims)
    else:
        made = restorer.restore(value, region, outputs, rows=rows)
        made.shape = value.shape
    made.type = value.type
    name, value.name = value.name, f"{value.name}/kept"
    graph.outputs[i] = named(made, str(name))


def _expose_kept(graph: ir.Graph, site: str, restorer: Restorer, region: int) -> None:
    emit = restorer.emit
    positions, valid = restorer.chosen_positions(region)
    if valid is None:
        positions = emit.op("Identity", positions)
    else:
        positions = emit.op("Where", valid, positions, emit.ints(-1))
    named(positions, f"{site}.kept")
    positions.type = ir.TensorType(ir.DataType.INT64)
    positions.shape = ir.Shape(["batch", f"{site}.length"])
    graph.outputs.append(positions)


def _record(
    selection: Selection, cut: CutPoint, around: Surroundings, kept: Kept
) -> dict[str, object]:
    window = around.windows.get(cut.site)
    tokens = around.regions.tokens if window is None else window.expr
    budget = Budget(default=1000, is_input=False) if selection.is_adaptive else selection.budget
    kept = kept.inner or kept
    chosen = kept.chosen or kept
    return {
        "site": cut.site,
        "selector": selection.graph.metadata_props.get(_SELECTOR_KEY, selection.graph.graph.name),
        "options": selection.options,
        "budget": {
            "kind": budget.kind,
            "input": budget.input_name(cut.site) if budget.is_input else None,
            "default": budget.default,
        },
        "protected": selection.budget.protected,
        "adaptive": selection.is_adaptive,
        "cut": selection.cut,
        "among": selection.among,
        "leaves": selection.leaves,
        "close_gaps": selection.close_gaps,
        "signals": dict(selection.signals),
        "merges": kept.merge is not None,
        "score_output": None,
        "index_output": None,
        "kept_output": f"{cut.site}.kept" if selection.expose_kept else None,
        "bias": f"{cut.site}.score_bias",
        "values": {
            "score": f"{cut.site}.score",
            "length": chosen.length.name,
            "counts": chosen.counts.name if chosen.counts and _decides(selection) else None,
            "valid": None if chosen.valid is None else chosen.valid.name,
        },
        "tokens": str(size(tokens)),
        "per_sample": chosen.valid is not None,
    }


def _decides(selection: Selection) -> bool:
    """Tell whether the number kept comes from the method, not from the budget alone."""
    return any(output.name == "count_kept" for output in selection.graph.graph.outputs)


def _forget_shapes(regions: Regions) -> None:
    """Drop declared sizes that count the tokens of before; ranks stay known."""
    for node, region in regions.in_region():
        site = regions.cuts[region - 1].site
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = _shape_behind(value, site, regions)


def _shape_behind(value: ir.Value, site: str, regions: Regions) -> ir.Shape | None:
    """The declared shape with the tokens that ``site`` leaves; None where there is none."""
    exprs = axes_of(regions.axes, value) or ()
    if value.shape is None or len(value.shape) != len(exprs):
        return None
    dims: list[int | str | None] = []
    for k, expr in enumerate(exprs):
        if not regions.bears(expr):
            dims.append(_dim(value, k))
        else:
            dims.append(f"{site}.length" if regions.is_tokens(expr) else None)
    return ir.Shape(dims)


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
    "RESTORE_KEY",
    "SITES_KEY",
    "Back",
    "InsertTokenSelection",
    "Selection",
    "check_selectable",
    "insert_at",
    "insert_selections",
]
