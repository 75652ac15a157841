"""Integers computed from shapes, tracked as sizes along the axis walk.

``Shape -> Gather -> Concat -> Reshape`` chains are evaluated with the sizes of the
axes themselves, so that a reshape target is known even where its dimensions are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from secateur.graph_passes.axes.axis_map import AxisMap, ConstantUse, Entry, constant
from secateur.graph_passes.axes.expression import resolve, size
from secateur.graph_passes.axes.sizes import Polynomial, Size, divide, product, static
from secateur.graph_passes.axes.visits import Visit

_MAX_ENTRIES = 64
Entries = tuple[Entry, ...]
Tracker = Callable[[ir.Node, Sequence[Entries | None], AxisMap], Entries | None]

_INTEGER = frozenset(
    {ir.DataType.INT64, ir.DataType.INT32, ir.DataType.INT16, ir.DataType.INT8, ir.DataType.UINT8}
)

SHAPE_SLOTS: dict[str, frozenset[int]] = {
    "Reshape": frozenset({1}),
    "Expand": frozenset({1}),
    "Slice": frozenset({1, 2, 3, 4}),
    "ConstantOfShape": frozenset({0}),
    "Tile": frozenset({1}),
    "Pad": frozenset({1}),
    "TopK": frozenset({1}),
    "Split": frozenset({1}),
    "Squeeze": frozenset({1}),
    "Unsqueeze": frozenset({1}),
    "Resize": frozenset({2, 3}),
    "CumSum": frozenset({1}),
}
"""Inputs that spell a shape; a size that goes anywhere else is read as data."""
_NO_SLOTS: frozenset[int] = frozenset()


def track_constant(use: ConstantUse, axes: AxisMap) -> None:
    """Record a constant of rank 0 or 1 as sizes, if it holds few and integers."""
    if use.dtype not in _INTEGER or use.tensor.size > _MAX_ENTRIES:
        return
    array = np.atleast_1d(use.tensor.numpy())
    axes.set_entries(use.value, tuple(Entry(int(item)) for item in array))


def track(visit: Visit, axes: AxisMap) -> None:
    """Record what integers a node computes from shapes, where it does."""
    tracker = _TRACKERS.get(visit.key)
    if tracker is None:
        return
    given = visit.inputs
    inputs = [axes.entries(value) for value in given]
    if visit.key not in FROM_AXES and any(
        entries is None for entries, value in zip(inputs, given, strict=True) if value
    ):
        return
    made = tracker(visit.node, inputs, axes)
    if made is not None and len(made) <= _MAX_ENTRIES:
        axes.set_entries(visit.outputs[0], made)


def data_sources(visit: Visit, axes: AxisMap) -> list[Entry]:
    """Return tracked sizes that a node reads as plain numbers."""
    if visit.outputs and axes.entries(visit.outputs[0]) is not None:
        return []
    spelled = SHAPE_SLOTS.get(visit.key, _NO_SLOTS)
    found: list[Entry] = []
    for slot, value in enumerate(visit.inputs):
        entries = axes.entries(value) if slot not in spelled else None
        found.extend(entry for entry in entries or () if entry.sources)
    return found


def _shape(node: ir.Node, inputs: Sequence[Entries | None], axes: AxisMap) -> Entries | None:
    del inputs
    exprs = axes.raw(node, 0)
    if exprs is None:
        return None
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", len(exprs))
    return tuple(Entry(size(resolve(expr)), (expr,)) for expr in exprs[start:end])


def _size(node: ir.Node, inputs: Sequence[Entries | None], axes: AxisMap) -> Entries | None:
    entries = _shape(node, inputs, axes)
    return None if entries is None else _reduce_product(node, [entries], axes)


def _carry(node: ir.Node, inputs: Sequence[Entries | None], axes: AxisMap) -> Entries | None:
    del node, axes
    return inputs[0]


def _cast(node: ir.Node, inputs: Sequence[Entries | None], axes: AxisMap) -> Entries | None:
    del axes
    target = ir.DataType(node.attributes.get_int("to", ir.DataType.FLOAT.value))
    return inputs[0] if target in _INTEGER else None


def _gather(node: ir.Node, inputs: Sequence[Entries | None], axes: AxisMap) -> Entries | None:
    data, index = inputs[0], inputs[1]
    if data is None or index is None or node.attributes.get_int("axis", 0) != 0:
        return None
    positions = [entry.size for entry in index]
    if not all(isinstance(p, int) and -len(data) <= p < len(data) for p in positions):
        return None
    del axes
    return tuple(data[static(p)] for p in positions)


def _concat(node: ir.Node, inputs: Sequence[Entries | None], axes: AxisMap) -> Entries | None:
    del node, axes
    return tuple(entry for entries in inputs for entry in entries or ())


def _slice(node: ir.Node, inputs: Sequence[Entries | None], axes: AxisMap) -> Entries | None:
    if len(inputs) < 3 or inputs[0] is None:
        return None
    del axes
    bounds = [constant(value) for value in node.inputs[1:]]
    if any(bound is None or bound.size != 1 for bound in bounds):
        return None
    start, stop = (int(bound.reshape(-1)[0]) for bound in bounds[:2] if bound is not None)
    step_of = bounds[3] if len(bounds) > 3 else None
    step = int(step_of.reshape(-1)[0]) if step_of is not None else 1
    return inputs[0][slice(start, stop if abs(stop) < 2**31 - 1 else None, step)]


def _squeeze(node: ir.Node, inputs: Sequence[Entries | None], axes: AxisMap) -> Entries | None:
    del node, axes
    return inputs[0]


def _binary(combine: Callable[[Size, Size], Size | None]) -> Tracker:
    def tracker(node: ir.Node, inputs: Sequence[Entries | None], axes: AxisMap) -> Entries | None:
        del axes
        left, right = inputs[0], inputs[1]
        if left is None or right is None:
            return None
        n = max(len(left), len(right))
        if len(left) not in (1, n) or len(right) not in (1, n):
            return None
        made = []
        for i in range(n):
            a, b = left[i % len(left)], right[i % len(right)]
            value = combine(a.size, b.size)
            if value is None:
                value = Polynomial.symbol(f"({a.size} {node.op_type} {b.size})")
            made.append(Entry(value, a.sources + b.sources))
        return tuple(made)

    return tracker


def _divide(left: Size, right: Size) -> Size | None:
    if isinstance(left, int) and isinstance(right, int) and right:
        return left // right
    return divide(left, right)


def _extreme(choose: Callable[[int, int], int]) -> Callable[[Size, Size], Size | None]:
    def combine(left: Size, right: Size) -> Size | None:
        if isinstance(left, int) and isinstance(right, int):
            return choose(left, right)
        return left if left == right else None

    return combine


def _equal(left: Size, right: Size) -> Size | None:
    if left == right:
        return 1
    if isinstance(left, int) and isinstance(right, int):
        return 0
    # a size of named dimensions is never the -1 or 0 that it is compared with here
    return 0 if any(isinstance(s, int) and s <= 0 for s in (left, right)) else None


def _where(node: ir.Node, inputs: Sequence[Entries | None], axes: AxisMap) -> Entries | None:
    del node, axes
    condition, yes, no = inputs
    if condition is None or yes is None or no is None:
        return None
    n = max(len(condition), len(yes), len(no))
    made = []
    for i in range(n):
        test = condition[i % len(condition)].size
        if test not in (0, 1):
            return None
        chosen = yes if test == 1 else no
        made.append(chosen[i % len(chosen)])
    return tuple(made)


def _reduce_product(
    node: ir.Node, inputs: Sequence[Entries | None], axes: AxisMap
) -> Entries | None:
    del node, axes
    entries = inputs[0] or ()
    sources = tuple(source for entry in entries for source in entry.sources)
    return (Entry(product([entry.size for entry in entries]), sources),)


def _constant_of_shape(
    node: ir.Node, inputs: Sequence[Entries | None], axes: AxisMap
) -> Entries | None:
    del axes
    lengths = inputs[0]
    if lengths is None or len(lengths) > 1 or not all(isinstance(e.size, int) for e in lengths):
        return None
    length = static(lengths[0].size) if lengths else 1
    attribute = node.attributes.get("value")
    array = attribute.as_tensor().numpy() if attribute is not None else np.zeros(1, np.float32)
    if array.dtype.kind not in "iu" or length > _MAX_ENTRIES:
        return None
    return tuple(Entry(int(array.reshape(-1)[0])) for _ in range(length))


FROM_AXES = frozenset({"Shape", "Size"})
"""Ops that make integers from the axes of what they read; the others need tracked integers."""
_TRACKERS: dict[str, Tracker] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _carry,
    "Cast": _cast,
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _squeeze,
    "Reshape": _squeeze,
    "Add": _binary(lambda a, b: a + b),
    "Sub": _binary(lambda a, b: a - b),
    "Mul": _binary(lambda a, b: a * b),
    "Div": _binary(_divide),
    "Max": _binary(_extreme(max)),
    "Min": _binary(_extreme(min)),
    "Equal": _binary(_equal),
    "Where": _where,
    "ReduceProd": _reduce_product,
    "ConstantOfShape": _constant_of_shape,
}

__all__ = ["FROM_AXES", "SHAPE_SLOTS", "data_sources", "track", "track_constant"]
