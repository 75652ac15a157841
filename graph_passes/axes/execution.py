"""Relations of one node, executed: axes are joined, made, put on outputs or frozen.

A constant's axis is only its length until a relation says which axis it is: most are an axis
that is there already, so that nothing has to be made and joined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from secateur.graph_passes.axes.axis_map import AxisMap, IndexUse, LookUp
from secateur.graph_passes.axes.expression import (
    UNIT,
    Atom,
    Expr,
    Reason,
    concatenation,
    resolve,
    size,
)
from secateur.graph_passes.axes.expression import (
    Sum as SumExpr,
)
from secateur.graph_passes.axes.lookups import table_of_ids
from secateur.graph_passes.axes.programs import Pairs, Step
from secateur.graph_passes.axes.relations import (
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
)
from secateur.graph_passes.axes.sizes import Size, divide
from secateur.graph_passes.axes.solver import Solver
from secateur.graph_passes.axes.view import declared_shape
from secateur.graph_passes.axes.visits import Visit

Axes = list[Expr | int]
"""Of one use of a constant: an axis that nothing was said of yet is its length."""


class Executor:
    """Executes the steps of one node after the other."""

    __slots__ = (
        *("_axes", "_by_kind", "_reasons", "_solver", "constants"),
        *("inputs", "name", "outputs", "visit"),
    )

    def __init__(self, axes: AxisMap) -> None:
        self._axes = axes
        self._solver: Solver = axes.solver
        self.visit: Visit
        self.name = ""
        """Of the node, for reasons."""
        self.inputs: list[Any] = []
        """Per input its axes: ``Axes`` of a constant, those of the walk for other values."""
        self.constants: list[int] = []
        """Inputs that are constants."""
        self.outputs: list[list[Expr | None]] = []
        """Per output its axes as far as they are known."""
        self._reasons: dict[str, Reason] = {}
        """The last one of each text: a node gives it of several axes."""
        self._by_kind: dict[type, Callable[[Any], None]] = {
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

    def run(self, steps: tuple[Step, ...]) -> None:
        """Execute steps in their order."""
        inputs, outputs = self.inputs, self.outputs
        for slot, axis, others, results, relation in steps:
            if slot < 0:
                self._by_kind[type(relation)](relation)
                continue
            base = inputs[slot][axis]
            if type(base) is int:
                base = self._begun(slot, axis, others)
            for there, axis_there in others:
                if inputs[there][axis_there] is not base:
                    self._join(base, there, axis_there)
            for there, axis_there in results:
                present = outputs[there][axis_there]
                if present is None:
                    outputs[there][axis_there] = base
                elif present is not base:
                    self._solver.unify(base, present, self.name)

    def _join(self, base: Expr, slot: int, axis: int) -> None:
        """Make an axis of an input ``base``."""
        present = self.inputs[slot][axis]
        if type(present) is not int:
            self._solver.unify(base, present, self.name)
        elif _is_long(base, present):
            self.inputs[slot][axis] = base
        else:
            self._solver.unify(base, self.made(slot, axis), self.name)

    def made(self, slot: int, axis: int) -> Expr:
        """Make the axis of a constant of which nothing was said one by itself."""
        value = self.visit.inputs[slot]
        length = self.inputs[slot][axis]
        made = (Atom(length, "" if value is None else value.name or ""),)
        self.inputs[slot][axis] = made
        return made

    def settle(self) -> None:
        """Make every axis of a constant that is still only a length."""
        for slot in self.constants:
            for axis, expr in enumerate(self.inputs[slot]):
                if type(expr) is int:
                    self.made(slot, axis)

    def close(self, unmentioned: Pairs, key: str) -> None:
        """Freeze axes of inputs that the rule of the op ``key`` did not mention."""
        for port in unmentioned:
            expr = self._get(port)
            if expr:
                text = f"{key} says nothing about axis {port[1]} of input {port[0]}"
                self._solver.freeze(expr, Reason(text, self.name))

    def _begun(self, slot: int, axis: int, others: Pairs) -> Expr:
        """The axis of a constant that comes first: another one in its relation, or its own."""
        length = self.inputs[slot][axis]
        for other, axis_there in others:
            present = self.inputs[other][axis_there]
            if type(present) is not int and _is_long(present, length):
                self.inputs[slot][axis] = present
                return present  # type: ignore[no-any-return]
        return self.made(slot, axis)

    def _get(self, port: tuple[int, int]) -> Expr | None:
        slot, axis = port
        if slot < 0:
            return self.outputs[~slot][axis]
        exprs = self.inputs[slot]
        if exprs is None:
            return None
        expr = exprs[axis]
        return self.made(slot, axis) if type(expr) is int else expr

    def _put(self, port: Port, expr: Expr) -> None:
        """Make the port's axis ``expr``."""
        present = self._get(port)
        if present is None:
            if port.slot < 0:  # else an input of unknown rank
                self.outputs[~port.slot][port.axis] = expr
        else:
            self._solver.unify(present, expr, self.name)

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
        text = relation.reason
        reason = self._reasons.get(text)
        if reason is None or reason.node != self.name:
            self._reasons[text] = reason = Reason(text, self.name)
        self._solver.freeze(self._known(relation.port), reason)

    def _known(self, port: Port) -> Expr:
        expr = self._get(port)
        if expr is None:
            expr = self._fresh(port, None)
            self._put(port, expr)
        return expr

    def _fresh(self, port: Port, of_size: Size | None) -> Expr:
        if of_size is None:
            value = self.visit.outputs[~port.slot]
            declared = declared_shape(value)
            if declared:
                of_size = declared[port.axis]
            else:
                of_size = self._solver.anonymous_size(f"{value.name}:{port.axis}")
        return self._solver.fresh(of_size, self.name)

    def _product(self, relation: Product) -> None:
        left, right = relation
        if len(right) == 1 and self._get(right[0]) is None:
            self._put(right[0], self._flat(left))
        elif len(left) == 1 and self._get(left[0]) is None:
            self._put(left[0], self._flat(right))
        else:
            self._solver.unify(self._flat(left), self._flat(right), self.name)

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
            reason = Reason(f"positions {relation.start} to {relation.stop} are read", self.name)
            self._solver.freeze(whole, reason)
            found = self._solver.fresh(length, self.name)
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
            outer = self._solver.fresh(relation.n_blocks, self.name)
        for port in relation.outer:
            self._put(port, outer)
        for port, inner_ports in zip(relation.ports, relation.inner, strict=True):
            inner = self._inner(port, inner_ports, relation.n_blocks)
            if inner is None:
                self._solver.freeze(outer, Reason("blocks of it are uneven", self.name))
                continue
            self._put(port, outer + inner)
            for inner_port in inner_ports:
                self._put(inner_port, inner)
            if relation.fixed:
                self._solver.freeze(inner, Reason(relation.fixed, self.name))
        if relation.fixed_blocks:
            self._solver.freeze(outer, Reason(relation.fixed_blocks, self.name))

    def _inner(self, port: Port, inner_ports: tuple[Port, ...], count: Size) -> Expr | None:
        """What is inside one block of ``port``; None (and frozen) where the blocks are uneven."""
        inner = next((e for e in map(self._get, inner_ports) if e is not None), None)
        if inner is not None:
            return inner
        total = self._known(port)
        each = divide(size(resolve(total)), count)
        if each is None:
            self._solver.freeze(total, Reason(f"{count} blocks in it are uneven", self.name))
            return None
        return self._solver.fresh(each, self.name)

    def _padded(self, relation: Padded) -> None:
        around = []
        for length in (relation.before, relation.after):
            part = self._solver.fresh(length, self.name)
            self._solver.freeze(part, Reason("it is padding", self.name))
            around.append(part if length else None)
        terms = [around[0], self._known(relation.port), around[1]]
        self._put(relation.out, concatenation([term for term in terms if term is not None]))

    def _index(self, relation: Index) -> None:
        whole = resolve(self._known(relation.port))
        self._axes.indexings.append(IndexUse(self.visit.node, relation.port, relation.values))
        start, n = relation.values[0] if relation.values else 0, len(relation.values)
        if relation.out is None:
            if not _is_single_position(whole, start):
                text = f"position {start} is read by itself"
                self._solver.freeze(whole, Reason(text, self.name))
            return
        if relation.values == tuple(range(start, start + n)) and n:
            self._part(Part(relation.port, relation.out, start, start + n))
            return
        reason = Reason("it is read at constant positions", self.name)
        self._solver.freeze(whole, reason)
        picked = self._solver.fresh(n, self.name)
        self._solver.freeze(picked, reason)
        self._put(relation.out, picked)

    def _positions(self, relation: Positions) -> None:
        axis = self._known(relation.of)
        if ~relation.slot < len(self.visit.outputs):
            self._axes.set_positions(self.visit.outputs[~relation.slot], axis)
        self._solver.require(axis, relation.picked, self.name)

    def _read_at(self, relation: ReadAt) -> None:
        axis, read = self._known(relation.port), self.visit.inputs[relation.slot]
        numbered = self._axes.positions(read)
        if numbered is not None:
            self._solver.unify(numbered, axis, self.name)
        elif read in self._axes.ids and relation.is_lookup:
            self._look_up(axis, relation, self._axes.ids[read])
        else:
            self._solver.freeze(axis, Reason("it is read at computed positions", self.name))

    def _look_up(self, axis: Expr, relation: ReadAt, stand_in: int) -> None:
        table = table_of_ids(self.visit.node)
        if table is None:
            self._axes.lookups[self.visit.node] = LookUp(
                self.visit.node, relation.port, relation.slot, stand_in
            )
            return
        self._solver.freeze(axis, Reason("it says which row each id reads", self.name))
        if 0 <= stand_in < len(table):  # else it picks no row of what comes behind either
            stand_in = int(table[stand_in])
        self._axes.ids[self.visit.outputs[0]] = stand_in


def _is_long(expr: Expr, length: int) -> bool:
    """Tell whether an axis has a length that is known and no other."""
    if len(expr) == 1 and type(expr[0]) is Atom and type(expr[0].size) is int:
        return expr[0].size == length  # however the atom is refined
    return size(resolve(expr)) == length


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


__all__ = ["Axes", "Executor"]
