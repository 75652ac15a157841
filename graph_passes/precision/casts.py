"""Carry out decisions: constants in their new type, and a cast wherever two types meet."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from secateur.graph_passes.axes.axis_map import constant_tensor
from secateur.graph_passes.names import name_copies
from secateur.graph_passes.precision.decisions import Decisions
from secateur.graph_passes.precision.rules import (
    ALWAYS_FLOAT32_SLOTS,
    HOLDS,
    is_float,
    lowered_slots,
)


class Rewriter:
    """Writes the types of a model, in place, for one half-precision type."""

    def __init__(self, model: ir.Model, decisions: Decisions, dtype: ir.DataType) -> None:
        self.graph = model.graph
        self.model = model
        self.decisions = decisions
        self.dtype = dtype
        self.suffix = dtype.name.lower()
        self.copies: dict[str, str] = {}
        self._taken = {str(v.name) for v in (*self.graph.inputs, *self.graph.initializers.values())}
        self._taken |= {str(v.name) for node in self.graph for v in node.outputs}
        self._halves: dict[ir.Value, ir.Value] = {}
        self._wholes: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        """Type every lowered node, then every edge between the two types."""
        nodes = [node for node in self.graph if self.decisions.is_half(node)]
        floats = {node: [v for v in node.outputs if is_float(v)] for node in nodes}
        readers = {node: lowered_slots(node) for node in nodes}
        for node in nodes:
            for slot in readers[node]:
                self._read_half(node, slot)
        for node in nodes:
            write_type(node, self.dtype)
            for value in floats[node]:
                self._write_half(value)
        name_copies(self.model, self.copies)

    def _read_half(self, node: ir.Node, slot: int) -> None:
        value = node.inputs[slot]
        assert value is not None
        if self.decisions.is_half(value.producer()):
            return  # it is half where it is made
        if _is_constant(value):
            node.replace_input_with(slot, self._constant(value))
            return
        if value not in self._halves:
            self._halves[value] = self._lowered(value)
        node.replace_input_with(slot, self._halves[value])

    def _constant(self, value: ir.Value) -> ir.Value:
        """The constant in half precision: itself where no reader needs float32."""
        if value.dtype == self.dtype:
            return value
        if value not in self._halves:
            tensor = converted(value, self.dtype)
            alone = all(
                self.decisions.is_half(user) and slot in lowered_slots(user)
                for user, slot in value.uses()
            )
            if alone and not value.is_graph_output():
                value.const_value, value.type = tensor, ir.TensorType(self.dtype)
                return value
            name = self._fresh(f"{value.name}.{self.suffix}")
            tensor.name = name
            fresh = ir.Value(
                name=name, shape=value.shape, type=ir.TensorType(self.dtype), const_value=tensor
            )
            self.graph.register_initializer(fresh)
            self.copies[name] = str(value.name)
            self._halves[value] = fresh
        return self._halves[value]

    def _lowered(self, value: ir.Value) -> ir.Value:
        """A cast behind a float32 value; a mask is cut to what the type holds first."""
        if value in self.decisions.large:
            value = self._cut(value)
        return self._cast(value, self.dtype, f"{value.name}.{self.suffix}")

    def _cut(self, value: ir.Value) -> ir.Value:
        most = HOLDS[self.dtype].largest / 2
        ends = [self._number(sign * most) for sign in (-1.0, 1.0)]
        name = self._fresh(f"{value.name}.cut")
        node = ir.node("Clip", [value, *ends], name=f"cut:{name}".replace("/", "."))
        return self._place(node, value, ir.DataType.FLOAT, name)

    def _write_half(self, value: ir.Value) -> None:
        """The value is half now; readers in float32 and the graph's outputs get it cast back."""
        uses = [use for use in value.uses() if not self._reads_half(*use)]
        value.type = ir.TensorType(self.dtype)
        is_output = value in self.graph.outputs
        if not uses and not is_output:
            return
        name = str(value.name)
        if is_output:  # its name is the caller's
            value.name = self._fresh(f"{name}.{self.suffix}")
            self._taken.discard(name)
        whole = self._cast(value, ir.DataType.FLOAT, name if is_output else f"{name}.float32")
        for user, slot in uses:
            user.replace_input_with(slot, whole)
        for i, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[i] = whole

    def _reads_half(self, user: ir.Node, slot: int) -> bool:
        return self.decisions.is_half(user) and slot not in ALWAYS_FLOAT32_SLOTS.get(
            user.op_type, ()
        )

    def _cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        fresh = self._fresh(name)
        node = ir.node("Cast", [value], {"to": dtype.value}, name=f"cast:{fresh}".replace("/", "."))
        return self._place(node, value, dtype, fresh)

    def _place(self, node: ir.Node, source: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        """Put a node right behind the value that it reads, as part of the same module."""
        made = node.outputs[0]
        made.name, made.shape, made.type = name, source.shape, ir.TensorType(dtype)
        producer = source.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            node.metadata_props.update(producer.metadata_props)
            self.graph.insert_after(producer, node)
        return made

    def _number(self, number: float) -> ir.Value:
        name = self._fresh(f"secateur/precision/{number:g}")
        tensor = ir.Tensor(np.array(number, np.float32), name=name)
        value = ir.Value(
            name=name, shape=ir.Shape([]), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def _fresh(self, stem: str) -> str:
        name, number = stem, 0
        while name in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        return name


def converted(value: ir.Value, dtype: ir.DataType) -> ir.LazyTensor:
    """The tensor of a constant in another type, converted when it is read."""
    tensor = constant_tensor(value)
    assert tensor is not None
    return ir.LazyTensor(
        lambda: ir.Tensor(tensor.numpy().astype(dtype.numpy()), dtype=dtype),
        dtype=dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=value.name,
    )


def write_type(node: ir.Node, dtype: ir.DataType) -> None:
    """Let a node whose result type is an attribute make ``dtype``."""
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", dtype.value)
    if node.op_type == "ConstantOfShape":
        given = node.attributes.get("value")
        fill = np.zeros(1) if given is None else given.as_tensor().numpy()
        tensor = ir.Tensor(fill.astype(dtype.numpy()), dtype=dtype)
        node.attributes["value"] = ir.AttrTensor("value", tensor)


def _is_constant(value: ir.Value) -> bool:
    """An initialiser that no caller can replace."""
    return value.is_initializer() and not value.is_graph_input()


__all__ = ["Rewriter", "converted", "write_type"]
