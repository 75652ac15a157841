"""How many tokens of each sample stay, and which: the arithmetic of a selection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.selection.emit import Emitter

_PER_MILLE = 1000
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Budget:
    """A share of each sample's valid tokens, or an absolute number of them.

    Attributes:
        kind: ``permille`` of the valid tokens, rounded up, or ``count``.
        default: 1 to 1000, or a number of tokens.
        is_input: Whether the number is an int64 input of the graph, ``<site>.permille`` or
            ``<site>.k``, so that one engine serves every ratio; else a constant.
        protected: Leading tokens that always stay; 0 where none is special. At least one
            token stays in any case.
        width: How many slots the batch gets: as the ``longest`` sample needs, computed from
            data, or as a sample without padding would need (``padded``), computed from
            shapes alone. TensorRT tunes kernels for shapes that it can infer and takes 1
            for others, so that ``padded`` is the better one there; results are equal.
    """

    kind: Literal["permille", "count"] = "permille"
    default: int = 600
    is_input: bool = True
    protected: int = 1
    width: Literal["longest", "padded"] = "longest"

    def __post_init__(self) -> None:
        top = _PER_MILLE if self.kind == "permille" else None
        if self.default < 1 or (top is not None and self.default > top):
            raise BadInputError(
                f"a budget of {self.default} {self.kind} keeps nothing or more than all",
                wanted="1 to 1000" if top else "1 or more",
                next_step="keep=0.6 is 600 permille",
            )
        if self.protected < 0:
            raise BadInputError(
                "a negative number of protected tokens",
                got=f"protected={self.protected}",
                wanted="0 or more",
            )

    def input_name(self, site: str) -> str:
        """Return the name of the graph input that carries the number."""
        return f"{site}.permille" if self.kind == "permille" else f"{site}.k"


@dataclass(frozen=True, slots=True)
class Kept:
    """What one selection kept, as values of the graph.

    Attributes:
        index: (B, K) int64 positions before the selection, ascending; a slot that holds
            no token points at the last position.
        valid: (B, K) bool, False in slots that hold no token; None where none can be empty.
        length: (1,) int64, K.
        before: (1,) int64, the number of tokens before the selection.
        counts: (B, 1) int64 kept tokens per sample; None where all are K.
        state: (B, K) float32, what the method hands to the next site; None without.
        merge: Makes (B, K, D) new tokens of (B, N, D) where the method merges; None where
            tokens are gathered. It serves every stream of hidden states that passes the cut.
            ``index`` then says where each of them stands, and ``chosen`` what was chosen.
        chosen: What was chosen before merging; None where nothing is merged.
        inner: The same of the window that was selected from; None where that is all tokens.
        in_order: Whether kept tokens stand in their order.
    """

    index: ir.Value
    valid: ir.Value | None
    length: ir.Value
    before: ir.Value
    counts: ir.Value | None
    state: ir.Value | None = None
    merge: Callable[[ir.Value], ir.Value] | None = None
    chosen: Kept | None = None
    inner: Kept | None = None
    in_order: bool = True


@dataclass(frozen=True, slots=True)
class Amount:
    """How many tokens stay.

    Attributes:
        counts: (B, 1) int64 per sample; None where all are K.
        length: (1,) int64, K.
    """

    counts: ir.Value | None
    length: ir.Value


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens that reach a selection.

    Attributes:
        length: (1,) int64, N.
        valid: (B, N) bool; None where every token is.
        counts: (B, 1) int64 valid tokens per sample; None where ``valid`` is.
        ranks: (B, N) int64, how many valid tokens stand up to here; None where the valid
            tokens of every sample stand in front.
    """

    length: ir.Value
    valid: ir.Value | None
    counts: ir.Value | None
    ranks: ir.Value | None


