"""Norms and means restricted to kept units, for the dense twin of an inexact removal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.errors import PreconditionError
from secateur.graph_passes.axes import node_name
from secateur.graph_passes.axes.constants import new_constant

Kept = Mapping[int, NDArray[np.bool_]]
"""Per cut axis of the first input, which of its positions stay."""


def renormalise(graph: ir.Graph, node: ir.Node, kept: Kept) -> None:
    """Replace ``node`` by the same norm over the kept positions only.

    Given   y = LayerNormalization(x, scale, bias)       (RMS, instance norms, ReduceMean too)
    Result  y = (x - m) / sqrt(v + eps) * scale + bias   with m, v over kept positions

    Raises:
        PreconditionError: the op is no norm that this knows.
    """
    if node.op_type == "ReduceMean":
        _scaled_mean(graph, node, kept)
    elif node.op_type in {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}:
        rank = _rank(node)
        first = node.attributes.get_int("axis", -1) % rank
        _norm(graph, node, kept, tuple(range(first, rank)))
    elif node.op_type == "InstanceNormalization":
        _norm(graph, node, kept, tuple(range(2, _rank(node))))
    elif node.op_type in {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}:
        _norm(graph, _without_skip(graph, node), kept, (_rank(node) - 1,))
    else:
        raise PreconditionError(
            f"{node.op_type} over cut units cannot be restricted to the kept ones",
            where=node_name(node),
            next_step="leave this group whole",
        )


class _Builder:
    """Inserts float nodes before one node."""

    def __init__(self, graph: ir.Graph, before: ir.Node) -> None:
        self._graph, self._before = graph, before
        self._count = 0

    def op(self, op_type: str, *inputs: ir.Value, attributes: tuple[ir.Attr, ...] = ()) -> ir.Value:
        """Insert one op and return its output."""
        self._count += 1
        name = f"{node_name(self._before)}.kept{self._count}"
        node = ir.Node("", op_type, inputs, attributes, name=name)
        node.outputs[0].name = name
        self._graph.insert_before(self._before, node)
        return node.outputs[0]

    def mean(self, value: ir.Value, axes: tuple[int, ...]) -> ir.Value:
        """Insert a ReduceMean that keeps the axes; they are an attribute before opset 18."""
        if self._graph.opset_imports.get("", 18) < 18:
            return self.op("ReduceMean", value, attributes=(ir.AttrInt64s("axes", axes),))
        return self.op("ReduceMean", value, self.constant(np.array(axes, np.int64)))

    def constant(self, array: np.ndarray) -> ir.Value:
        """Register a constant."""
        return new_constant(self._graph, f"{node_name(self._before)}.kept", array)


class _Restriction(NamedTuple):
    condition: ir.Value
    zero: ir.Value
    share: ir.Value
    """All positions over kept ones: what turns a mean with zeros into a mean of the kept."""


def _restriction(build: _Builder, node: ir.Node, kept: Kept) -> _Restriction:
    rank, dtype = _rank(node), _dtype(node)
    condition = np.ones((1,) * rank, dtype=bool)
    share = 1.0
    for axis, positions in kept.items():
        shape = [1] * rank
        shape[axis] = positions.size
        condition = condition & positions.reshape(shape)
        share *= positions.size / int(positions.sum())
    return _Restriction(
        build.constant(condition),
        build.constant(np.zeros((), dtype)),
        build.constant(np.asarray(share, dtype)),
    )


def _scaled_mean(graph: ir.Graph, node: ir.Node, kept: Kept) -> None:
    build = _Builder(graph, node)
    values = node.inputs[0]
    assert values is not None
    only = _restriction(build, node, kept)
    node.replace_input_with(0, build.op("Where", only.condition, values, only.zero))
    after = ir.Node("", "Mul", [node.outputs[0], only.share], name=f"{node_name(node)}.kept_mean")
    after.outputs[0].name = f"{node_name(node)}.kept_mean"
    _copy_type(node.outputs[0], after.outputs[0])
    _redirect(graph, node.outputs[0], after)
    graph.insert_after(node, after)


def _norm(graph: ir.Graph, node: ir.Node, kept: Kept, axes: tuple[int, ...]) -> None:
    build = _Builder(graph, node)
    values, scale = node.inputs[0], node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    assert values is not None
    assert scale is not None
    only = _restriction(build, node, kept)

    def mean(value: ir.Value) -> ir.Value:
        inside = build.op("Where", only.condition, value, only.zero)
        return build.op("Mul", build.mean(inside, axes), only.share)

    if node.op_type in {"LayerNormalization", "InstanceNormalization"}:
        values = build.op("Sub", values, mean(values))
    epsilon = build.constant(np.asarray(node.attributes.get_float("epsilon", 1e-5), _dtype(node)))
    variance = mean(build.op("Mul", values, values))
    result = build.op("Div", values, build.op("Sqrt", build.op("Add", variance, epsilon)))
    if node.op_type == "InstanceNormalization":
        shape = build.constant(np.array([-1] + [1] * (_rank(node) - 2), np.int64))
        scale = build.op("Reshape", scale, shape)
        bias = None if bias is None else build.op("Reshape", bias, shape)
    result = build.op("Mul", result, scale)
    if bias is not None:
        result = build.op("Add", result, bias)
    _copy_type(node.outputs[0], result)
    producer = result.producer()
    assert producer is not None
    _redirect(graph, node.outputs[0], producer)
    graph.remove(node, safe=False)


def _without_skip(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """Spell x + skip + bias, and the norm of it, as nodes of their own."""
    build = _Builder(graph, node)
    simplified = node.op_type == "SkipSimplifiedLayerNormalization"
    given = [*node.inputs, *[None] * 5]
    beta, bias = (None, given[3]) if simplified else (given[3], given[4])
    total, skip, scale = given[:3]
    assert total is not None
    assert scale is not None
    for other in (skip, bias):
        if other is not None:
            total = build.op("Add", total, other)
    first = node.inputs[0]
    assert first is not None
    _copy_type(first, total)
    epsilon = ir.AttrFloat32("epsilon", node.attributes.get_float("epsilon", 1e-12))
    inputs = [total, scale] if beta is None else [total, scale, beta]
    kind = "SimplifiedLayerNormalization" if simplified else "LayerNormalization"
    norm = build.op(kind, *inputs, attributes=(epsilon,)).producer()
    maker = total.producer()
    assert norm is not None
    assert maker is not None
    _copy_type(node.outputs[0], norm.outputs[0])
    _redirect(graph, node.outputs[0], norm)
    if len(node.outputs) > 3:
        _redirect(graph, node.outputs[3], maker)
    graph.remove(node, safe=False)
    return norm


def _redirect(graph: ir.Graph, old: ir.Value, maker: ir.Node) -> None:
    """Let every reader of ``old`` but ``maker`` itself read what ``maker`` makes."""
    new = maker.outputs[0]
    for user, slot in old.uses():
        if user is not maker:
            user.replace_input_with(slot, new)
    for i, output in enumerate(graph.outputs):
        if output is old:
            name = old.name
            old.name, new.name = f"{name}.dense", name
            graph.outputs[i] = new


def _copy_type(old: ir.Value, new: ir.Value) -> None:
    new.type, new.shape = old.type, old.shape


def _rank(node: ir.Node) -> int:
    value = node.inputs[0]
    if value is None or value.shape is None:
        raise PreconditionError("the rank of a normalised value is unknown", where=node_name(node))
    return len(value.shape)


def _dtype(node: ir.Node) -> np.dtype[np.generic]:
    value = node.inputs[0]
    if value is None or value.dtype is None:
        raise PreconditionError("the type of a normalised value is unknown", where=node_name(node))
    return value.dtype.numpy()


__all__ = ["Kept", "renormalise"]
