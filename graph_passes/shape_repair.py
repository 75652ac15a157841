"""Shapes behind a cut, spelled again from the axes of the consumer's output.

Old integers would be stale: they count the tokens that were there before. What is
spelled is what the axes say, so that nothing of the old shape arithmetic is needed.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from secateur.graph_passes.axes import Expr, constant, size
from secateur.graph_passes.selection.budget import Kept
from secateur.graph_passes.selection.emit import Emitter
from secateur.graph_passes.selection.flow import reads_shape_only
from secateur.graph_passes.selection.region import Regions, refusal

_COPY, _INFER = 0, -1


class ShapeSpeller:
    """Writes Reshape and Expand targets of one graph, each distinct one once."""

    def __init__(self, emit: Emitter, regions: Regions) -> None:
        self._emit = emit
        self._regions = regions
        self._made: dict[tuple[object, ...], ir.Value] = {}

    def repair(self, node: ir.Node, kept: Kept) -> None:
        """Spell the target of a Reshape or Expand behind a cut; leave other nodes alone.

        Raises:
            PreconditionError: the target cannot be spelled.
        """
        if node.domain or node.op_type not in ("Reshape", "Expand"):
            return
        before, after = self._regions.exprs(node, 0), self._regions.made(node)
        if before is None or after is None:
            raise refusal(self._regions, node, "the axes of its input or output are unknown")
        old = self._regions.inputs(node)[1]
        if constant(old) is not None and not any(map(self._regions.bears, (*before, *after))):
            return
        if node.op_type == "Reshape":
            entries = [self._reshaped(i, expr, before) for i, expr in enumerate(after)]
            node.replace_input_with(1, self._spell(node, entries, kept))
            node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
        else:
            padded = ((),) * (len(after) - len(before)) + before
            entries = [
                1 if old_expr == expr else self._size(expr)
                for old_expr, expr in zip(padded, after, strict=True)
            ]
            node.replace_input_with(1, self._spell(node, entries, kept, can_infer=False))

    def _reshaped(self, i: int, expr: Expr, before: tuple[Expr, ...]) -> int | Expr:
        found = self._size(expr)
        if isinstance(found, int):
            return found
        return _COPY if i < len(before) and before[i] == expr else expr

    def _size(self, expr: Expr) -> int | Expr:
        length = size(expr)
        if isinstance(length, int) and not self._regions.bears(expr):
            return length
        return expr

    def _spell(
        self, node: ir.Node, entries: list[int | Expr], kept: Kept, *, can_infer: bool = True
    ) -> ir.Value:
        """Return the target: constants, at most one -1, and what must be computed."""
        spelled = [entry if isinstance(entry, int) else self._name(entry) for entry in entries]
        if can_infer and "other" in spelled:
            spelled[spelled.index("other")] = _INFER
        elif can_infer and any(isinstance(item, str) for item in spelled):
            spelled[next(i for i, s in enumerate(spelled) if isinstance(s, str))] = _INFER
        if "other" in spelled:
            raise refusal(self._regions, node, "its shape mixes tokens with other axes")
        key = (kept.length, *spelled)
        if key not in self._made:
            self._made[key] = self._concatenated(spelled, kept)
        return self._made[key]

    def _name(self, expr: Expr) -> str:
        if self._regions.is_tokens(expr):
            return "tokens"
        return "batch" if expr == self._regions.batch else "other"

    def _concatenated(self, spelled: list[int | str], kept: Kept) -> ir.Value:
        if all(isinstance(item, int) for item in spelled):
            return self._emit.ints(*(item for item in spelled if isinstance(item, int)))
        parts: list[ir.Value] = []
        for item in spelled:
            if item == "tokens":
                parts.append(kept.length)
            elif item == "batch":
                parts.append(self._emit.op("Shape", kept.index, start=0, end=1))
            else:
                parts.append(self._emit.ints(int(item)))
        return self._emit.op("Concat", *parts, axis=0)


def restore_shapes(emit: Emitter, regions: Regions) -> None:
    """Let shapes read behind a cut count the tokens that were there before it.

    Positions, rotary tables and biases made from such a shape then keep the original
    positions and cross the cut as values. Shapes that the region itself needs are
    spelled by ``ShapeSpeller``.
    """
    for node in regions.order:
        if not reads_shape_only(node) or node.op_type != "Shape":
            continue
        exprs = regions.exprs(node, 0)
        value = regions.inputs(node)[0]
        producer = None if value is None else value.producer()
        is_behind = producer is not None and regions.of.get(producer, 0) > 0
        if exprs is not None and is_behind and any(map(regions.bears, exprs)):
            _restore_shape(node, exprs, emit, regions)


def _restore_shape(node: ir.Node, exprs: tuple[Expr, ...], emit: Emitter, regions: Regions) -> None:
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", len(exprs))
    parts: list[ir.Value] = []
    for axis in range(len(exprs))[start:end]:
        expr = exprs[axis]
        if regions.is_tokens(expr):
            parts.append(tokens_before(emit, regions))
        elif regions.bears(expr):
            reason = "it reads the size of an axis that is made of tokens and more"
            raise refusal(regions, node, reason)
        else:
            length = size(expr)
            value = node.inputs[0]
            if isinstance(length, int):
                parts.append(emit.ints(length))
            else:
                parts.append(emit.op("Shape", value, start=axis, end=axis + 1))
    made = parts[0] if len(parts) == 1 else emit.op("Concat", *parts, axis=0)
    output = node.outputs[0]
    output.replace_all_uses_with(made)


def tokens_before(emit: Emitter, regions: Regions) -> ir.Value:
    """Return (1,) int64, the number of tokens before the first cut."""
    length = size(regions.tokens)
    if isinstance(length, int):
        return emit.constant(np.array([length], dtype=np.int64))
    return emit.op("Shape", regions.cuts[0].value, start=1, end=2)


__all__ = ["ShapeSpeller", "restore_shapes", "tokens_before"]