def count_valid(emit: Emitter, length: ir.Value, valid: ir.Value) -> Tokens:
    """Return the tokens of a batch with padding on either side."""
    ones = emit.op("Cast", valid, to=ir.DataType.INT64.value)
    counts = emit.op("ReduceSum", ones, emit.ints(1), keepdims=1)
    axis = emit.constant(np.array(1, dtype=np.int64))
    return Tokens(length, valid, counts, emit.op("CumSum", ones, axis))


def protect(emit: Emitter, score: ir.Value, tokens: Tokens, protected: int) -> ir.Value:
    """Put the first valid tokens of each sample above all others (+inf).

    Counting valid ones alone, a sample that is padded on the left keeps what it keeps alone.
    """
    if not protected:
        return score
    highest = emit.number(np.inf, ir.DataType.FLOAT)
    if tokens.ranks is not None:
        is_first = emit.op("LessOrEqual", tokens.ranks, emit.ints(protected))
        return emit.op("Where", is_first, highest, score)
    last = emit.ints(np.iinfo(np.int64).max)
    rest = emit.op("Slice", score, emit.ints(protected), last, emit.ints(1))
    return emit.op("Pad", rest, emit.ints(0, protected, 0, 0), highest)


def finite(emit: Emitter, score: ir.Value) -> ir.Value:
    """Bring NaN and minus infinity to the lowest number, so that they still beat padding.

    Plus infinity ties with protected tokens, which win by their position.
    """
    lowest = emit.number(-_LARGEST, ir.DataType.FLOAT)
    is_number = emit.op("GreaterOrEqual", score, lowest)  # false for NaN
    return emit.op("Where", is_number, score, lowest)


def keep(
    emit: Emitter,
    score: ir.Value,
    tokens: Tokens,
    amount: Amount,
    *,
    standing: ir.Value | None = None,
) -> Kept:
    """Emit everything between the score and the kept positions.

    Args:
        emit: Where the nodes go.
        score: (B, N) float32, larger is kept.
        tokens: What is selected from.
        amount: How many stay; its length has been named.
        standing: (B, N) float32, by which kept tokens stand, largest first; None where they
            stay in their order.
    """
    valid = slots_in_use(emit, amount)
    kept = Kept(
        score, valid, amount.length, tokens.length, amount.counts, in_order=standing is None
    )
    return replace(kept, index=positions(emit, score, kept, standing))


def slots_in_use(emit: Emitter, amount: Amount) -> ir.Value | None:
    """(B, K) bool: slots that hold a token; None where all do."""
    if amount.counts is None:
        return None
    slots = emit.op(
        "Range",
        emit.constant(np.array(0, dtype=np.int64)),
        emit.squeeze(amount.length, (0,)),
        emit.constant(np.array(1, dtype=np.int64)),
    )
    return emit.op("Less", slots, amount.counts)


def positions(
    emit: Emitter, score: ir.Value, kept: Kept, standing: ir.Value | None = None
) -> ir.Value:
    """(B, N) scores -> (B, K) positions of the largest, in their order or as ``standing`` says.

    Empty slots point at the last position, so that they sort behind every token and no
    backend's order among padding can show.
    """
    _, index = emit.node("TopK", (score, kept.length), {"axis": 1}, outputs=2)
    if kept.valid is not None:
        last = emit.op("Sub", kept.before, emit.ints(1))
        index = emit.op("Where", kept.valid, index, last)
    if standing is score:
        return index
    if standing is not None:
        return _reordered(emit, index, standing, kept)
    order = {"axis": 1, "largest": 0}
    return emit.node("TopK", (index, kept.length), dict(order), outputs=2)[0]


def _reordered(emit: Emitter, index: ir.Value, standing: ir.Value, kept: Kept) -> ir.Value:
    """(B, K) positions, largest of ``standing`` first, empty slots behind."""
    mine = emit.op("GatherND", standing, emit.unsqueeze(index, (2,)), batch_dims=1)
    if kept.valid is not None:
        mine = emit.op("Where", kept.valid, mine, emit.number(-np.inf, ir.DataType.FLOAT))
    places = emit.node("TopK", (mine, kept.length), {"axis": 1}, outputs=2)[1]
    return emit.op("GatherND", index, emit.unsqueeze(places, (2,)), batch_dims=1)


