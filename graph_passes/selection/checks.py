"""What may not stand behind a cut of the tokens; each refusal names the node and the reason."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from secateur.graph_passes.axes import Expr, Size, constant, leaves, node_name, show, size
from secateur.graph_passes.axes.shape_values import SHAPE_SLOTS
from secateur.graph_passes.selection.flow import descendants
from secateur.graph_passes.selection.folds import check_folds
from secateur.graph_passes.selection.neighbours import GAPS_HINT, neighbours
from secateur.graph_passes.selection.region import Regions, refusal

_LONG = 2**31 - 1
_SPELLED_AGAIN = frozenset({"Reshape", "Expand"})
_CHECKED_HERE = frozenset({"Gather", "Slice", "Shape", "Size", "Range", "Squeeze", "Unsqueeze"})
_SIZE_AS_DATA = "its size is read as data"
_GRID_HINT = "select behind the last grid, or return tokens instead"
_PREFIX_HINT = "protect these tokens (protected=...), or select at a later site"


@dataclass(frozen=True, slots=True)
class Always:
    """Tokens that every selection keeps: so many leading ones, and the last one or not."""

    first: int
    last: bool = False


def check_regions(
    regions: Regions,
    always: Always,
    followed: frozenset[ir.Node],
    *,
    may_close: bool = False,
) -> None:
    """Check all that stands behind the cuts.

    Args:
        regions: The chain of cuts.
        always: Tokens that every selection keeps.
        followed: Nodes that read one token whose position is counted again.
        may_close: Whether tokens that stay may become neighbours.

    Raises:
        PreconditionError: a node that reads dropped tokens, counts tokens or mixes them.
    """
    beside = neighbours(regions)
    _check_reasons(regions, followed | (beside if may_close else frozenset()), beside)
    _check_whole(regions)
    check_folds(regions)
    for node, _ in regions.in_region():
        if node.domain:
            continue
        if node.op_type == "Slice":
            _check_slice(node, regions, always)
        elif node.op_type == "Gather" and node not in followed:
            _check_gather(node, regions, always)
        elif node.op_type not in _SPELLED_AGAIN:
            _check_spelled(node, regions)


def _check_reasons(
    regions: Regions, explained: frozenset[ir.Node], beside: frozenset[ir.Node]
) -> None:
    """Whatever the axis analysis could not explain behind a cut is refused.

    Args:
        regions: The chain of cuts.
        explained: Nodes that are right all the same.
        beside: Nodes that could be, where gaps may close.
    """
    behind = {node_name(node): node for node, _ in regions.in_region()}
    everywhere = {node_name(node): node for node in regions.order}
    for atom in leaves(regions.tokens):
        for reason in regions.axes.reasons(atom):
            if reason.text == _SIZE_AS_DATA:
                _check_counted(everywhere.get(reason.node), regions)
                continue
            node = behind.get(reason.node)
            if node is None or node in explained:
                continue
            if node.op_type not in _CHECKED_HERE:
                raise refusal(regions, node, reason.text, GAPS_HINT if node in beside else "")


def _check_whole(regions: Regions) -> None:
    """Behind a cut the tokens stay one axis: no grid, no windows, no pieces but a prefix.

    Others may join them in that axis, such as a class token.
    """
    for node, _ in regions.in_region():
        for expr in regions.made(node) or ():
            is_whole = _contains(expr, regions) or regions.ahead(expr) is not None
            if regions.bears(expr) and not (is_whole or regions.tail(expr)):
                reason = f"it takes the token axis apart, into {show(expr)} among others"
                raise refusal(regions, node, reason, _GRID_HINT)


def _contains(expr: Expr, regions: Regions) -> bool:
    """Tell whether the tokens stand in the product, whole."""
    n = len(regions.tokens)
    return any(expr[i : i + n] == regions.tokens for i in range(len(expr) - n + 1))


def _check_counted(node: ir.Node | None, regions: Regions) -> None:
    """The number of tokens as a plain number: whether it means N or K nobody can know."""
    if node is None or node.op_type in _CHECKED_HERE:
        return
    reached = [node, *(descendants(node.outputs[0]) if node.outputs else ())]
    for reader in reached:
        if regions.of.get(reader):
            hint = "divide by the sum of the attention mask instead of the number of tokens"
            reason = "the number of tokens is used as data, and selecting would change it"
            raise refusal(regions, node, reason, hint)


def _check_slice(node: ir.Node, regions: Regions, always: Always) -> None:
    data = regions.exprs(node, 0)
    if data is None or not any(map(regions.bears, data)):
        return
    starts, ends = _ints(regions, node, 1), _ints(regions, node, 2)
    if starts is None or ends is None:
        raise refusal(regions, node, "it slices at computed positions")
    steps = _ints(regions, node, 4) or (1,) * len(starts)
    axes = _sliced_axes(regions, node, len(data), len(starts))
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        expr = data[axis]
        if not regions.bears(expr):
            continue
        ahead = regions.ahead(expr)
        first = always.first + (ahead or 0)
        is_prefix = start == 0 and isinstance(end, int) and 0 < end <= first
        is_rest = isinstance(start, int) and 0 <= start <= first and _is_end(end, expr)
        is_last = always.last and start == -1 and _is_end(end, expr) and regions.is_tokens(expr)
        if step != 1 or not (is_prefix or is_rest or is_last) or ahead is None:
            reason = f"it reads tokens {start} to {end}, of which {always.first} are protected"
            raise refusal(regions, node, reason, _PREFIX_HINT)


def _sliced_axes(regions: Regions, node: ir.Node, rank: int, n_slices: int) -> list[int]:
    axes = constant(_input(regions, node, 3))
    return list(range(n_slices)) if axes is None else [int(a) % rank for a in axes.reshape(-1)]


def _is_end(end: Size, expr: Expr) -> bool:
    return end == size(expr) or (isinstance(end, int) and end >= _LONG)


def open_ended(regions: Regions, node: ir.Node) -> np.ndarray | None:
    """Return the ends of a Slice behind a cut with "all the rest" for the token axis.

    None where the ends need no change.
    """
    data, ends = regions.exprs(node, 0), _ints(regions, node, 2)
    if data is None or ends is None:
        return None
    listed = _sliced_axes(regions, node, len(data), len(ends))
    spelled: list[int] = []
    changed = False
    for i, axis in enumerate(listed):
        end = ends[i]
        if regions.bears(data[axis]) and end == size(data[axis]):
            changed, end = True, int(np.iinfo(np.int64).max)
        if not isinstance(end, int):
            return None
        spelled.append(end)
    return np.array(spelled, dtype=np.int64) if changed else None


def _check_gather(node: ir.Node, regions: Regions, always: Always) -> None:
    data = regions.exprs(node, 0)
    if data is None:
        return
    picked = node.attributes.get_int("axis", 0) % len(data)
    if not regions.bears(data[picked]):
        return
    values = constant(_input(regions, node, 1))
    if values is None:
        reason = "it reads tokens at computed positions"
        raise refusal(regions, node, reason, "protect that token, or select at a later site")
    is_last = always.last and bool((values == -1).all())
    first = always.first + (regions.ahead(data[picked]) or 0)
    if values.size and not is_last and not (values.min() >= 0 and values.max() < first):
        which = ", ".join(str(int(v)) for v in values.reshape(-1)[:4])
        reason = f"it reads the tokens at {which}, of which the first {always.first} are protected"
        raise refusal(regions, node, reason, _PREFIX_HINT)


def _check_spelled(node: ir.Node, regions: Regions) -> None:
    """Integers that spell sizes: fine where no token is counted."""
    if node.op_type in _CHECKED_HERE:
        return
    for slot in SHAPE_SLOTS.get(node.op_type, frozenset()):
        value = _input(regions, node, slot)
        entries = regions.axes.entries(value)
        if entries is None:
            continue
        if any(regions.bears(source) for entry in entries for source in entry.sources):
            raise refusal(regions, node, "a size that counts tokens is spelled in it")
    if node.op_type in ("Split", "Pad", "Tile"):
        before = regions.exprs(node, 0) or ()
        after = regions.made(node)
        if after is not None and _tokens_in(before, regions) != _tokens_in(after, regions):
            raise refusal(regions, node, "it splits or extends the token axis")


def _tokens_in(exprs: tuple[Expr, ...], regions: Regions) -> list[int]:
    return [axis for axis, expr in enumerate(exprs) if regions.is_tokens(expr)]


def _input(regions: Regions, node: ir.Node, slot: int) -> ir.Value | None:
    inputs = regions.inputs(node)
    return inputs[slot] if slot < len(inputs) else None


def _ints(regions: Regions, node: ir.Node, slot: int) -> tuple[Size, ...] | None:
    value = _input(regions, node, slot)
    return None if value is None else regions.axes.ints(value)


__all__ = ["Always", "check_regions", "open_ended"]
