"""What an op rule sees of one node: sizes, constants, attributes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from secateur.graph_passes.axes.axis_map import AxisMap, constant
from secateur.graph_passes.axes.expression import current_sizes
from secateur.graph_passes.axes.sizes import Polynomial, Size
from secateur.graph_passes.axes.visits import Visit

_MADE_UP = re.compile(r"^(unk__\d+|[su]\d+|.*:\d+|\(.*\))$")


class View:
    """One node for the eyes of its rule; output axes are known only by declared shape.

    Of ``node`` itself a rule reads the op, the attributes and how many outputs there are.
    """

    __slots__ = ("_attributes", "_axes", "_inputs", "_shapes", "is_particular", "node", "opset")

    def __init__(
        self,
        visit: Visit,
        axes: AxisMap,
        shapes: Sequence[tuple[Size, ...] | None],
        opset: int,
    ) -> None:
        self.node = visit.node
        self._inputs = visit.inputs
        self._attributes: dict[str, ir.Attr] = visit.node.attributes.data
        self.opset = opset
        self._axes = axes
        self._shapes = shapes
        self.is_particular = False
        """Something was read that nodes of equal attributes and input sizes may differ in."""

    @classmethod
    def of(cls, node: ir.Node, axes: AxisMap, opset: int = 20) -> View:
        """Return the view of a node of an analysed graph."""
        visit = Visit(node)
        exprs = [axes.raw(node, slot) for slot in range(len(visit.inputs))]
        shapes = [None if found is None else current_sizes(found) for found in exprs]
        return cls(visit, axes, shapes, opset)

    def __len__(self) -> int:
        return len(self._inputs)

    def has(self, slot: int) -> bool:
        """Tell whether input ``slot`` is there."""
        return slot < len(self._inputs) and self._inputs[slot] is not None

    def rank(self, slot: int) -> int | None:
        """Return the rank of an input, None where it is unknown or absent."""
        shape = self._shapes[slot] if slot < len(self._shapes) else None
        return None if shape is None else len(shape)

    def shape(self, slot: int) -> tuple[Size, ...] | None:
        """Return the sizes of an input, or the declared ones of output ``~slot``."""
        if slot < 0:
            self.is_particular = True
            return declared_shape(self.node.outputs[~slot])
        return self._shapes[slot] if slot < len(self._shapes) else None

    def constant(self, slot: int) -> np.ndarray | None:
        """Return the array of a constant input, None where it is computed or absent."""
        self.is_particular = True
        return constant(self._inputs[slot]) if self.has(slot) else None

    def ints(self, slot: int) -> tuple[Size, ...] | None:
        """Return an integer input as sizes, whether constant or computed from shapes."""
        value = self._inputs[slot] if slot < len(self._inputs) else None
        return None if value is None else self._axes.ints(value)

    def holds_positions(self, slot: int) -> bool:
        """Tell whether an input holds positions of some axis."""
        self.is_particular = True
        return self.has(slot) and self._axes.positions(self._inputs[slot]) is not None

    def integer(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        attribute = self._attributes.get(name)
        return default if attribute is None else attribute.as_int()

    def attribute_ints(self, name: str) -> Sequence[int] | None:
        """Return a list attribute, None where it is absent."""
        attribute = self._attributes.get(name)
        return None if attribute is None else tuple(attribute.as_ints())

    def string(self, name: str, default: str) -> str:
        """Return a string attribute."""
        attribute = self._attributes.get(name)
        return default if attribute is None else attribute.as_string()

    def same(self, left: Size, right: Size) -> bool:
        """Compare two sizes without merging names."""
        return left == right


def declared_shape(value: ir.Value) -> tuple[Size, ...] | None:
    """Return the shape that stands in the file; unnamed dimensions get a name of their own."""
    shape = value.shape
    if shape is None:
        return None
    sizes: list[Size] = []
    for axis, dim in enumerate(shape.dims):
        if isinstance(dim, int):
            sizes.append(dim)
        else:
            sizes.append(Polynomial.symbol(dimension_name(value, axis, dim)))
    return tuple(sizes)


def dimension_name(value: ir.Value, axis: int, dim: ir.SymbolicDim) -> str:
    """Return the name of a dynamic dimension, one of its own where the file gives none."""
    return dim.value or f"{value.name}:{axis}"


class MadeUpNames:
    """``name in made_up``; the graph is looked through when that is asked for the first time."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._found: set[str] | None = None

    def __contains__(self, name: object) -> bool:
        if self._found is None:
            self._found = made_up_names(self._graph)
        return name in self._found


def made_up_names(graph: ir.Graph) -> set[str]:
    """Dimension names that no graph input declares, or that look like a converter's own."""
    given = {
        dim.value
        for value in graph.inputs
        for dim in (value.shape or ())
        if not isinstance(dim, int) and dim.value and not _MADE_UP.match(dim.value)
    }
    found = set()
    for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
        if value.shape is not None:
            for axis, dim in enumerate(value.shape.dims):
                if not isinstance(dim, int):
                    found.add(dimension_name(value, axis, dim))
    return found - given


__all__ = ["MadeUpNames", "View", "declared_shape", "dimension_name", "made_up_names"]
