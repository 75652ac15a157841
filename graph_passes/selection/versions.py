"""What a value is behind a cut: gathered along every token axis, masked where asked.

A value is gathered as near to its source as possible: a mask that is broadcast to
(B, 1, N, N) costs N times as much to gather as the (B, 1, 1, N) it was made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from secateur.graph_passes.attention_steps import axes_of
from secateur.graph_passes.axes import UNIT, Expr, size
from secateur.graph_passes.selection.budget import Kept
from secateur.graph_passes.selection.emit import Emitter
from secateur.graph_passes.selection.neutral import Fill, Neutral, transfers
from secateur.graph_passes.selection.region import Regions, refusal

_RANK_ALIGNED = frozenset(
    {
        *("Cast", "Not", "Identity", "Neg", "Abs", "Exp", "Sqrt", "Expand", "Where"),
        *("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Min", "Max"),
        *("Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
    }
)
"""Ops whose operands line up from the right, so that gathering before them is the same."""


@dataclass(frozen=True, slots=True)
class Want:
    """A value as one region needs it.

    Attributes:
        value: What is read.
        exprs: Its axes, as that use sees them.
        rank: Rank to bring it to, by leading axes of size 1.
        source: Region the value is from.
        region: Region that reads it.
        may_broadcast: Whether an axis of size 1 serves where the tokens were expanded.
        neutral: What slots without a token must hold.
        reader: The node that reads it, for messages.
    """

    value: ir.Value
    exprs: tuple[Expr, ...]
    rank: int
    source: int
    region: int
    may_broadcast: bool
    neutral: Neutral | None
    reader: ir.Node

    @property
    def padded(self) -> tuple[Expr, ...]:
        """The axes, with leading ones up to the rank."""
        return (UNIT,) * (self.rank - len(self.exprs)) + self.exprs


class Versions:
    """Builds gathered values, each once.

    ``kept[r - 1]`` is the selection that opens region r; it is appended as the pass goes
    along. ``valid_source`` is the boolean mask value that validity was derived from: behind
    a cut it is True in exactly the slots that hold a token.
    """

    def __init__(self, emit: Emitter, regions: Regions) -> None:
        self.kept: list[Kept] = []
        self.opening: list[ir.Value] = []
        """(B, K, D) what each cut leaves of its own value."""
        self.valid_source: ir.Value | None = None
        self.emit = emit
        self._regions = regions
        self._made: dict[tuple[object, ...], ir.Value] = {}

    def get(self, want: Want) -> ir.Value:
        """Return the value as wanted, gathering what is not there yet."""
        shape = tuple(self._regions.bears(expr) for expr in want.exprs)
        key = (want.value, shape, want.rank, want.region, want.may_broadcast, want.neutral)
        if key not in self._made:
            self._made[key] = self._make(want)
        return self._made[key]

    def slots(self, region: int, rank: int, axis: int, heads: int = 1) -> ir.Value:
        """Return the (B, K) validity of a region with K at ``axis`` (from the right).

        With ``heads`` the first axis is (B * H).
        """
        key = ("slots", region, rank, axis, heads)
        if key not in self._made:
            valid = self.kept[region - 1].valid
            assert valid is not None
            if heads > 1:
                valid = self._of_heads(self.emit.unsqueeze(valid, (1,)), heads, 3)
            others = [i for i in range(1, rank) if i != rank + axis]
            self._made[key] = self.emit.unsqueeze(valid, others)
        return self._made[key]

    def _of_heads(self, value: ir.Value, heads: int, rank: int) -> ir.Value:
        """(B, 1, ...) of the given rank -> (B * H, ...), each head the same."""
        target = self.emit.ints(1, heads, *[1] * (rank - 2))
        return self.emit.joined(self.emit.op("Expand", value, target))

    def heads_of(self, exprs: Sequence[Expr]) -> int:
        """Return how many heads stand in the first axis with the batch; 1 where none does."""
        rest = self._regions.beside_batch(exprs[0]) if exprs else None
        found = 1 if rest is None else size(rest)
        assert isinstance(found, int)
        return found

    def gather(self, value: ir.Value, region: int, lacking: int = 0) -> ir.Value:
        """(B, N, ...) -> (B, K, ...) with the kept positions that open ``region``.

        ``lacking`` leading tokens, all protected, are not in the value.
        """
        key = ("index", region, lacking)
        if key not in self._made:
            self._made[key] = self.emit.unsqueeze(self._index(region, lacking), (2,))
        rows = ("rows", value, region, lacking)
        if rows not in self._made:
            self._made[rows] = self.emit.op("GatherND", value, self._made[key], batch_dims=1)
        return self._made[rows]

    def _index(self, region: int, lacking: int) -> ir.Value:
        """Return the (B, K) positions, counted without the leading tokens that lack."""
        index = self.kept[region - 1].index
        if not lacking:
            return index
        key = ("positions", region, lacking)
        if key not in self._made:
            emit, end = self.emit, self.emit.ints(np.iinfo(np.int64).max)
            rest = emit.op("Slice", index, emit.ints(lacking), end, emit.ints(1))
            self._made[key] = emit.op("Sub", rest, emit.ints(lacking))
        return self._made[key]

    def neutralise(
        self, value: ir.Value, exprs: Sequence[Expr], region: int, neutral: Neutral
    ) -> ir.Value:
        """Write the neutral element into slots that hold no token; ``exprs`` are the axes."""
        holds = self.slots(region, len(exprs), neutral.axis, self.heads_of(exprs))
        key = ("neutral", value, holds, neutral.fill)
        if key not in self._made:
            self._made[key] = self._filled(value, holds, neutral.fill)
        return self._made[key]

    def _filled(self, value: ir.Value, holds: ir.Value, fill: Fill) -> ir.Value:
        match fill:
            case Fill.FALSE:
                return self.emit.op("And", value, holds)
            case Fill.TRUE:
                return self.emit.op("Or", value, self.emit.op("Not", holds))
            case _:
                return self.emit.op("Where", holds, value, self._filler(fill, value))

    def _filler(self, fill: Fill, like: ir.Value) -> ir.Value:
        dtype = like.dtype
        number = fill.number(dtype if dtype is not None else ir.DataType.FLOAT)
        if dtype is not None:
            return self.emit.number(number, dtype)
        single = self.emit.number(number, ir.DataType.FLOAT)
        return self.emit.op("CastLike", single, like)

    def _make(self, want: Want) -> ir.Value:
        if want.region == want.source:
            return self.emit.unsqueeze(want.value, range(want.rank - len(want.exprs)))
        neutral = want.neutral
        if neutral is not None and self._is_validity(want, neutral):
            return self.slots(want.region, want.rank, neutral.axis, self.heads_of(want.padded))
        made = self._through(want)
        if made is not None:
            return made
        gathered = self._gathered(want)
        if gathered.dtype is None and want.value.type is not None:
            gathered.type = want.value.type
        if neutral is None:
            return gathered
        return self.neutralise(gathered, want.padded, want.region, neutral)

    def _is_validity(self, want: Want, neutral: Neutral) -> bool:
        return want.value is self.valid_source and neutral.fill is Fill.FALSE

    # --- through the producer ----------------------------------------------------------

    def _through(self, want: Want) -> ir.Value | None:
        """Gather the operands of the producer instead, where that is less work."""
        node = want.value.producer()
        if node is None or not self._pays(want.value, want.exprs, want.neutral):
            return None
        if node.op_type == "Expand":
            operand = self._operand(want, node, 0, want.neutral)
            if want.may_broadcast:
                return self.get(operand)
            return self._through_heads(want, operand)
        taken = self._taker(want, node)
        inputs: list[ir.Value | None] = []
        for slot, value in enumerate(self._regions.inputs(node)):
            exprs = self._regions.exprs(node, slot)
            if value is None or exprs is None or not any(map(self._regions.bears, exprs)):
                inputs.append(value)
                continue
            passed = taken[1] if taken is not None and taken[0] == slot else None
            inputs.append(self.get(self._operand(want, node, slot, passed)))
        made = self.emit.copy(node, inputs).outputs[0]
        if want.neutral is None or taken is not None:
            return made
        return self.neutralise(made, want.padded, want.region, want.neutral)

    def _through_heads(self, want: Want, operand: Want) -> ir.Value | None:
        """(1, ...) -> (B * H, ...): gather once per sample, then repeat for its heads."""
        heads, rank = self.heads_of(want.exprs), len(want.exprs)
        is_shared = operand.exprs == (UNIT, *want.exprs[1:]) and want.rank == rank
        if heads == 1 or not is_shared or want.neutral is not None:
            return None
        once = self.emit.unsqueeze(self.get(operand), (1,))
        made = self._of_heads(once, heads, rank + 1)
        made.type = want.value.type
        return made

    def _operand(self, want: Want, node: ir.Node, slot: int, neutral: Neutral | None) -> Want:
        value, exprs = self._regions.inputs(node)[slot], self._regions.exprs(node, slot)
        assert value is not None
        assert exprs is not None
        source = self._regions.edge(node, slot)
        return replace(want, value=value, exprs=exprs, source=source, neutral=neutral)

    def _taker(self, want: Want, node: ir.Node) -> tuple[int, Neutral] | None:
        """Return the operand that can hold the neutral element for the result."""
        if want.neutral is None:
            return None
        takers = [
            (slot, neutral)
            for slot, neutral in transfers(node, want.neutral, self._regions)
            if self._bears_at(node, slot, neutral.axis)
        ]
        inputs = self._regions.inputs(node)
        for slot, neutral in takers:
            if self._reaches_validity(inputs[slot], neutral):
                return slot, neutral
        return takers[0] if takers else None

    def _pays(self, value: ir.Value, exprs: Sequence[Expr], neutral: Neutral | None) -> bool:
        node = value.producer()
        if node is None or node.domain or node.op_type not in _RANK_ALIGNED:
            return False
        n_token_axes = sum(map(self._regions.bears, exprs))
        if node.op_type == "Expand" or self._reaches_validity(value, neutral):
            return True
        return n_token_axes > 1 and self._is_smaller_above(node, n_token_axes)

    def _is_smaller_above(self, node: ir.Node, n_token_axes: int) -> bool:
        """Tell whether every operand of the op can be had with fewer token axes."""
        for slot, value in enumerate(self._regions.inputs(node)):
            exprs = self._regions.exprs(node, slot)
            if value is None or exprs is None:
                continue
            n_axes = sum(map(self._regions.bears, exprs))
            producer = value.producer()
            if n_axes < n_token_axes or (producer is not None and producer.op_type == "Expand"):
                continue
            if producer is None or producer.domain or producer.op_type not in _RANK_ALIGNED:
                return False
            if not self._is_smaller_above(producer, n_token_axes):
                return False
        return True

    def _reaches_validity(self, value: ir.Value | None, neutral: Neutral | None) -> bool:
        """Tell whether the neutral element would be written into the validity mask itself."""
        if value is None or neutral is None or self.valid_source is None:
            return False
        if value is self.valid_source:
            return neutral.fill is Fill.FALSE
        node = value.producer()
        if node is None or node.domain or node.op_type not in _RANK_ALIGNED:
            return False
        return any(
            self._bears_at(node, slot, passed.axis)
            and self._reaches_validity(self._regions.inputs(node)[slot], passed)
            for slot, passed in transfers(node, neutral, self._regions)
        )

    def _bears_at(self, node: ir.Node, slot: int, axis: int) -> bool:
        exprs = self._regions.exprs(node, slot)
        return exprs is not None and -axis <= len(exprs) and self._regions.bears(exprs[axis])

    # --- by gathering ------------------------------------------------------------------

    def _gathered(self, want: Want) -> ir.Value:
        """Gather along every token axis, one selection after the other."""
        exprs = want.padded
        for axis, expr in enumerate(exprs):
            if self._regions.bears(expr) and self._regions.tail(expr) is None:
                reason = f"axis {axis} of {want.value.name!r} is made of tokens and more"
                raise refusal(self._regions, want.reader, reason)
        before = self.get(replace(want, region=want.region - 1, neutral=None))
        merge = self.kept[want.region - 1].merge
        if merge is not None and self._is_state(exprs, want.region):
            return merge(before)
        beside = self._regions.beside_batch(exprs[0])
        if beside is not None and want.rank == len(want.exprs):
            before = self.emit.apart(before, self.heads_of(exprs), want.rank)
            exprs = (self._regions.batch, beside, *exprs[1:])
            return self.emit.joined(self._along(before, exprs, want))
        return self._along(before, exprs, want)

    def _is_state(self, exprs: tuple[Expr, ...], region: int) -> bool:
        """Tell whether a value is a further stream of the hidden states that a cut reduces.

        A model may carry its residual beside them; a table of positions has no batch.
        """
        cut = self._regions.cuts[region - 1].value
        return exprs == axes_of(self._regions.axes, cut)

    def _along(self, value: ir.Value, exprs: tuple[Expr, ...], want: Want) -> ir.Value:
        """Gather a value with the given axes along each that has tokens."""
        is_batched = exprs[0] == self._regions.batch or want.region - 1 > want.source
        if not is_batched and exprs[0] != UNIT:
            reason = f"axis 0 of {want.value.name!r} is not the batch axis"
            raise refusal(self._regions, want.reader, reason)
        units = [expr == UNIT for expr in exprs]
        for axis, expr in enumerate(exprs):
            if not self._regions.bears(expr):
                continue
            place = _Place(axis, units, want.region, self._regions.tail(expr) or 0)
            if is_batched:
                value = self._per_sample(value, place)
            else:
                value = self._per_batch(value, place)
                is_batched, units[0] = True, False
        return value

    def _per_sample(self, value: ir.Value, at: _Place) -> ir.Value:
        """Gather one axis of (B, ..., N, ...) with each sample's own positions."""
        between = list(range(1, at.axis))
        if all(at.units[i] for i in between):
            reduced = self.emit.squeeze(value, between)
            return self.emit.unsqueeze(self.gather(reduced, at.region, at.lacking), between)
        rest = [i for i in range(1, len(at.units)) if i != at.axis]
        perm = [0, at.axis, *rest]
        gathered = self.gather(self.emit.transpose(value, perm), at.region, at.lacking)
        return self.emit.transpose(gathered, [int(i) for i in np.argsort(perm)])

    def _per_batch(self, value: ir.Value, at: _Place) -> ir.Value:
        """Gather one axis of (1, ..., N, ...), which samples share: (B, ..., K, ...)."""
        index, axis = self._index(at.region, at.lacking), at.axis
        leading = list(range(axis))
        if all(at.units[i] for i in leading):
            flat = self.emit.squeeze(value, leading)
            return self.emit.unsqueeze(self.emit.op("Gather", flat, index, axis=0), leading[1:])
        rows = self.emit.squeeze(value, (0,))
        picked = self.emit.op("Gather", rows, index, axis=axis - 1)
        # axes are now 1 .. axis-1, batch, tokens, the rest
        perm = [axis - 1, *range(axis - 1), *range(axis, len(at.units))]
        return self.emit.transpose(picked, perm)


@dataclass(frozen=True, slots=True)
class _Place:
    """One token axis of a value: which axes are of size 1, which tokens it lacks in front."""

    axis: int
    units: list[bool]
    region: int
    lacking: int


__all__ = ["Versions", "Want"]
