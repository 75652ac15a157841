"""One walk over a graph: each node's rule is asked, its relations are executed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from secateur.graph_passes.axes.allocation import without_collector
from secateur.graph_passes.axes.axis_map import AxisMap, ConstantUse, FoldUse, constant_tensor
from secateur.graph_passes.axes.execution import Executor
from secateur.graph_passes.axes.expression import (
    Atom,
    Expr,
    Reason,
    current_sizes,
    units,
)
from secateur.graph_passes.axes.programs import (
    PROGRAMS,
    Program,
    Shapes,
    is_plain,
    program_of,
    ranks_of,
    sizes_of,
)
from secateur.graph_passes.axes.relations import (
    AXIS_RULES,
    AxisRule,
    knows_bodies,
    sees_units_only,
)
from secateur.graph_passes.axes.shape_values import FROM_AXES, data_sources, track, track_constant
from secateur.graph_passes.axes.sizes import Polynomial, Size
from secateur.graph_passes.axes.solver import Solver
from secateur.graph_passes.axes.subgraphs import captured, has_no_subgraph
from secateur.graph_passes.axes.view import MadeUpNames, View, declared_shape
from secateur.graph_passes.axes.visits import Visit, visits_of
from secateur.graph_passes.names import node_name

_MOVES = frozenset(
    {
        *("Identity", "Cast", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
        *("Slice", "Expand", "Split"),
    }
)
"""Ops that hand integers on as they are."""

_Seen = tuple[str, bool, Shapes, tuple[object, ...]]
"""Of a node: its op, whether only units are told, the shapes and the integers of its inputs."""
_Known = tuple[tuple[Size, ...], tuple[bool, ...]] | None
"""Sizes of the axes of a value and which of them are 1; None where some may become known."""
_NEW: _Known = ((), ())


def analyse_axes(
    model: ir.Model,
    *,
    allow_outputs: Collection[str] = (),
    allow_ids: Mapping[str, int] = MappingProxyType({}),
    visits: Iterable[Visit] | None = None,
) -> AxisMap:
    """Say what every axis of the main graph is made of.

    Args:
        model: Functions inlined and shapes inferred (``prepare`` does both); other
            models are analysed too, but what is unknown is frozen.
        allow_outputs: Leave the axes of these graph outputs free, so that a cut may
            change their shapes.
        allow_ids: Graph inputs whose numbers are ids of rows that may go, each with the
            id that stands in for one whose row is gone.
        visits: The nodes of the graph, of a caller that has read them.

    Returns:
        Expressions per axis, with the reasons why an atom may not be cut.
    """
    with without_collector():
        read = visits_of(model.graph) if visits is None else visits
        return _Walk(model).run(read, allow_outputs, allow_ids)


class _Walk:
    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._opset = model.opset_imports.get("", 20)
        self._solver = Solver(MadeUpNames(model.graph))
        self._axes = AxisMap(self._solver)
        self._here = Executor(self._axes)
        self._rules = AXIS_RULES.table()
        self._shapes: dict[int, _Known] = {}
        """By the identity of the axes of a value: they stay in the map, so none is reused."""

    def run(
        self,
        visits: Iterable[Visit],
        allow_outputs: Collection[str],
        allow_ids: Mapping[str, int],
    ) -> AxisMap:
        for value in self._graph.inputs:
            self._enter_input(value)
            if value.name in allow_ids:
                self._axes.ids[value] = allow_ids[str(value.name)]
        for visit in visits:
            if visit.key != "Constant":
                self._visit(visit)
        self._tie_lookups()
        for value in self._graph.outputs:
            if value.name in allow_outputs:
                continue
            self._freeze_value(value, Reason("it is an axis of a graph output", value.name or ""))
            axis = self._axes.positions(value)
            if axis is not None:
                reason = Reason("its positions are a graph output", value.name or "")
                self._solver.freeze(axis, reason)
            for entry in self._axes.entries(value) or ():
                for source in entry.sources:
                    reason = Reason("its size is a graph output", value.name or "")
                    self._solver.freeze(source, reason)
        self._axes.seal()
        return self._axes

    def _tie_lookups(self) -> None:
        """Rows that ids read go from every use of their weight (a tied head), or from none."""
        axes = self._axes
        for lookup in axes.lookups.values():
            node, (slot, axis) = lookup.node, lookup.port
            rows, weight = axes.expr(node, lookup.port), node.inputs[slot]
            for reader, there in () if weight is None else weight.uses():
                used = axes.of_uses.get((reader, there))
                if used is not None:
                    self._solver.unify(rows, used.exprs[axis], node_name(node))
        for lookup in axes.lookups.values():
            rows = axes.expr(lookup.node, lookup.port)
            if len(rows) != 1 or type(rows[0]) is not Atom or type(rows[0].size) is not int:
                text = "it is read by ids, and not one axis by itself"
                self._solver.freeze(rows, Reason(text, node_name(lookup.node)))

    def _enter_input(self, value: ir.Value) -> None:
        if value.const_value is not None:
            return  # an initialiser with the right to be overridden: a constant per use
        shape = declared_shape(value)
        if shape is None:
            self._axes.set_value(value, None)
            return
        exprs = [self._solver.fresh(s, f"{value.name}.{axis}") for axis, s in enumerate(shape)]
        self._axes.set_value(value, exprs)
        self._freeze_value(value, Reason("it is an axis of a graph input", value.name or ""))

    def _freeze_value(self, value: ir.Value, reason: Reason) -> None:
        try:
            exprs = self._axes.of(value)
        except KeyError:
            return
        for expr in exprs:
            self._solver.freeze(expr, reason)

    def _visit(self, visit: Visit) -> None:
        here, node, key = self._here, visit.node, visit.key
        self._axes.visited[node] = visit
        here.visit, here.name = visit, node.name or node_name(node)
        rule = self._rules.get(key)
        declared = [None if s is None else s.dims for s in [v.shape for v in visit.outputs]]
        by_units = rule is not None and sees_units_only(rule, declared)
        shapes, integers = self._enter_inputs(visit, by_units=by_units)
        program, ranks = None, ranks_of(declared)
        if rule is not None:
            program = self._program(rule, (key, by_units, shapes, integers), ranks)
        if program is None:
            self._freeze_inputs(f"no axis rule for the op {key}")
            program = program_of((), [None] * len(shapes), ranks)
        if program.carried < 0 or program.carried in here.constants:
            here.outputs = [[None] * rank for rank in program.output_ranks]
            here.run(program.steps)
            self._close_outputs(visit.outputs, is_described=program.is_described)
        else:
            here.run(program.joins)
            self._axes.of_values[visit.outputs[0]] = here.inputs[program.carried]
        for fold in program.folds:
            self._axes.folds.append(FoldUse(node, fold.ports, fold.neutral))
        if program.unmentioned:
            here.close(program.unmentioned, key)
        if not program.is_settled:
            here.settle()
        if self._axes.holds_positions():
            self._carry_positions(visit, program.reads)
        if self._axes.ids and key in _MOVES and visit.inputs[0] in self._axes.ids:
            stand_in = self._axes.ids[visit.inputs[0]]
            self._axes.ids.update(dict.fromkeys(visit.outputs, stand_in))
        if integers or key in FROM_AXES:
            self._track(visit)

    def _program(self, rule: AxisRule, seen: _Seen, declared: tuple[int, ...]) -> Program | None:
        """Ask the rule, or remember what it said about a node that looked the same.

        None for a node with a graph inside that no rule looked like: what is in there is unknown.
        """
        visit, by_units, shapes = self._here.visit, seen[1], seen[2]
        node = visit.node
        listed = node.attributes.data
        attributes = tuple([(k, a.value) for k, a in listed.items()]) if listed else ()
        signature = (rule, self._opset, seen, declared, attributes)
        found = PROGRAMS.find(signature)
        if found is not None:
            return found
        plain = is_plain(node)
        if not plain and not has_no_subgraph(node):
            if not knows_bodies(rule):
                return None
            for value in captured(node):
                self._freeze_value(value, Reason(f"a graph inside {visit.key} reads it", ""))
        view = View(visit, self._axes, sizes_of(shapes) if by_units else shapes, self._opset)
        ranks = [None if shape is None else len(shape) for shape in shapes]
        program = program_of(rule(view), ranks, declared)
        if plain and not view.is_particular:
            PROGRAMS.keep(signature, program)
        return program

    def _track(self, visit: Visit) -> None:
        track(visit, self._axes)
        for entry in data_sources(visit, self._axes):
            for source in entry.sources:
                self._solver.freeze(source, Reason("its size is read as data", self._here.name))

    def _enter_inputs(self, visit: Visit, *, by_units: bool) -> tuple[Shapes, tuple[object, ...]]:
        """Collect the axes of the inputs; each use of a constant gets axes of its own.

        Returns the sizes of each input, or with ``by_units`` which of them are 1, and
        (slot, integers) of those inputs that hold integers which are known as sizes, or whose
        rank is unknown.
        """
        axes, here = self._axes, self._here
        here.inputs, here.constants = inputs, constants = [], []
        shapes: list[tuple[Size, ...] | None] = []
        integers: list[object] = []
        for slot, value in enumerate(visit.inputs):
            exprs: Any = None
            shape: tuple[Size, ...] | None = None
            if value in axes.of_values:
                exprs = axes.of_values[value]
                shape = None if exprs is None else self._shape(exprs, by_units=by_units)
            elif value is not None and (tensor := constant_tensor(value)) is not None:
                axes.of_uses[visit.node, slot] = use = ConstantUse(visit, slot, value, tensor)
                axes.constants.add(value)
                if len(use.dims) < 2 and value not in axes.tracked:
                    track_constant(use, axes)
                exprs = use.exprs
                shape = tuple([dim == 1 for dim in use.dims]) if by_units else use.dims
                constants.append(slot)
            inputs.append(exprs)
            shapes.append(shape)
            if value in axes.tracked:
                integers.append((slot, axes.ints(value)))
            elif exprs is None and value is not None:
                integers.append((slot, None))  # of unknown rank, which is not the same as absent
        return tuple(shapes), tuple(integers)

    def _shape(self, exprs: Sequence[Expr], *, by_units: bool) -> tuple[Size, ...]:
        """Sizes of axes, or which are 1; those that are all of known size are asked once."""
        known = self._shapes.get(id(exprs), _NEW)
        if known is _NEW:
            sizes = current_sizes(exprs)
            is_open = Polynomial in map(type, sizes)
            known = None if is_open else (sizes, tuple([size == 1 for size in sizes]))
            self._shapes[id(exprs)] = known
        if known is None:
            return units(exprs) if by_units else current_sizes(exprs)
        return known[by_units]

    def _carry_positions(self, visit: Visit, read: frozenset[int]) -> None:
        """Positions of an axis go through moves; any other reader freezes the axis."""
        for slot, value in enumerate(visit.inputs):
            axis = self._axes.positions(value)
            if axis is None or slot in read:
                continue
            if slot == 0 and visit.key in _MOVES:
                for output in visit.outputs:
                    self._axes.set_positions(output, axis)
            else:
                self._solver.freeze(
                    axis, Reason("its positions are read as numbers", self._here.name)
                )

    def _close_outputs(self, outputs: Sequence[ir.Value], *, is_described: bool) -> None:
        here, of_values = self._here, self._axes.of_values
        for index, value in enumerate(outputs):
            exprs = here.outputs[index]
            if not exprs and value.shape is None:
                # relations that name no output axis make a scalar
                of_values[value] = [] if is_described else None
                continue
            if None in exprs:
                for axis, expr in enumerate(exprs):
                    if expr is None:
                        exprs[axis] = self._unknown(value, axis)
            of_values[value] = made = exprs  # type: ignore[assignment]
            for carried in here.inputs:
                if carried == made:
                    of_values[value] = carried  # one object, so that it is looked at once
                    break

    def _unknown(self, value: ir.Value, axis: int) -> Expr:
        declared = declared_shape(value)
        here: Size = (
            declared[axis]
            if declared is not None
            else self._solver.anonymous_size(f"{value.name}:{axis}")
        )
        expr = self._solver.fresh(here, f"{value.name}.{axis}")
        text = f"{self._here.visit.key} says nothing about axis {axis} of its output"
        self._solver.freeze(expr, Reason(text, self._here.name))
        return expr

    def _freeze_inputs(self, text: str) -> None:
        here = self._here
        here.settle()
        reason = Reason(text, here.name)
        for exprs in here.inputs:
            for expr in exprs or ():
                self._solver.freeze(expr, reason)
        for value in captured(here.visit.node):
            self._freeze_value(value, reason)


__all__ = ["analyse_axes"]
