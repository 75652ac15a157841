"""Denominators of means over tokens, counted again from the tokens that are left.

``sum(x * mask) / sum(mask)``: the lower sum is made before the cut and carries no token
axis any more, so it would go on counting dropped tokens.
"""

from __future__ import annotations

import onnx_ir as ir

from secateur.graph_passes.selection.emit import Emitter
from secateur.graph_passes.selection.neutral import Fill, Neutral
from secateur.graph_passes.selection.region import Regions
from secateur.graph_passes.selection.versions import Versions, Want

_BETWEEN = frozenset(
    {
        *("Add", "Cast", "Clip", "Expand", "Identity", "Max", "Mul", "Neg", "Reciprocal"),
        *("Reshape", "Squeeze", "Unsqueeze", "Where", "Pow", "Sqrt", "Div", "Sub"),
    }
)
"""What may stand between a sum over tokens and the division."""

_SUMS = frozenset({"ReduceSum", "ReduceL1", "ReduceSumSquare"})


class Recounter:
    """Rewrites the divisions of one region."""

    def __init__(self, emit: Emitter, versions: Versions, regions: Regions) -> None:
        self._emit = emit
        self._versions = versions
        self._regions = regions
        self._made: dict[tuple[ir.Value, int], ir.Value | None] = {}

    def recount(self, node: ir.Node, region: int) -> bool:
        """Count again what a sum over tokens is divided by; True where something changed."""
        if node.domain or node.op_type not in ("Div", "Mul") or len(node.inputs) != 2:
            return False
        for slot in (1, 0) if node.op_type == "Mul" else (1,):
            below, above = self._regions.inputs(node)[slot], self._regions.inputs(node)[1 - slot]
            if below is None or above is None or not self._is_outside(node, slot, region):
                continue
            if not self._is_sum(above, region):
                continue
            again = self._again(below, region)
            if again is not None:
                node.replace_input_with(slot, again)
                return True
        return False

    def _is_outside(self, node: ir.Node, slot: int, region: int) -> bool:
        exprs = self._regions.exprs(node, slot)
        if exprs is None or any(map(self._regions.bears, exprs)):
            return False
        return self._regions.edge(node, slot) < region

    def _is_sum(self, value: ir.Value, region: int) -> bool:
        """Tell whether the value is a sum over the tokens of the region."""
        node = value.producer()
        if node is None or node.domain or self._regions.of.get(node, 0) != region:
            return False
        if node.op_type in _SUMS or node.op_type == "MatMul":
            return self._folds_tokens(node)
        if node.op_type not in _BETWEEN:
            return False
        inputs = self._regions.inputs(node)
        return any(item is not None and self._is_sum(item, region) for item in inputs)

    def _folds_tokens(self, node: ir.Node) -> bool:
        for fold in self._regions.axes.folds:
            if fold.node is not node:
                continue
            for port in fold.ports:
                exprs = self._regions.exprs(node, port.slot) if port.slot >= 0 else None
                if exprs is not None and self._regions.is_tokens(exprs[port.axis]):
                    return True
        return False

    def _again(self, value: ir.Value, region: int) -> ir.Value | None:
        """Return the value summed over the region's tokens; None where no sum is in it."""
        key = (value, region)
        if key not in self._made:
            self._made[key] = self._count(value, region)
        return self._made[key]

    def _count(self, value: ir.Value, region: int) -> ir.Value | None:
        node = value.producer()
        if node is None or node.domain:
            return None
        inputs = self._regions.inputs(node)
        if node.op_type in _SUMS and self._folds_tokens(node):
            return self._emit.copy(node, [self._left(node, region), *inputs[1:]]).outputs[0]
        if node.op_type not in _BETWEEN:
            return None
        again = [None if item is None else self._again(item, region) for item in inputs]
        if not any(item is not None for item in again):
            return None
        merged = [new if new is not None else old for new, old in zip(again, inputs, strict=True)]
        return self._emit.copy(node, merged).outputs[0]

    def _left(self, node: ir.Node, region: int) -> ir.Value:
        """Return the summand without dropped tokens and empty slots."""
        value, exprs = self._regions.inputs(node)[0], self._regions.exprs(node, 0)
        assert value is not None
        assert exprs is not None
        axis = next(i for i, expr in enumerate(exprs) if self._regions.is_tokens(expr))
        fill = Fill.FALSE if value.dtype == ir.DataType.BOOL else Fill.ZERO
        can_be_empty = self._versions.kept[region - 1].valid is not None
        want = Want(
            value=value,
            exprs=exprs,
            rank=len(exprs),
            source=self._regions.edge(node, 0),
            region=region,
            may_broadcast=False,
            neutral=Neutral(fill, axis - len(exprs)) if can_be_empty else None,
            reader=node,
        )
        return self._versions.get(want)


__all__ = ["Recounter"]
