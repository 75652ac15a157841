"""One walk over a graph: each node's rule is asked, its relations are executed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import onnx_ir as ir

from secateur.graph_passes.axes.allocation import without_collector
from secateur.graph_passes.axes.axis_map import AxisMap, FoldUse, IndexUse, constant_tensor
from secateur.graph_passes.axes.expression import (
    UNIT,
    Atom,
    Expr,
    Reason,
    concatenation,
    current_sizes,
    resolve,
    size,
    units,
)
from secateur.graph_passes.axes.expression import (
    Sum as SumExpr,
)
from secateur.graph_passes.axes.programs import (
    PROGRAMS,
    Pairs,
    Program,
    Step,
    declared_ranks,
    is_plain,
    program_of,
    sizes_of,
)
from secateur.graph_passes.axes.relations import (
    AXIS_RULES,
    AxisRule,
    Blocks,
    Fold,
    Fresh,
    Frozen,
    Index,
    Padded,
    Part,
    Port,
    Positions,
    Product,
    ReadAt,
    Same,
    Sum,
    op_key,
    sees_units_only,
)
from secateur.graph_passes.axes.shape_values import FROM_AXES, data_sources, track, track_constant
from secateur.graph_passes.axes.sizes import Size, divide
from secateur.graph_passes.axes.solver import Solver
from secateur.graph_passes.axes.subgraphs import captured, has_no_subgraph
from secateur.graph_passes.axes.view import MadeUpNames, View, declared_shape
from secateur.graph_passes.names import node_name

_MOVES = frozenset(
    {
        *("Identity", "Cast", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
        *("Slice", "Expand", "Split"),
    }
)
"""Ops that hand integers on as they are."""


def analyse_axes(model: ir.Model, *, allow_outputs: Collection[str] = ()) -> AxisMap:
    """Say what every axis of the main graph is made of.

    Args:
        model: Functions inlined and shapes inferred (``prepare`` does both); other
            models are analysed too, but what is unknown is frozen.
        allow_outputs: Leave the axes of these graph outputs free, so that a cut may
            change their shapes.

    Returns:
        Expressions per axis, with the reasons why an atom may not be cut.
    """
    with without_collector():
        return _Walk(model).run(allow_outputs=allow_outputs)


class _Walk:
    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._opset = model.opset_imports.get("", 20)
        self._solver = Solver(MadeUpNames(model.graph))
        self._axes = AxisMap(self._solver)
        self._node: ir.Node | None = None
        self._name = ""
        self._inputs: list[Sequence[Expr] | None] = []
        self._outputs: list[list[Expr | None]] = []
        self._executors: dict[type, Callable[[Any], None]] = {
            Same: self._same,
            Fold: self._same,
            Fresh: self._put_fresh,
            Product: self._product,
            Sum: self._sum,
            Part: self._part,
            Blocks: self._blocks,
            Padded: self._padded,
            Index: self._index,
            Positions: self._positions,
            ReadAt: self._read_at,
            Frozen: self._frozen,
        }

    def run(self, *, allow_outputs: Collection[str] = ()) -> AxisMap:
        for value in self._graph.inputs:
            self._enter_input(value)
        for node in self._graph:
            if node.op_type != "Constant" or node.domain:
                self._visit(node)
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

    def _visit(self, node: ir.Node) -> None:
        self._node, self._name = node, node.name or node_name(node)
        key = op_key(node)
        integers = self._enter_inputs(node)
        rule = AXIS_RULES.find(key)
        program = None if rule is None else self._program(rule, key, integers)
        if program is None:
            self._freeze_inputs(f"no axis rule for the op {key}")
            program = program_of((), [None] * len(self._inputs), declared_ranks(node))
        self._outputs = [[None] * rank for rank in program.output_ranks]
        self._run(program.steps)
        for fold in program.folds:
            self._axes.folds.append(FoldUse(node, fold.ports, fold.neutral))
        if program.unmentioned:
            self._close_inputs(program.unmentioned)
        if self._axes.holds_positions():
            self._carry_positions(node, program.reads)
        self._close_outputs(node, is_described=program.is_described)
        if integers or node.op_type in FROM_AXES:
            self._track(node)

    def _program(self, rule: AxisRule, key: str, integers: tuple[object, ...]) -> Program | None:
        """Ask the rule, or remember what it said about a node that looked the same.

        None for a node with a graph inside that no rule looked like: what is in there is unknown.
        """
        node = self._node
        assert node is not None
        listed = node.attributes.data
        attributes = tuple([(k, a.value) for k, a in listed.items()]) if listed else ()
        declared = declared_ranks(node)
        by_units = sees_units_only(rule, node)
        seen = units if by_units else current_sizes
        shapes = tuple([None if exprs is None else seen(exprs) for exprs in self._inputs])
        signature = (rule, key, self._opset, shapes, integers, declared, attributes)
        found = PROGRAMS.find(signature)
        if found is not None:
            return found
        if not has_no_subgraph(node):
            return None
        view = View(node, self._axes, sizes_of(shapes) if by_units else shapes, self._opset)
        ranks = [None if shape is None else len(shape) for shape in shapes]
        program = program_of(rule(view), ranks, declared)
        if not view.is_particular and is_plain(node):
            PROGRAMS.keep(signature, program)
        return program

    def _track(self, node: ir.Node) -> None:
        track(node, self._axes)
        for entry in data_sources(node, self._axes):
            for source in entry.sources:
                self._solver.freeze(source, Reason("its size is read as data", self._name))

    def _enter_inputs(self, node: ir.Node) -> tuple[object, ...]:
        """Collect the axes of the inputs; each use of a constant gets axes of its own.

        Returns (slot, integers) of those inputs that hold integers which are known as sizes.
        """
        axes = self._axes
        inputs: list[Sequence[Expr] | None] = []
        integers: list[object] = []
        for slot, value in enumerate(node.inputs):
            if value is None:
                inputs.append(None)
                continue
            tensor = value.const_value
            if tensor is None:
                tensor = self._constant(value)
            if tensor is None:
                inputs.append(axes.of_values.get(value))
            else:
                axes.of_uses[node, slot] = exprs = self._enter_constant(value, tensor)
                inputs.append(exprs)
            if value in axes.tracked:
                integers.append((slot, axes.ints(value)))
        self._inputs = inputs
        return tuple(integers)

    def _enter_constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> list[Expr]:
        label, dims = value.name or "", tensor.shape
        if len(dims) < 2 and value not in self._axes.tracked:
            track_constant(value, tensor, self._axes)
        return [UNIT if dim == 1 else (Atom(dim, label),) for dim in dims]  # type: ignore[arg-type]

    def _constant(self, value: ir.Value) -> ir.TensorProtocol | None:
        """The tensor of a Constant node, which was not visited."""
        return None if value in self._axes.of_values else constant_tensor(value)

    def _close_inputs(self, unmentioned: Pairs) -> None:
        """Freeze input axes that the rule did not mention."""
        assert self._node is not None
        for slot, axis in unmentioned:
            exprs = self._inputs[slot]
            if exprs is not None and exprs[axis]:
                text = f"{op_key(self._node)} says nothing about axis {axis} of input {slot}"
                self._solver.freeze(exprs[axis], Reason(text, self._name))

    def _carry_positions(self, node: ir.Node, read: frozenset[int]) -> None:
        """Positions of an axis go through moves; any other reader freezes the axis."""
        for slot, value in enumerate(node.inputs):
            axis = self._axes.positions(value)
            if axis is None or slot in read:
                continue
            if slot == 0 and not node.domain and node.op_type in _MOVES:
                for output in node.outputs:
                    self._axes.set_positions(output, axis)
            else:
                self._solver.freeze(axis, Reason("its positions are read as numbers", self._name))

    def _positions(self, relation: Positions) -> None:
        assert self._node is not None
        axis = self._known(relation.of)
        if ~relation.slot < len(self._node.outputs):
            self._axes.set_positions(self._node.outputs[~relation.slot], axis)
        self._solver.require(axis, relation.picked, self._name)

    def _read_at(self, relation: ReadAt) -> None:
        assert self._node is not None
        axis = self._known(relation.port)
        numbered = self._axes.positions(self._node.inputs[relation.slot])
        if numbered is None:
            self._solver.freeze(axis, Reason("it is read at computed positions", self._name))
        else:
            self._solver.unify(numbered, axis, self._name)

    def _close_outputs(self, node: ir.Node, *, is_described: bool) -> None:
        of_values = self._axes.of_values
        for value, exprs in zip(node.outputs, self._outputs, strict=True):
            if not exprs and value.shape is None:
                # relations that name no output axis make a scalar
                of_values[value] = [] if is_described else None
                continue
            if None in exprs:
                for axis, expr in enumerate(exprs):
                    if expr is None:
                        exprs[axis] = self._unknown(value, axis)
            of_values[value] = made = cast(list[Expr], exprs)
            for carried in self._inputs:
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
        assert self._node is not None
        text = f"{op_key(self._node)} says nothing about axis {axis} of its output"
        self._solver.freeze(expr, Reason(text, self._name))
        return expr

    def _freeze_inputs(self, text: str) -> None:
        assert self._node is not None
        reason = Reason(text, self._name)
        for exprs in self._inputs:
            for expr in exprs or ():
                self._solver.freeze(expr, reason)
        for value in captured(self._node):
            self._freeze_value(value, reason)

    # --- executing relations ---------------------------------------------------------

    def _get(self, port: Port) -> Expr | None:
        slot, axis = port
        if slot < 0:
            return self._outputs[~slot][axis]
        exprs = self._inputs[slot]
        return None if exprs is None else exprs[axis]

    def _put(self, port: Port, expr: Expr) -> None:
        """Make the port's axis ``expr``."""
        present = self._get(port)
        if present is None:
            if port.slot < 0:  # else an input of unknown rank
                self._outputs[~port.slot][port.axis] = expr
        else:
            self._solver.unify(present, expr, self._name)

    def _run(self, steps: tuple[Step, ...]) -> None:
        axes_of_inputs: list[Any] = self._inputs
        axes_of_outputs, unify = self._outputs, self._solver.unify
        for slot, axis, others, outputs, relation in steps:
            if slot < 0:
                self._executors[type(relation)](relation)
                continue
            base = axes_of_inputs[slot][axis]
            for other, axis_there in others:
                present = axes_of_inputs[other][axis_there]
                if present is not base:
                    unify(base, present, self._name)
            for output, axis_there in outputs:
                made = axes_of_outputs[output][axis_there]
                if made is None:
                    axes_of_outputs[output][axis_there] = base
                elif made is not base:
                    unify(base, made, self._name)

    def _same(self, relation: Same | Fold) -> None:
        """Of outputs alone: nothing is known of the inputs."""
        ports = [port for port in relation.ports if port.slot < 0]
        for port in ports[1:]:
            self._put(port, self._known(ports[0]))

    def _put_fresh(self, relation: Fresh) -> None:
        self._put(relation.port, self._fresh(relation.port, relation.size))

    def _sum(self, relation: Sum) -> None:
        self._put(relation.port, concatenation([self._known(part) for part in relation.parts]))

    def _frozen(self, relation: Frozen) -> None:
        self._solver.freeze(self._known(relation.port), Reason(relation.reason, self._name))

    def _known(self, port: Port) -> Expr:
        expr = self._get(port)
        if expr is None:
            expr = self._fresh(port, None)
            self._put(port, expr)
        return expr

    def _fresh(self, port: Port, of_size: Size | None) -> Expr:
        assert self._node is not None
        if of_size is None:
            value = self._node.outputs[~port.slot]
            declared = declared_shape(value)
            name = f"{value.name}:{port.axis}"
            of_size = declared[port.axis] if declared else self._solver.anonymous_size(name)
        return self._solver.fresh(of_size, self._name)

    def _product(self, relation: Product) -> None:
        left, right = relation
        if len(right) == 1 and self._get(right[0]) is None:
            self._put(right[0], self._flat(left))
        elif len(left) == 1 and self._get(left[0]) is None:
            self._put(left[0], self._flat(right))
        else:
            self._solver.unify(self._flat(left), self._flat(right), self._name)

    def _flat(self, ports: tuple[Port, ...]) -> Expr:
        return tuple(factor for port in ports for factor in self._known(port))

    def _part(self, relation: Part) -> None:
        whole = resolve(self._known(relation.whole))
        if relation.start == 0 and relation.stop == size(whole):
            self._put(relation.part, whole)
            return
        length = relation.stop - relation.start
        found = self._slice(whole, relation.start, length)
        if found is None:
            reason = Reason(f"positions {relation.start} to {relation.stop} are read", self._name)
            self._solver.freeze(whole, reason)
            found = self._solver.fresh(length, self._name)
            self._solver.freeze(found, reason)
        self._put(relation.part, found)

    def _slice(self, whole: Expr, start: Size, length: Size) -> Expr | None:
        if start != 0:
            halves = self._solver.split(whole, start)
            if halves is None:
                return None
            whole = resolve(halves[1])
        if length == size(whole):
            return whole
        halves = self._solver.split(whole, length)
        return None if halves is None else halves[0]

    def _blocks(self, relation: Blocks) -> None:
        outer = next((e for e in map(self._get, relation.outer) if e is not None), None)
        if outer is None:
            outer = self._solver.fresh(relation.n_blocks, self._name)
        for port in relation.outer:
            self._put(port, outer)
        for port, inner_ports in zip(relation.ports, relation.inner, strict=True):
            inner = self._inner(port, inner_ports, relation.n_blocks)
            if inner is None:
                self._solver.freeze(outer, Reason("blocks of it are uneven", self._name))
                continue
            self._put(port, outer + inner)
            for inner_port in inner_ports:
                self._put(inner_port, inner)
            if relation.fixed:
                self._solver.freeze(inner, Reason(relation.fixed, self._name))
        if relation.fixed_blocks:
            self._solver.freeze(outer, Reason(relation.fixed_blocks, self._name))

    def _inner(self, port: Port, inner_ports: tuple[Port, ...], count: Size) -> Expr | None:
        """What is inside one block of ``port``; None (and frozen) where the blocks are uneven."""
        inner = next((e for e in map(self._get, inner_ports) if e is not None), None)
        if inner is not None:
            return inner
        total = self._known(port)
        each = divide(size(resolve(total)), count)
        if each is None:
            self._solver.freeze(total, Reason(f"{count} blocks in it are uneven", self._name))
            return None
        return self._solver.fresh(each, self._name)

    def _padded(self, relation: Padded) -> None:
        around = []
        for length in (relation.before, relation.after):
            part = self._solver.fresh(length, self._name)
            self._solver.freeze(part, Reason("it is padding", self._name))
            around.append(part if length else None)
        terms = [around[0], self._known(relation.port), around[1]]
        self._put(relation.out, concatenation([term for term in terms if term is not None]))

    def _index(self, relation: Index) -> None:
        whole = resolve(self._known(relation.port))
        assert self._node is not None
        self._axes.indexings.append(IndexUse(self._node, relation.port, relation.values))
        start, n = relation.values[0] if relation.values else 0, len(relation.values)
        if relation.out is None:
            if not _is_single_position(whole, start):
                text = f"position {start} is read by itself"
                self._solver.freeze(whole, Reason(text, self._name))
            return
        if relation.values == tuple(range(start, start + n)) and n:
            self._part(Part(relation.port, relation.out, start, start + n))
            return
        reason = Reason("it is read at constant positions", self._name)
        self._solver.freeze(whole, reason)
        picked = self._solver.fresh(n, self._name)
        self._solver.freeze(picked, reason)
        self._put(relation.out, picked)


def _is_single_position(expr: Expr, position: int) -> bool:
    """Tell whether the position is a part of a concatenation by itself (a class token)."""
    if not expr:
        return True
    if len(expr) != 1 or not isinstance(expr[0], SumExpr):
        return False
    offset: Size = 0
    total = size(expr)
    wanted: Size = position if position >= 0 else total + position
    for term in expr[0].terms:
        if offset == wanted:
            return term == UNIT
        offset = offset + size(term)
    return False


__all__ = ["analyse_axes"]
