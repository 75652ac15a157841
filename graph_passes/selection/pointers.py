"""Tokens read at a position that moves: the end of a text, a class token in the middle.

Such a token is protected at every selection, and the position is counted again: where it stands
among the kept tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from secateur.graph_passes.axes import constant
from secateur.graph_passes.selection.budget import Kept
from secateur.graph_passes.selection.emit import Emitter
from secateur.graph_passes.selection.region import Regions


@dataclass(frozen=True, slots=True)
class Pointer:
    """One read of one token per sample.

    Attributes:
        node: The read, behind a cut: a GatherND on (B, N, ...), or a Gather with one constant
            position, which becomes one.
        position: (B, 1) int64, made before the cuts, or (1, 1) for all samples.
        beside: The batch numbers that stand beside the position in the index; None where
            the GatherND goes sample by sample.
    """

    node: ir.Node
    position: ir.Value
    beside: ir.Value | None


class Pointers:
    """Follows all computed positions of a graph through its cuts."""

    def __init__(self, emit: Emitter, regions: Regions, protected: int = 0) -> None:
        found = [
            _pointer(node, region, regions) or _constant(emit, node, regions, protected)
            for node, region in regions.in_region()
        ]
        self.found = tuple(pointer for pointer in found if pointer is not None)
        self._emit = emit
        self._regions = regions
        self._now = {pointer.position: pointer.position for pointer in self.found}

    @property
    def nodes(self) -> frozenset[ir.Node]:
        """The nodes that read through a pointer."""
        return frozenset(pointer.node for pointer in self.found)

    def __len__(self) -> int:
        """Number of different positions."""
        return len(self._now)

    def protect(self, score: ir.Value, length: ir.Value) -> ir.Value:
        """Put the tokens that are pointed at above all others."""
        if not self._now:
            return score
        emit = self._emit
        zero, one = (emit.constant(np.array(i, dtype=np.int64)) for i in (0, 1))
        places = emit.op("Range", zero, emit.squeeze(length, (0,)), one)
        for position in self._now.values():
            is_there = emit.op("Equal", places, position)
            score = emit.op("Where", is_there, emit.number(np.inf, ir.DataType.FLOAT), score)
        return score

    def follow(self, kept: Kept, region: int) -> None:
        """Count the positions again, and let the reads of the region use them.

        An empty slot points at the last token, so that none counts as standing before. Where
        tokens are merged, the slots stand as those that were chosen.
        """
        emit = self._emit
        kept = kept.chosen or kept
        for origin, position in tuple(self._now.items()):
            if kept.in_order:
                before = emit.op("Cast", emit.op("Less", kept.index, position), to=_INT64)
                self._now[origin] = emit.op("ReduceSum", before, emit.ints(1), keepdims=1)
            else:
                is_there = emit.op("Cast", emit.op("Equal", kept.index, position), to=_INT32)
                self._now[origin] = emit.op("ArgMax", is_there, axis=1, keepdims=1)
        for pointer in self.found:
            if self._regions.of[pointer.node] == region:
                self._read(pointer)

    def _read(self, pointer: Pointer) -> None:
        """Let a node read where its token is now."""
        emit, node, index = self._emit, pointer.node, self._now[pointer.position]
        if pointer.beside is not None:
            index = emit.op("Concat", pointer.beside, index, axis=-1)
        if node.op_type == "GatherND":
            node.replace_input_with(1, index)
            return
        place = constant(node.inputs[1])
        keeps_axis = place is not None and place.ndim == 1
        rows = emit.unsqueeze(index, (2,)) if keeps_axis else index  # (B, 1, D), or (B, D)
        made = emit.op("GatherND", node.inputs[0], rows, batch_dims=1)
        made.type, made.shape = node.outputs[0].type, node.outputs[0].shape
        node.outputs[0].replace_all_uses_with(made)


_INT32, _INT64 = ir.DataType.INT32.value, ir.DataType.INT64.value


def _constant(emit: Emitter, node: ir.Node, regions: Regions, protected: int) -> Pointer | None:
    """One token that stands among the others: what leads them is protected by number."""
    if node.domain or node.op_type != "Gather" or node.outputs[0].is_graph_output():
        return None
    data, values = regions.exprs(node, 0), constant(regions.inputs(node)[1])
    if data is None or values is None or values.size != 1 or len(data) < 2:
        return None
    is_whole = regions.is_tokens(data[1]) and data[0] == regions.batch
    if regions.edge(node, 0) != regions.of[node]:
        return None
    if node.attributes.get_int("axis", 0) % len(data) != 1 or not is_whole:
        return None
    position = int(values.reshape(-1)[0])
    if position <= protected:
        return None
    return Pointer(node, emit.constant(np.array([[position]], dtype=np.int64)), None)


def _pointer(node: ir.Node, region: int, regions: Regions) -> Pointer | None:
    if node.domain or node.op_type != "GatherND":
        return None
    data, index = regions.exprs(node, 0), regions.exprs(node, 1)
    value = regions.inputs(node)[1]
    if data is None or index is None or value is None or len(data) < 2 or len(index) != 2:
        return None
    is_whole = regions.is_tokens(data[1]) and not any(map(regions.bears, data[2:]))
    if not is_whole or data[0] != regions.batch or regions.edge(node, 0) != region:
        return None
    if regions.edge(node, 1) != 0:
        return None
    if node.attributes.get_int("batch_dims", 0) == 1:
        return Pointer(node, value, None)
    return _beside_batch(node, value, regions)


def _beside_batch(node: ir.Node, index: ir.Value, regions: Regions) -> Pointer | None:
    """(B, 2): batch numbers that count up, and positions."""
    joined = index.producer()
    if joined is None or joined.op_type != "Concat" or joined.domain:
        return None
    parts = regions.inputs(joined)
    if len(parts) != 2 or parts[0] is None or parts[1] is None or not _counts_up(parts[0]):
        return None
    return Pointer(node, parts[1], parts[0])


def _counts_up(value: ir.Value) -> bool:
    """Tell whether the value is a Range, reshaped or cast."""
    node = value.producer()
    while node is not None and node.op_type in ("Unsqueeze", "Reshape", "Cast", "Identity"):
        source = node.inputs[0]
        node = None if source is None else source.producer()
    return node is not None and node.op_type == "Range"


__all__ = ["Pointer", "Pointers"]
