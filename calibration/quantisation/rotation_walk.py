"""How every node that meets the residual stream bears a turned one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.errors import PreconditionError
from secateur.graph_passes.axes import Atom, Expr, leaves
from secateur.graph_passes.axes.axis_map import constant_tensor
from secateur.graph_passes.axes.constants import new_constant
from secateur.graph_passes.groups import Analysis
from secateur.graph_passes.names import name_copies

Array = NDArray[np.float64]
Axes = Mapping[int, int]
"""Axis of the stream by input slot."""

_PASSING = frozenset(
    {
        *("Identity", "Cast", "Dropout", "Reshape", "Flatten", "Transpose", "Squeeze"),
        *("Unsqueeze", "Slice", "Expand", "Split", "Gather", "GatherND", "GatherElements"),
    }
)
_NORMS = frozenset({"RMSNormalization", "SimplifiedLayerNormalization"})
_REDUCTIONS = frozenset({"ReduceMean", "ReduceSum"})
_LENGTHS = frozenset({"ReduceL2", "ReduceSumSquare"})
_INTEGERS = frozenset({"Shape", "Size"})


class Stream:
    """One residual stream on its way through a graph, in graph order."""

    def __init__(self, analysis: Analysis, atom: Atom, turn: Array) -> None:
        self._analysis, self._atom, self._turn = analysis, atom, turn
        self._scales: dict[ir.Value, Array] = {}
        """What a value was multiplied with by channel, still to be taken over by its readers."""
        self._squares: set[ir.Value] = set()
        rules: dict[str, Callable[[ir.Node, Axes, Axes], None]] = {
            **dict.fromkeys(("MatMul", "Gemm", "Conv"), self._product),
            **dict.fromkeys(("Add", "Sub", "Concat"), self._sum),
            **dict.fromkeys(("Mul", "Div"), self._scale),
            **dict.fromkeys(_NORMS, self._norm),
            **dict.fromkeys(_REDUCTIONS | _LENGTHS, self._reduction),
            **dict.fromkeys(_PASSING, self._pass),
            "Pow": self._power,
        }
        self._rules = rules

    def visit(self, node: ir.Node) -> None:
        """Turn what the node reads from the file, or refuse it by name."""
        computed, stored = self._axes(node)
        if not (computed or stored) or node.op_type in _INTEGERS:
            return
        squares = any(node.inputs[slot] in self._squares for slot in computed)
        if squares and node.op_type not in _REDUCTIONS:
            raise _refusal(node, "squares of channels are only summed")
        rule = None if node.domain not in {"", "com.microsoft"} else self._rules.get(node.op_type)
        if rule is None:
            raise _refusal(node, _WHY.get(node.op_type, "it looks at single channels"))
        rule(node, computed, stored)

    def check_outputs(self) -> None:
        """Refuse a graph that gives the stream away."""
        for value in self._analysis.model.graph.outputs:
            if self._axis(self._analysis.axes.of(value), value.producer()) is not None:
                raise PreconditionError(
                    "the stream cannot be rotated: an output of the model shows it",
                    where=str(value.name),
                )

    def _axes(self, node: ir.Node) -> tuple[Axes, Axes]:
        computed: dict[int, int] = {}
        stored: dict[int, int] = {}
        for slot, value in enumerate(node.inputs):
            if value is None or not self._analysis.axes.knows(node, slot):
                continue
            axis = self._axis(self._analysis.axes.at(node, slot), node)
            if axis is not None:
                (stored if constant_tensor(value) is not None else computed)[slot] = axis
        return computed, stored

    def _axis(self, exprs: Sequence[Expr], node: ir.Node | None) -> int | None:
        found = [axis for axis, expr in enumerate(exprs) if self._atom in leaves(expr)]
        if not found:
            return None
        if any(exprs[axis] != (self._atom,) for axis in found):
            raise _refusal(node, "the stream is one part of a longer axis")
        return found[0]

    def _turned(self, node: ir.Node, slot: int, scale: Array | None = None) -> None:
        """Turn every axis of a stored tensor that is the stream's; the first one is scaled."""
        value = node.inputs[slot]
        tensor = None if value is None else constant_tensor(value)
        assert tensor is not None
        array = np.asarray(tensor.numpy(), dtype=np.float64)
        for axis, expr in enumerate(self._analysis.axes.at(node, slot)):
            if self._atom not in leaves(expr):
                continue
            along = np.moveaxis(array, axis, -1)
            if scale is not None and axis == _summed(node, slot, array.ndim):
                along = along * scale
            array = np.moveaxis(along @ self._turn, -1, axis)
        _write(self._analysis.model, node, slot, array)

    def _product(self, node: ir.Node, computed: Axes, stored: Axes) -> None:
        carries = self._carries(node)
        reads = [slot for slot in stored if self._is_summed(node, slot)]
        if len(computed) > 1 or (computed and not reads and not carries):
            raise _refusal(node, "it multiplies two computed values along the stream")
        if carries and len(node.inputs) > 2 and node.inputs[2] is not None and 2 not in stored:
            raise _refusal(node, "its bias is the same for every channel")
        scale = self._take_scale(node, computed)
        for slot in stored:
            self._turned(node, slot, scale)
        if not reads:
            self._hand_on(node, scale)

    def _is_summed(self, node: ir.Node, slot: int) -> bool:
        exprs = self._analysis.axes.at(node, slot)
        axis = _summed(node, slot, len(exprs))
        return axis is not None and self._atom in leaves(exprs[axis])

    def _sum(self, node: ir.Node, computed: Axes, stored: Axes) -> None:
        self._without_scale(node, computed)
        if len(computed) + len(stored) < len(node.inputs):
            raise _refusal(node, "what it adds is the same for every channel")
        for slot in stored:
            self._turned(node, slot)

    def _scale(self, node: ir.Node, computed: Axes, stored: Axes) -> None:
        if len(computed) == 2 and node.inputs[0] is node.inputs[1] and node.op_type == "Mul":
            self._without_scale(node, computed)
            self._squares.update(node.outputs)
            return
        if len(computed) != 1 or (node.op_type == "Div" and 0 not in computed):
            raise _refusal(node, "it multiplies or divides channel by channel")
        scale = self._take_scale(node, computed)
        for slot in stored:
            factor = self._ones(node, slot)
            factor = 1 / factor if node.op_type == "Div" else factor
            scale = factor if scale is None else scale * factor
        self._hand_on(node, scale)

    def _norm(self, node: ir.Node, computed: Axes, stored: Axes) -> None:
        self._without_scale(node, computed)
        rank = len(self._analysis.axes.at(node, 0))
        if node.attributes.get_int("axis", -1) % rank != rank - 1 or set(stored) - {1}:
            raise _refusal(node, "the norm is not over the stream alone")
        self._hand_on(node, self._ones(node, 1) if 1 in stored else None)

    def _power(self, node: ir.Node, computed: Axes, _stored: Axes) -> None:
        exponent = node.inputs[1]
        tensor = None if exponent is None else constant_tensor(exponent)
        if tensor is None or tensor.size != 1 or float(tensor.numpy().reshape(-1)[0]) != 2:
            raise _refusal(node, "it is no square")
        self._without_scale(node, computed)
        self._squares.update(node.outputs)

    def _reduction(self, node: ir.Node, computed: Axes, _stored: Axes) -> None:
        value = node.inputs[0]
        assert value is not None
        if self._carries(node):
            if value in self._squares or node.op_type in _LENGTHS:
                raise _refusal(node, "it sums squares over other axes")
            self._hand_on(node, self._take_scale(node, computed))
            return
        self._without_scale(node, computed)
        if node.op_type in _REDUCTIONS and value not in self._squares:
            raise _refusal(node, "a rotation does not keep the mean of the channels")

    def _pass(self, node: ir.Node, computed: Axes, stored: Axes) -> None:
        for slot in stored:
            self._turned(node, slot)
        self._hand_on(node, self._take_scale(node, computed))

    def _carries(self, node: ir.Node) -> bool:
        return any(
            self._axis(self._analysis.axes.of(value), node) is not None for value in node.outputs
        )

    def _take_scale(self, node: ir.Node, computed: Axes) -> Array | None:
        found = [self._scales.get(_input(node, slot)) for slot in computed]
        return found[0] if found else None

    def _without_scale(self, node: ir.Node, computed: Axes) -> None:
        if any(_input(node, slot) in self._scales for slot in computed):
            raise _refusal(node, "it reads a norm's output, whose scales only products take over")

    def _hand_on(self, node: ir.Node, scale: Array | None) -> None:
        if scale is not None:
            self._scales |= dict.fromkeys(node.outputs, scale)

    def _ones(self, node: ir.Node, slot: int) -> Array:
        """Replace the scales that a node reads by ones; return them, (D,)."""
        tensor = constant_tensor(_input(node, slot))
        assert tensor is not None
        array = np.asarray(tensor.numpy(), dtype=np.float64)
        if array.size != len(self._turn):
            raise _refusal(node, "its scales are not one a channel")
        _write(self._analysis.model, node, slot, np.ones(array.shape))
        flat: Array = array.reshape(-1)
        return flat


