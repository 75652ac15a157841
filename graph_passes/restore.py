"""Put per-token outputs back to their original positions.

A model that labels tokens, or returns its last hidden states, goes on returning one row
per input token: kept tokens get their row, dropped ones zeros, or the hidden state with
which they left (for outputs that are hidden states themselves).
"""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

from secateur.errors import PreconditionError
from secateur.graph_passes.axes import Expr, show, size
from secateur.graph_passes.selection.budget import Kept
from secateur.graph_passes.selection.emit import Emitter
from secateur.graph_passes.selection.region import Regions
from secateur.graph_passes.selection.versions import Versions
from secateur.graph_passes.shape_repair import tokens_before

Dropped = Literal["zero", "exit", "leave"]
"""What the row of a dropped token holds; ``leave`` returns kept rows only, (B, K, ...)."""


class Restorer:
    """Restores the outputs of one graph; positions are computed once per region."""

    def __init__(
        self,
        emit: Emitter,
        versions: Versions,
        regions: Regions,
        left_with: tuple[ir.Value, ...] = (),
    ) -> None:
        self.emit = emit
        self.regions = regions
        self._versions = versions
        self._left_with = left_with or tuple(cut.value for cut in regions.cuts)
        self._places: dict[int, ir.Value] = {}
        self._originals: dict[int, ir.Value] = {}

    def kept(self, region: int) -> Kept:
        """Return the selection that opens a region."""
        return self._versions.kept[region - 1]

    def reaches(self, value: ir.Value) -> tuple[int, ir.Value]:
        """Return the region in which a graph output leaves, and what holds its rows there.

        The value that a cut reads leaves behind it: a model may end where the cut is.
        """
        for number, cut in enumerate(self.regions.cuts, start=1):
            if cut.value is value:
                return number, self._versions.opening[number - 1]
        producer = value.producer()
        return (0 if producer is None else self.regions.of.get(producer, 0)), value

    def original_positions(self, region: int) -> ir.Value:
        """Return (B, K) int64: where each kept token stood before the first cut."""
        if region not in self._originals:
            kept = self.kept(region)
            self._originals[region] = (
                kept.index
                if region == 1
                else self._versions.gather(self.original_positions(region - 1), region)
            )
        return self._originals[region]

    def chosen_positions(self, region: int) -> tuple[ir.Value, ir.Value | None]:
        """Return (B, K) int64 and (B, K) bool or None: what was chosen, before any merging."""
        kept = self.kept(region)
        if kept.chosen is None:
            return self.original_positions(region), kept.valid
        index, valid = kept.chosen.index, kept.chosen.valid
        if region > 1:
            before = self.original_positions(region - 1)
            rows = self.emit.unsqueeze(index, (2,))
            index = self.emit.op("GatherND", before, rows, batch_dims=1)
        return index, valid

    def restore(
        self, value: ir.Value, region: int, dropped: Dropped, *, rows: ir.Value | None = None
    ) -> ir.Value:
        """(B, K, ...) of a region -> (B, N, ...); tokens on another axis stay there.

        ``rows`` are put back instead of the value, where it is what a cut is made of.

        Raises:
            PreconditionError: the tokens are no axis of their own, or "exit" is asked for a
                value that is not what tokens leave with.
        """
        exprs = self.regions.axes.of(value)
        self._check(value, exprs, dropped)
        axis = next(k for k, expr in enumerate(exprs) if self.regions.bears(expr))
        order = [0, axis, *(k for k in range(1, len(exprs)) if k != axis)]
        given = self.emit.transpose(value if rows is None else rows, order)
        rows = self._restored(given, exprs, region, dropped)
        return self.emit.transpose(rows, [order.index(k) for k in range(len(order))])

    def _restored(
        self, value: ir.Value, exprs: tuple[Expr, ...], region: int, dropped: Dropped
    ) -> ir.Value:
        """(B, K, ...) -> (B, N, ...)."""
        places = self._place(region)
        ahead = self.emit.op("Pad", value, self._pads(len(exprs)))
        indices = self.emit.unsqueeze(places, (2,))
        rows = self.emit.op("GatherND", ahead, indices, batch_dims=1)
        if dropped != "exit":
            return rows
        was_kept = self.emit.unsqueeze(
            self.emit.op("Greater", places, self.emit.ints(0)), range(2, len(exprs))
        )
        left_with = self._left_with[region - 1]
        if region > 1:
            left_with = self.restore(left_with, region - 1, "exit")
        return self.emit.op("Where", was_kept, rows, left_with)

    def _place(self, region: int) -> ir.Value:
        """Return (B, N) int64: 1 + slot of each original token, 0 for a dropped one."""
        if region in self._places:
            return self._places[region]
        emit, kept = self.emit, self.kept(region)
        positions = self.original_positions(region)
        total = tokens_before(emit, self.regions)
        if kept.valid is not None:  # empty slots write to a column of their own
            positions = emit.op("Where", kept.valid, positions, total)
        one = emit.ints(1)
        # 1 .. K, (K,) broadcast to (B, K)
        slots = emit.op("CumSum", emit.op("Expand", one, kept.length), emit.ints(0))
        updates = emit.op("Expand", slots, emit.op("Shape", positions))
        batch = emit.op("Shape", positions, start=0, end=1)
        width = emit.op("Concat", batch, emit.op("Add", total, one), axis=0)
        blank = emit.op("Expand", emit.ints(0), width)
        placed = emit.op("ScatterElements", blank, positions, updates, axis=1)
        cut = emit.op("Slice", placed, emit.ints(0), total, one)
        self._places[region] = cut
        return cut

    def _pads(self, rank: int) -> ir.Value:
        """One row of zeros ahead of the tokens."""
        return self.emit.ints(*(1 if axis == 1 else 0 for axis in range(2 * rank)))

    def _check(self, value: ir.Value, exprs: tuple[Expr, ...], dropped: Dropped) -> None:
        tokens = [axis for axis, expr in enumerate(exprs) if self.regions.bears(expr)]
        is_plain = len(tokens) == 1 and self.regions.is_tokens(exprs[tokens[0]])
        if not is_plain or exprs[0] != self.regions.batch:
            raise PreconditionError(
                f"the output {value.name!r} cannot be put back to the original positions",
                got=" x ".join(show(expr) for expr in exprs),
                wanted="(B, N, ...), or the tokens as another axis",
                next_step="drop this output, or return kept rows only (outputs='leave')",
            )
        if dropped != "exit":
            return
        for left in self._left_with:
            theirs = self.regions.axes.of(left)
            if tokens != [1] or list(map(size, theirs)) != list(map(size, exprs)):
                raise PreconditionError(
                    f"the value {value.name!r} is not a hidden state, or what tokens leave with",
                    where=f"tokens that leave with {left.name!r}",
                    got=" x ".join(str(size(expr)) for expr in exprs),
                    wanted=" x ".join(str(size(expr)) for expr in theirs),
                    next_step="fill dropped tokens with zeros (outputs='zero')",
                )


__all__ = ["Dropped", "Restorer"]
