"""Selecting among some of the tokens only: those of a picture between two pieces of text.

The tokens at the cut are a concatenation, ``before + window + behind``. A selector sees the
window alone; what stands around it always stays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.axes import Expr, Sum, show, size
from secateur.graph_passes.axes.expression import concatenation
from secateur.graph_passes.selection.budget import Kept
from secateur.graph_passes.selection.emit import Emitter
from secateur.graph_passes.selection.region import Regions


@dataclass(frozen=True, slots=True)
class Window:
    """Where the window stands.

    Attributes:
        expr: Its axis.
        before: (1,) int64, tokens in front of it.
        length: (1,) int64, tokens in it before any selection.
        behind: (1,) int64, tokens behind it.
        ends_inside: Whether nothing stands behind it.
    """

    expr: Expr
    before: ir.Value
    length: ir.Value
    behind: ir.Value
    ends_inside: bool


def window_of(emit: Emitter, regions: Regions, value: ir.Value, site: str) -> Window:
    """Find the tokens of a value, (B, N, ...), in those at the cut.

    Raises:
        BadInputError: the value's axis 1 is no part of the tokens at the cut.
        PreconditionError: what stands around it has a size that no input tells.
    """
    try:
        expr = regions.axes.of(value)[1]
    except (KeyError, IndexError):
        expr = ()
    parts = _parts(regions.tokens, expr)
    if parts is None:
        raise BadInputError(
            f"the tokens of {value.name!r} are not among those at the cut",
            where=f"site {site!r}, option among",
            got=show(expr),
            wanted=f"a part of {show(regions.tokens)}",
            next_step="name a value whose rows become a part of the sequence that is cut",
        )
    before, behind = parts
    return Window(
        expr,
        _length(emit, regions, before),
        _length(emit, regions, expr),
        _length(emit, regions, behind),
        ends_inside=not behind,
    )


def _parts(tokens: Expr, window: Expr) -> tuple[Expr, Expr] | None:
    """Return what stands in front of a window and behind it."""
    terms = tokens[0].terms if len(tokens) == 1 and isinstance(tokens[0], Sum) else (tokens,)
    inner = window[0].terms if len(window) == 1 and isinstance(window[0], Sum) else (window,)
    for start in range(len(terms) - len(inner) + 1):
        if terms[start : start + len(inner)] == inner:
            return _joined(terms[:start]), _joined(terms[start + len(inner) :])
    return None


def _joined(terms: tuple[Expr, ...]) -> Expr:
    """The concatenation of no, one or several expressions; a sum of no terms for none."""
    return concatenation(terms) if terms else (Sum(()),)


def _length(emit: Emitter, regions: Regions, expr: Expr) -> ir.Value:
    """(1,) int64: the size of an axis, from its own size or those of inputs."""
    terms = expr[0].terms if len(expr) == 1 and isinstance(expr[0], Sum) else (expr,)
    total = emit.ints(0)
    for term in terms:
        length = size(term)
        one = emit.ints(length) if isinstance(length, int) else _of_input(emit, regions, term)
        both = (total.const_value, one.const_value)
        if both[0] is not None and both[1] is not None:
            total = emit.ints(int(both[0].numpy()[0]) + int(both[1].numpy()[0]))
        else:
            total = emit.op("Add", total, one)
    return total


def _of_input(emit: Emitter, regions: Regions, term: Expr) -> ir.Value:
    for value in emit.graph.inputs:
        try:
            exprs = regions.axes.of(value)
        except KeyError:
            continue
        for axis, expr in enumerate(exprs):
            if expr == term:
                return emit.op("Shape", value, start=axis, end=axis + 1)
    raise PreconditionError(
        "the size of what stands around the tokens to select from is not known",
        got=show(term),
        wanted="an axis of an input of the graph",
    )


def inside(emit: Emitter, value: ir.Value, window: Window, axis: int, length: ir.Value) -> ir.Value:
    """Take the window's part of a token axis, of which ``length`` tokens are left."""
    end = emit.op("Add", window.before, length)
    made = emit.op("Slice", value, window.before, end, emit.ints(axis))
    made.type = value.type
    return made


def widened(emit: Emitter, kept: Kept, window: Window, hidden: ir.Value) -> Kept:
    """Let all that stands around the window stay too.

    Args:
        emit: Where nodes go.
        kept: What was kept of the window.
        window: Where it stands.
        hidden: (B, N, D) at the cut.
    """
    batch = emit.op("Shape", hidden, start=0, end=1)
    end = emit.op("Add", window.before, kept.before)
    front = _places(emit, emit.ints(0), window.before, batch)
    back = _places(emit, end, emit.op("Add", end, window.behind), batch)
    index = emit.op("Concat", front, emit.op("Add", kept.index, window.before), back, axis=1)
    around = emit.op("Add", window.before, window.behind)
    made = Kept(
        index=index,
        valid=_all_valid_around(emit, kept, front, back),
        length=emit.op("Add", kept.length, around),
        before=emit.op("Add", kept.before, around),
        counts=None if kept.counts is None else emit.op("Add", kept.counts, around),
        state=kept.state,
        inner=kept,
        in_order=kept.in_order,
    )
    merge = kept.merge
    if merge is None or kept.chosen is None:
        return made

    def merge_inside(state: ir.Value) -> ir.Value:
        largest = emit.ints(np.iinfo(np.int64).max)
        first = emit.op("Slice", state, emit.ints(0), window.before, emit.ints(1))
        last = emit.op("Slice", state, end, largest, emit.ints(1))
        rows = merge(inside(emit, state, window, 1, kept.before))
        return emit.op("Concat", first, rows, last, axis=1)

    chosen = widened(emit, kept.chosen, window, hidden)
    return replace(made, merge=merge_inside, chosen=chosen)


def _places(emit: Emitter, start: ir.Value, end: ir.Value, batch: ir.Value) -> ir.Value:
    """(B, end - start) int64: start, start + 1, ..."""
    one = emit.constant(np.array(1, dtype=np.int64))
    numbers = emit.op("Range", emit.squeeze(start, (0,)), emit.squeeze(end, (0,)), one)
    return emit.op("Expand", numbers, emit.op("Concat", batch, emit.ints(1), axis=0))


def _all_valid_around(
    emit: Emitter, kept: Kept, front: ir.Value, back: ir.Value
) -> ir.Value | None:
    """Text that is padding stays a slot, hidden by the model's own mask."""
    if kept.valid is None:
        return None
    yes = emit.constant(np.array(True))
    sides = [emit.op("Expand", yes, emit.op("Shape", side)) for side in (front, back)]
    return emit.op("Concat", sides[0], kept.valid, sides[1], axis=1)


__all__ = ["Window", "inside", "widened", "window_of"]