_WHY = {
    "LayerNormalization": "it takes the mean of the channels, which a rotation does not keep",
    "SkipLayerNormalization": "it takes the mean of the channels, which a rotation does not keep",
    "BatchNormalization": "it normalises every channel by itself",
}


def _refusal(node: ir.Node | None, why: str) -> PreconditionError:
    return PreconditionError(
        f"the stream cannot be rotated: {why}",
        where="" if node is None else f"{node.op_type} {node.name}",
        wanted="a pre-norm model with RMSNorm, whose stream is only added to and read by products",
        next_step="quantise without rotate",
    )


def _input(node: ir.Node, slot: int) -> ir.Value:
    value = node.inputs[slot]
    assert value is not None
    return value


def _summed(node: ir.Node, slot: int, rank: int) -> int | None:
    """Axis of a stored factor that a product sums over."""
    if node.op_type == "Conv":
        return 1 if slot == 1 else None
    if node.op_type == "Gemm":
        turned = node.attributes.get_int("transB" if slot == 1 else "transA", 0)
        return {0: 0 if turned else 1, 1: 1 if turned else 0}.get(slot)
    if node.op_type == "MatMul":
        return rank - 1 if slot == 0 else max(rank - 2, 0)
    return None


def _write(model: ir.Model, node: ir.Node, slot: int, array: Array) -> None:
    """Give one reader of a stored tensor new values; other readers keep the old ones."""
    value = _input(node, slot)
    old = constant_tensor(value)
    assert old is not None
    fresh = np.ascontiguousarray(array.astype(old.dtype.numpy()))
    if len(value.uses()) == 1 and value.is_initializer() and not value.is_graph_output():
        value.const_value = ir.Tensor(fresh, dtype=old.dtype, name=value.name)
        return
    copy = new_constant(model.graph, f"{value.name}.rotated", fresh)
    name_copies(model, {copy.name or "": value.name or ""})
    node.replace_input_with(slot, copy)


__all__ = ["Stream"]