def own_amount(emit: Emitter, tokens: Tokens, count: ir.Value, protected: int) -> Amount:
    """The amount that a method decided: at least what is protected, at most what is there.

    Args:
        emit: Where the nodes go.
        tokens: What is selected from.
        count: (B,) int64.
        protected: Tokens that always stay.
    """
    least = emit.ints(max(protected, 1))
    most = tokens.length if tokens.counts is None else tokens.counts
    wanted = emit.op("Max", emit.unsqueeze(count, (1,)), least)
    counts = emit.op("Min", wanted, most)
    return Amount(counts, _widest(emit, counts, tokens))


def equal_amount(emit: Emitter, amount: Amount) -> Amount:
    """The same where every sample keeps equally many, so that no slot is empty."""
    assert amount.counts is not None
    return Amount(None, emit.op("ReduceMax", amount.counts, emit.ints(0), keepdims=0))


def amount_of(emit: Emitter, tokens: Tokens, budget: Budget, site: str) -> Amount:
    """The amount that the budget leaves."""
    amount = _amount(emit, budget, site)
    protected = emit.ints(max(budget.protected, 1))
    available = tokens.counts
    if available is None:
        wanted = _share(emit, tokens.length, amount) if budget.kind == "permille" else amount
        return Amount(None, _clamped(emit, wanted, protected, tokens.length))
    wanted = _share(emit, available, amount) if budget.kind == "permille" else amount
    counts = emit.op("Min", emit.op("Max", wanted, protected), available)
    if budget.width == "padded":
        full = _share(emit, tokens.length, amount) if budget.kind == "permille" else amount
        return Amount(counts, _clamped(emit, full, protected, tokens.length))
    return Amount(counts, _widest(emit, counts, tokens))


def _widest(emit: Emitter, counts: ir.Value, tokens: Tokens) -> ir.Value:
    widest = emit.op("ReduceMax", counts, emit.ints(0), keepdims=0)
    # at least 1: a batch of nothing but padding must not make an empty sequence
    return emit.op("Min", emit.op("Max", widest, emit.ints(1)), tokens.length)


def _amount(emit: Emitter, budget: Budget, site: str) -> ir.Value:
    if not budget.is_input:
        return emit.ints(budget.default)
    value = ir.Value(
        name=budget.input_name(site),
        shape=ir.Shape([1]),
        type=ir.TensorType(ir.DataType.INT64),
    )
    emit.graph.inputs.append(value)
    return value


def _share(emit: Emitter, tokens: ir.Value, permille: ir.Value) -> ir.Value:
    """Number of tokens that a share of ``tokens`` is, rounded up, in integers."""
    folded = _folded(tokens, permille)
    if folded is not None:
        return emit.ints(-(-folded[0] * folded[1] // _PER_MILLE))
    raised = emit.op("Add", emit.op("Mul", tokens, permille), emit.ints(_PER_MILLE - 1))
    return emit.op("Div", raised, emit.ints(_PER_MILLE))


def _clamped(emit: Emitter, wanted: ir.Value, low: ir.Value, high: ir.Value) -> ir.Value:
    folded = _folded(wanted, low, high)
    if folded is not None:
        return emit.ints(min(max(folded[0], folded[1]), folded[2]))
    return emit.op("Min", emit.op("Max", wanted, low), high)


def _folded(*values: ir.Value) -> tuple[int, ...] | None:
    """Return the numbers where all are constants."""
    tensors = [value.const_value for value in values]
    if any(tensor is None for tensor in tensors):
        return None
    return tuple(int(tensor.numpy()[0]) for tensor in tensors if tensor is not None)


__all__ = [
    "Amount",
    "Budget",
    "Kept",
    "Tokens",
    "amount_of",
    "count_valid",
    "equal_amount",
    "finite",
    "keep",
    "own_amount",
    "positions",
    "protect",
    "slots_in_use",
]
