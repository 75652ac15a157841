"""Steps of a random network that move, part, join, reduce or index axes."""

from __future__ import annotations

import math

import numpy as np
from tests.laws.random_graphs import BATCH, Graph, Value, step


@step
def transpose(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 2)
    if x is None:
        return
    behind = list(range(1, x.rank))
    graph.random.shuffle(behind)
    perm = [0, *behind] if graph.random.random() < 0.8 else [*behind, 0]
    graph.node("Transpose", [x.name], [x.shape[p] for p in perm], perm=perm)


@step
def reshape(graph: Graph) -> None:
    """Merge two neighbours, or part an axis; the target is spelled in one of four ways."""
    x = graph.pick(lambda v: v.rank >= 2 and v.shape[0] == BATCH)
    if x is None:
        return
    if graph.random.random() < 0.5 and x.rank >= 3:
        at = graph.random.randrange(1, x.rank - 1)
        shape = [*x.shape[:at], x.shape[at] * x.shape[at + 1], *x.shape[at + 2 :]]
    else:
        at = graph.random.randrange(1, x.rank)
        inner = graph.random.choice([d for d in (1, 2, 3, 4) if x.shape[at] % d == 0])
        shape = [*x.shape[:at], x.shape[at] // inner, inner, *x.shape[at + 1 :]]
    if len(shape) <= 5:
        graph.node("Reshape", [x.name, target(graph, x, shape)], shape)


def target(graph: Graph, x: Value, shape: list[int]) -> str:
    kind = graph.random.randrange(4)
    if kind == 0:
        return graph.ints(-1, *shape[1:])
    if kind == 1:
        at = graph.random.randrange(1, len(shape))
        return graph.ints(0, *shape[1:at], -1, *shape[at + 1 :])
    if kind == 2:
        return graph.ints(0, *shape[1:])
    sizes = graph.node("Shape", [x.name], (x.rank,))
    first = graph.node("Gather", [sizes.name, graph.ints(0)], (1,), axis=0)
    whole = graph.node("Concat", [first.name, graph.ints(*shape[1:])], (len(shape),), axis=0)
    for value in (sizes, first, whole):
        graph.values.remove(value)
    return whole.name


@step
def flatten(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 2)
    if x is not None:
        at = graph.random.randrange(1, x.rank)
        shape = (math.prod(x.shape[:at]), math.prod(x.shape[at:]))
        graph.node("Flatten", [x.name], shape, axis=at)


@step
def squeeze(graph: Graph) -> None:
    x = graph.pick(lambda v: 1 in v.shape[1:])
    if x is not None:
        at = graph.random.choice([i for i, s in enumerate(x.shape) if i and s == 1])
        shape = [s for i, s in enumerate(x.shape) if i != at]
        graph.node("Squeeze", [x.name, graph.ints(at)], shape)


@step
def unsqueeze(graph: Graph) -> None:
    x = graph.pick(lambda v: 1 <= v.rank <= 3)
    if x is not None:
        at = graph.random.randrange(1, x.rank + 1)
        shape = [*x.shape[:at], 1, *x.shape[at:]]
        graph.node("Unsqueeze", [x.name, graph.ints(at)], shape)


@step
def expand(graph: Graph) -> None:
    x = graph.pick(lambda v: 1 in v.shape[1:])
    if x is not None:
        spelled = [
            graph.random.choice((1, 3)) if s == 1 and i else 1 for i, s in enumerate(x.shape)
        ]
        shape = np.broadcast_shapes(x.shape, tuple(spelled))
        graph.node("Expand", [x.name, graph.ints(*spelled)], shape)


@step
def tile(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 2)
    if x is not None:
        times = [1, *(graph.random.choice((1, 1, 2)) for _ in x.shape[1:])]
        shape = [s * t for s, t in zip(x.shape, times, strict=True)]
        graph.node("Tile", [x.name, graph.ints(*times)], shape)


@step
def concat(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 2)
    if x is None:
        return
    axis = graph.random.randrange(1, x.rank)
    alike = [
        v
        for v in graph.values
        if v.rank == x.rank
        and all(a == b for i, (a, b) in enumerate(zip(v.shape, x.shape, strict=True)) if i != axis)
    ]
    parts = [x, *(graph.random.choice(alike) for _ in range(graph.random.randrange(1, 3)))]
    shape = list(x.shape)
    shape[axis] = sum(v.shape[axis] for v in parts)
    graph.node("Concat", [v.name for v in parts], shape, axis=axis)


@step
def split(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 2 and max(v.shape[1:]) > 1)
    if x is None:
        return
    axis = graph.random.choice([i for i, s in enumerate(x.shape) if i and s > 1])
    total = x.shape[axis]
    if graph.random.random() < 0.5:
        first = graph.random.randrange(1, total)
        lengths = [first, total - first]
        inputs, extra = [x.name, graph.ints(*lengths)], {}
    else:
        n = graph.random.choice(
            [n for n in (2, 3, total) if n <= total and total > -(-total // n) * (n - 1)]
        )
        chunk = -(-total // n)
        lengths = [*([chunk] * (n - 1)), total - chunk * (n - 1)]
        inputs, extra = [x.name], {"num_outputs": n}
    shapes = [[n if i == axis else s for i, s in enumerate(x.shape)] for n in lengths]
    graph.split("Split", inputs, shapes, axis=axis, **extra)


@step
def slice_(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 2 and max(v.shape[1:]) > 1)
    if x is None:
        return
    axis = graph.random.choice([i for i, s in enumerate(x.shape) if i and s > 1])
    total = x.shape[axis]
    start, stop = sorted(graph.random.sample(range(total + 1), 2))
    shape = [stop - start if i == axis else s for i, s in enumerate(x.shape)]
    spelled = (start, graph.random.choice((stop, 2**63 - 1)) if stop == total else stop)
    if graph.random.random() < 0.3 and stop < total:
        spelled = (start - total, stop - total)
    bounds = [graph.ints(v) for v in (*spelled, axis)]
    graph.node("Slice", [x.name, *bounds], shape)


@step
def strided_slice(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 2)
    if x is not None:
        axis = graph.random.randrange(1, x.rank)
        shape = [-(-s // 2) if i == axis else s for i, s in enumerate(x.shape)]
        bounds = [graph.ints(v) for v in (0, 2**31 - 1, axis, 2)]
        graph.node("Slice", [x.name, *bounds], shape)


@step
def pad(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 2)
    if x is None:
        return
    before = [0, *(graph.random.choice((0, 0, 1, 2)) for _ in x.shape[1:])]
    after = [0, *(graph.random.choice((0, 0, 1, 2)) for _ in x.shape[1:])]
    shape = [s + b + a for s, b, a in zip(x.shape, before, after, strict=True)]
    inputs = [x.name, graph.ints(*before, *after)]
    if graph.random.random() < 0.5:
        inputs.append(graph.constant(np.float32(0.5)))
    graph.node("Pad", inputs, shape)


@step
def gather(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 2)
    if x is None:
        return
    axis, kind = graph.random.randrange(1, x.rank), graph.random.randrange(4)
    total = x.shape[axis]
    if kind == 0:
        positions = np.array(graph.random.randrange(-total, total))
    elif kind == 1:
        positions = np.array([graph.random.randrange(total) for _ in range(3)])
    elif kind == 2 and total % 2 == 0:
        positions = np.arange(total).reshape(2, -1)
    else:
        start, stop = sorted(graph.random.sample(range(total + 1), 2))
        positions = np.arange(start, stop)
    index = graph.constant(positions.astype(graph.random.choice((np.int64, np.int32))))
    shape = [*x.shape[:axis], *positions.shape, *x.shape[axis + 1 :]]
    if len(shape) <= 5:
        graph.node("Gather", [x.name, index], shape, axis=axis)


_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceLogSumExp",
               "ReduceL1", "ReduceSumSquare", "ReduceProd")  # fmt: skip


@step
def reduce(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 2)
    if x is None:
        return
    axes = sorted(graph.random.sample(range(1, x.rank), graph.random.randrange(1, x.rank)))
    keep = graph.random.randrange(2)
    shape = [1 if i in axes else s for i, s in enumerate(x.shape) if keep or i not in axes]
    op = graph.random.choice(_REDUCTIONS)
    name = x.name
    if op == "ReduceL2":  # away from the kink at 0, where rounding grows
        name = graph.node("Add", [x.name, graph.constant(np.float32(2.0))], x.shape).name
    graph.node(op, [name, graph.ints(*axes)], shape, keepdims=keep)


@step
def cumulative_sum(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 2)
    if x is not None:
        axis = graph.constant(np.array(graph.random.randrange(1, x.rank), np.int64))
        graph.node("CumSum", [x.name, axis], x.shape)


@step
def top_k(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 2 and v.shape[-1] >= 2)
    if x is not None:
        shape = (*x.shape[:-1], 2)
        _, index = graph.split("TopK", [x.name, graph.ints(2)], [shape, shape])
        graph.values.remove(index)
        if graph.random.random() < 0.5:
            graph.node("GatherElements", [x.name, index.name], shape, axis=-1)


@step
def triangle(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 2)
    if x is not None:
        graph.node("Trilu", [x.name], x.shape, upper=graph.random.randrange(2))


@step
def of_its_own_size(graph: Graph) -> None:
    """Divide by a size that the graph reads off itself."""
    x = graph.pick(lambda v: v.rank >= 2)
    if x is None or graph.random.random() < 0.5:
        return
    axis = graph.random.randrange(x.rank)
    sizes = graph.node("Shape", [x.name], (x.rank,))
    one = graph.node("Gather", [sizes.name, graph.ints(axis)], (1,), axis=0)
    as_float = graph.node("Cast", [one.name], (1,), to=1)
    for value in (sizes, one, as_float):
        graph.values.remove(value)
    graph.node("Div", [x.name, as_float.name], x.shape)
