"""Tokens that a model reads at a computed position: the end of a text, a mask token.

Such a token is protected at every selection, and the position is counted again: how many
kept tokens stand before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from secateur.graph_passes.selection.budget import Kept
from secateur.graph_passes.selection.emit import Emitter
from secateur.graph_passes.selection.region import Regions


@dataclass(frozen=True, slots=True)
class Pointer:
    """One read of one token per sample: ``node`` is a GatherND on (B, N, ...).

    Attributes:
        node: The read, behind a cut.
        position: (B, 1) int64, made before the cuts.
        beside: The batch numbers that stand beside the position in the index; None where
            the GatherND goes sample by sample.
    """

    node: ir.Node
    position: ir.Value
    beside: ir.Value | None


class Pointers:
    """Follows all computed positions of a graph through its cuts."""

    def __init__(self, emit: Emitter, regions: Regions) -> None:
        self.found = tuple(
            pointer
            for node, region in regions.in_region()
            if (pointer := _pointer(node, region, regions)) is not None
        )
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

        An empty slot points at the last token, so that none counts as standing before.
        """
        emit = self._emit
        for origin, position in tuple(self._now.items()):
            before = emit.op("Cast", emit.op("Less", kept.index, position), to=_INT64)
            self._now[origin] = emit.op("ReduceSum", before, emit.ints(1), keepdims=1)
        for pointer in self.found:
            if self._regions.of[pointer.node] != region:
                continue
            index = self._now[pointer.position]
            if pointer.beside is not None:
                index = emit.op("Concat", pointer.beside, index, axis=-1)
            pointer.node.replace_input_with(1, index)


_INT64 = ir.DataType.INT64.value


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
