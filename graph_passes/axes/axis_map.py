"""The result of one axis walk: expressions of every axis, folds, indexings, tracked sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from secateur.graph_passes.axes.expression import UNIT, Atom, Expr, Reason, leaves, resolve
from secateur.graph_passes.axes.relations import Port
from secateur.graph_passes.axes.sizes import Size
from secateur.graph_passes.axes.solver import Solver
from secateur.graph_passes.axes.visits import Visit


class FoldUse:
    """One fold of the graph: the ports of ``node`` that are combined away."""

    __slots__ = ("neutral", "node", "ports")

    def __init__(self, node: ir.Node, ports: tuple[Port, ...], neutral: float | None) -> None:
        self.node, self.ports, self.neutral = node, ports, neutral


class IndexUse(NamedTuple):
    """One constant read of an axis."""

    node: ir.Node
    port: Port
    values: tuple[int, ...]


class LookUp(NamedTuple):
    """``node`` reads rows of an axis by the ids that its input ``slot`` holds."""

    node: ir.Node
    port: Port
    slot: int
    stand_in: int
    """The id whose row is read for every id whose own is gone."""


class Entry(NamedTuple):
    """One integer of a tracked tensor, with the axes whose sizes it was made from."""

    size: Size
    sources: tuple[Expr, ...] = ()


class ConstantUse:
    """Input ``slot`` of a visited node is the constant ``value``."""

    __slots__ = ("dims", "dtype", "exprs", "name", "slot", "tensor", "value", "visit")

    def __init__(self, visit: Visit, slot: int, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        self.visit, self.slot, self.value, self.tensor = visit, slot, value, tensor
        self.name, self.dtype = value.name or "", tensor.dtype
        self.dims: tuple[int, ...] = tensor.shape.dims  # type: ignore[assignment]  # of a tensor
        self.exprs: Sequence[Expr] = [UNIT if dim == 1 else dim for dim in self.dims]  # type: ignore[misc]
        """Its axes, which are this use's own; while the walk is there, some are but a length."""


