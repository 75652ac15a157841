"""Add nodes to a graph under a prefix, with shared constants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

Attribute = int | float | str | Sequence[int] | ir.TensorProtocol
Operand = ir.Value | None


class Emitter:
    """Appends nodes to one graph; whoever uses it sorts the graph when done.

    Constants become initialisers, each stored once however often it is asked for.
    """

    def __init__(self, graph: ir.Graph, *, reserved: str = "secateur") -> None:
        self.graph = graph
        self._reserved = reserved
        self.prefix = "selection"
        self.emitted: list[ir.Node] = []
        self._numbers: dict[str, int] = {}
        self._taken = _names(graph)
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def op(self, op_type: str, *inputs: Operand, **attributes: Attribute) -> ir.Value:
        """Append a node with one output and return that output."""
        return self.node(op_type, inputs, attributes, outputs=1)[0]

    def node(
        self,
        op_type: str,
        inputs: Sequence[Operand],
        attributes: dict[str, Attribute],
        *,
        outputs: int,
    ) -> tuple[ir.Value, ...]:
        """Append a node and return its outputs."""
        name = self._fresh(f"{self.prefix}/{op_type}")
        made = ir.node(op_type, inputs, attributes, num_outputs=outputs, name=name)
        self._append(made)
        return tuple(made.outputs)

    def copy(self, node: ir.Node, inputs: Sequence[Operand]) -> ir.Node:
        """Append a node like ``node`` that reads ``inputs``."""
        made = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=self._fresh(f"{self.prefix}/{node.op_type}"),
        )
        for mine, theirs in zip(made.outputs, node.outputs, strict=True):
            mine.type = theirs.type
        self._append(made)
        return made

    def _append(self, node: ir.Node) -> None:
        for i, output in enumerate(node.outputs):
            output.name = f"{node.name}:{i}" if i else node.name
        self.graph.append(node)
        self.emitted.append(node)

    def _fresh(self, stem: str) -> str:
        while True:
            number = self._numbers.get(stem, -1) + 1
            self._numbers[stem] = number
            name = f"{stem}_{number}" if number else stem
            if name not in self._taken:
                return name

    def constant(self, array: np.ndarray) -> ir.Value:
        """Return the initialiser that holds ``array``."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            value = ir.Value(
                name=self._fresh(f"{self._reserved}/constant_{array.dtype.name}"),
                const_value=ir.tensor(array),
                shape=ir.Shape(array.shape),
                type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            )
            self.graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def ints(self, *values: int) -> ir.Value:
        """Return a 1-D int64 constant."""
        return self.constant(np.array(values, dtype=np.int64))

    def number(self, value: float, dtype: ir.DataType) -> ir.Value:
        """Return a scalar constant of the given type."""
        return self.constant(np.array(value, dtype=dtype.numpy()))

    def unsqueeze(self, value: ir.Value, axes: Sequence[int]) -> ir.Value:
        """Insert axes of size 1 at positions of the result; nothing for none."""
        return self.op("Unsqueeze", value, self.ints(*axes)) if axes else value

    def squeeze(self, value: ir.Value, axes: Sequence[int]) -> ir.Value:
        """Drop axes of size 1; nothing for none, and what was there where they were inserted."""
        node = value.producer()
        if axes and node is not None and node.op_type == "Unsqueeze" and not node.domain:
            source, inserted = node.inputs[0], node.inputs[1]
            known = None if inserted is None else inserted.const_value
            if source is not None and known is not None and known.numpy().tolist() == [*axes]:
                return source
        return self.op("Squeeze", value, self.ints(*axes)) if axes else value

    def transpose(self, value: ir.Value, perm: Sequence[int]) -> ir.Value:
        """Permute axes; nothing where they stand right already."""
        if list(perm) == list(range(len(perm))):
            return value
        return self.op("Transpose", value, perm=list(perm))

    def apart(self, value: ir.Value, heads: int, rank: int) -> ir.Value:
        """(B * H, ...) of the given rank -> (B, H, ...)."""
        target = self.ints(-1, heads, *[0] * (rank - 1))  # a 0 copies the size at its own place
        return self.op("Reshape", self.unsqueeze(value, (1,)), target)

    def joined(self, value: ir.Value) -> ir.Value:
        """(B, H, ...) -> (B * H, ...)."""
        rest = self.op("Shape", value, start=2)
        return self.op("Reshape", value, self.op("Concat", self.ints(-1), rest, axis=0))


def _names(graph: ir.Graph) -> frozenset[str]:
    """Return every name of a node or a value that the graph has already."""
    nodes = [node.name for node in graph]
    made = [value.name for node in graph for value in node.outputs]
    given = [value.name for value in (*graph.inputs, *graph.initializers.values())]
    return frozenset(str(name) for name in (*nodes, *made, *given) if name)


def named(value: ir.Value, name: str) -> ir.Value:
    """Give a value a name that others look it up by."""
    value.name = name
    return value


__all__ = ["Attribute", "Emitter", "Operand", "named"]