class AxisMap:
    """Axes of all values and of all uses of constants."""

    def __init__(self, solver: Solver) -> None:
        self.solver = solver
        self.visited: dict[ir.Node, Visit] = {}
        """In graph order, without constants."""
        self.folds: list[FoldUse] = []
        self.indexings: list[IndexUse] = []
        self.ids: dict[ir.Value, int] = {}
        """Ids of rows that may go, as an input gives them, with the id that stands in for one
        whose row is gone."""
        self.lookups: dict[ir.Node, LookUp] = {}
        """What reads rows by them."""
        self.of_values: dict[ir.Value, Sequence[Expr] | None] = {}
        """Axes of graph inputs and computed values as the walk found them; ask ``of``."""
        self.of_uses: dict[tuple[ir.Node, int], ConstantUse] = {}
        """Each use of a constant by its node and slot, in graph order; ask ``at`` for its axes."""
        self.constants: set[ir.Value] = set()
        """Those that visited nodes read."""
        self.tracked: dict[ir.Value, tuple[Entry, ...]] = {}
        """Integers that constants hold or that are computed from shapes; ask ``entries``."""
        self._positions: dict[ir.Value, Expr] = {}
        self._standing: dict[Atom, list[Expr]] | None = None
        self._is_sealed = False

    def seal(self) -> None:
        """Resolve everything once: the walk is over, and no atom will be refined any more."""
        known: dict[int, Any] = {}  # by identity: axes that are carried on are one object
        alive: list[Any] = []

        def resolved(exprs: Sequence[Expr]) -> tuple[Expr, ...]:
            found: tuple[Expr, ...] | None = known.get(id(exprs))
            if found is None:
                known[id(exprs)] = found = tuple([resolved_axis(expr) for expr in exprs])
                alive.append(exprs)
            return found

        def resolved_axis(expr: Expr) -> Expr:
            if len(expr) == 1 and type(expr[0]) is Atom and expr[0].definition is None:
                return expr
            found: Expr | None = known.get(id(expr))
            if found is None:
                known[id(expr)] = found = resolve(expr)
                alive.append(expr)
            return found

        for value, exprs in self.of_values.items():
            if exprs is not None:
                self.of_values[value] = resolved(exprs)
        for use in self.of_uses.values():
            use.exprs = tuple([resolved_axis(expr) for expr in use.exprs])
        self._is_sealed = True

    def of(self, value: ir.Value) -> tuple[Expr, ...]:
        """Return the axes of a computed value or a graph input, resolved to leaves.

        Raises:
            KeyError: the value's rank is unknown or it is a constant (ask ``at``).
        """
        exprs = self.of_values[value]
        if exprs is None:
            raise KeyError(value.name)
        return self._resolved(exprs)

    def at(self, node: ir.Node, slot: int) -> tuple[Expr, ...]:
        """Return the axes of one use: input ``slot`` of ``node``; ``~i`` for output i."""
        exprs = self.raw(node, slot)
        if exprs is None:
            raise KeyError(f"{node.name}[{slot}]")
        return self._resolved(exprs)

    def _resolved(self, exprs: Sequence[Expr]) -> tuple[Expr, ...]:
        return tuple(exprs if self._is_sealed else [resolve(expr) for expr in exprs])

    def knows(self, node: ir.Node, slot: int) -> bool:
        """Tell whether the rank of that input or output is known."""
        return self.raw(node, slot) is not None

    def expr(self, node: ir.Node, port: Port) -> Expr:
        """Return the resolved axis of a port."""
        return self.at(node, port.slot)[port.axis]

    def raw(self, node: ir.Node, slot: int) -> Sequence[Expr] | None:
        """Return the unresolved axes of a use, or None where the rank is unknown."""
        visit = self.visited.get(node) or Visit(node)
        if slot < 0:
            return self.of_values.get(visit.outputs[~slot])
        used = self.of_uses.get((node, slot))
        if used is not None:
            return used.exprs
        value = visit.inputs[slot] if slot < len(visit.inputs) else None
        return None if value is None else self.of_values.get(value)

    def ints(self, value: ir.Value) -> tuple[Size, ...] | None:
        """Return a tracked integer tensor as sizes (a scalar as one), None if not tracked."""
        entries = self.tracked.get(value)
        return None if entries is None else tuple([entry.size for entry in entries])

    def entries(self, value: ir.Value | None) -> tuple[Entry, ...] | None:
        """Return a tracked integer tensor with the axes it was computed from."""
        return None if value is None else self.tracked.get(value)

    def reasons(self, atom: Atom) -> tuple[Reason, ...]:
        """Return why an atom may not be cut; empty when it may."""
        return tuple(atom.reasons)

    def values(self) -> Sequence[ir.Value]:
        """Return every computed value of known rank, in graph order."""
        return [value for value, exprs in self.of_values.items() if exprs is not None]

    def holds_positions(self) -> bool:
        """Tell whether any tensor so far holds positions of an axis."""
        return bool(self._positions)

    def positions(self, value: ir.Value | None) -> Expr | None:
        """Return the axis whose positions an integer tensor holds, None where unknown."""
        return None if value is None else self._positions.get(value)

    def set_positions(self, value: ir.Value, expr: Expr) -> None:
        """Record that a tensor holds positions of an axis."""
        self._positions[value] = expr

    def set_value(self, value: ir.Value, exprs: Sequence[Expr] | None) -> None:
        """Record the axes of a value."""
        self.of_values[value] = exprs

    def set_entries(self, value: ir.Value, entries: tuple[Entry, ...]) -> None:
        """Record a tracked integer tensor."""
        self.tracked[value] = entries

    def constant_axes_with(self, atom: Atom) -> Sequence[Expr]:
        """Return the axes of constants, one per use, that a leaf atom stands in.

        To be asked when the walk is over: what is found first is kept.
        """
        if self._standing is None:
            self._standing = {}
            for use in self.of_uses.values():
                for expr in self._resolved(use.exprs):
                    for leaf in leaves(expr):
                        self._standing.setdefault(leaf, []).append(expr)
        return self._standing.get(atom, ())


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Return the array of an initialiser or a Constant node's output, None otherwise."""
    if value is None:
        return None
    tensor = constant_tensor(value)
    return None if tensor is None else tensor.numpy()


def constant_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the tensor of a constant without reading its data."""
    if (tensor := value.const_value) is not None:
        return tensor
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain:
        return None
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.TENSOR:
            return attribute.as_tensor()
        if attribute.type in _PLAIN:
            return ir.tensor(attribute.value)
    return None


_PLAIN = frozenset(
    {
        ir.AttributeType.INT,
        ir.AttributeType.INTS,
        ir.AttributeType.FLOAT,
        ir.AttributeType.FLOATS,
    }
)

__all__ = ["AxisMap", "ConstantUse", "Entry", "FoldUse", "IndexUse", "constant", "constant_tensor"]
