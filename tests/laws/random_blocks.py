"""Steps of a random network that are whole blocks: attention, pooling, shuffles, routing."""

from __future__ import annotations

import math

import numpy as np
from tests.laws.random_graphs import BATCH, Graph, Value, step
from tests.laws.random_steps import width


def _linear(graph: Graph, x: Value, out: int) -> Value:
    y = graph.node("MatMul", [x.name, graph.weight(x.shape[-1], out)], (*x.shape[:-1], out))
    return graph.node("Add", [y.name, graph.weight(out)], y.shape)


def _heads(graph: Graph, x: Value, heads: int) -> Value:
    """(B, N, H*Dh) -> (B, H, N, Dh)."""
    b, n, d = x.shape
    spelled = graph.ints(0, graph.random.choice((0, -1)), heads, d // heads)
    y = graph.node("Reshape", [x.name, spelled], (b, n, heads, d // heads))
    return graph.node("Transpose", [y.name], (b, heads, n, d // heads), perm=[0, 2, 1, 3])


def _merged(graph: Graph, x: Value, residual: Value) -> None:
    b, h, n, d = x.shape
    y = graph.node("Transpose", [x.name], (b, n, h, d), perm=[0, 2, 1, 3])
    spelled = graph.ints(0, 0, graph.random.choice((-1, h * d)))
    z = graph.node("Reshape", [y.name, spelled], (b, n, h * d))
    out = _linear(graph, z, residual.shape[-1])
    graph.node("Add", [residual.name, out.name], residual.shape)


def _scores(graph: Graph, q: Value, k: Value, v: Value) -> Value:
    b, h, n, d = q.shape
    turned = graph.node("Transpose", [k.name], (b, h, d, k.shape[2]), perm=[0, 1, 3, 2])
    scores = graph.node("MatMul", [q.name, turned.name], (b, h, n, k.shape[2]))
    scaled = graph.node("Mul", [scores.name, graph.constant(np.float32(0.5))], scores.shape)
    probabilities = graph.node("Softmax", [scaled.name], scores.shape, axis=-1)
    return graph.node("MatMul", [probabilities.name, v.name], (b, h, n, v.shape[3]))


def _sequence(value: Value) -> bool:
    return value.rank == 3 and value.shape[0] == BATCH and 2 <= value.shape[1] <= 12


@step
def attention(graph: Graph) -> None:
    """Three projections, or one that is split; value heads of another width."""
    x = graph.pick(_sequence)
    if x is None:
        return
    heads, d, dv = graph.random.choice((2, 3)), graph.random.choice((2, 4)), 3
    if graph.random.random() < 0.5:
        parts = [_linear(graph, x, heads * w) for w in (d, d, dv)]
    else:
        joined = _linear(graph, x, heads * (2 * d + dv))
        lengths = [heads * d, heads * d, heads * dv]
        shapes = [(*x.shape[:2], n) for n in lengths]
        parts = graph.split("Split", [joined.name, graph.ints(*lengths)], shapes, axis=2)
    q, k, v = (_heads(graph, part, heads) for part in parts)
    _merged(graph, _scores(graph, q, k, v), x)


@step
def interleaved_attention(graph: Graph) -> None:
    """One projection, (H, 3, Dh) or (3, H, Dh) inside, taken apart by Gather or Split."""
    x = graph.pick(_sequence)
    if x is None:
        return
    b, n, _ = x.shape
    heads, d = graph.random.choice((2, 3)), 4
    joined = _linear(graph, x, 3 * heads * d)
    if graph.random.random() < 0.5:
        y = graph.node("Reshape", [joined.name, graph.ints(0, 0, 3, heads, d)], (b, n, 3, heads, d))
        y = graph.node("Transpose", [y.name], (3, b, heads, n, d), perm=[2, 0, 3, 1, 4])
        q, k, v = (
            graph.node("Gather", [y.name, graph.constant(np.array(i))], (b, heads, n, d), axis=0)
            for i in range(3)
        )
    else:
        y = graph.node(
            "Reshape", [joined.name, graph.ints(0, 0, heads, 3 * d)], (b, n, heads, 3 * d)
        )
        y = graph.node("Transpose", [y.name], (b, heads, n, 3 * d), perm=[0, 2, 1, 3])
        q, k, v = graph.split("Split", [y.name], [(b, heads, n, d)] * 3, axis=3, num_outputs=3)
    _merged(graph, _scores(graph, q, k, v), x)


@step
def grouped_attention(graph: Graph) -> None:
    """Key-value heads are repeated for their query heads."""
    x = graph.pick(_sequence)
    if x is None:
        return
    b, n, _ = x.shape
    groups, times, d = 2, graph.random.choice((2, 3)), 4
    heads = groups * times
    q = _heads(graph, _linear(graph, x, heads * d), heads)
    repeated = []
    for _ in range(2):
        k = _heads(graph, _linear(graph, x, groups * d), groups)
        wide = graph.node("Unsqueeze", [k.name, graph.ints(2)], (b, groups, 1, n, d))
        target = graph.ints(1, 1, times, 1, 1)
        many = graph.node("Expand", [wide.name, target], (b, groups, times, n, d))
        spelled = graph.ints(-1, heads, n, d)
        repeated.append(graph.node("Reshape", [many.name, spelled], (b, heads, n, d)))
    _merged(graph, _scores(graph, q, *repeated), x)


@step
def fused_attention(graph: Graph) -> None:
    x = graph.pick(_sequence)
    if x is None:
        return
    heads, d = graph.random.choice((2, 3)), 4
    q, k, v = (_linear(graph, x, heads * d) for _ in range(3))
    if graph.opset < 23:
        op, count = "com.microsoft:MultiHeadAttention", {"num_heads": heads}
        y = graph.node(op, [q.name, k.name, v.name], q.shape, **count)
    elif graph.random.random() < 0.5:
        y = graph.node("Attention", [q.name, k.name, v.name], q.shape,
                       q_num_heads=heads, kv_num_heads=heads)  # fmt: skip
    else:
        q, k, v = (_heads(graph, part, heads) for part in (q, k, v))
        shape = (x.shape[0], heads, x.shape[1], d)
        y = graph.node("Attention", [q.name, k.name, v.name], shape,
                       is_causal=graph.random.randrange(2), scale=0.5)  # fmt: skip
        _merged(graph, y, x)
        return
    graph.node("Add", [x.name, _linear(graph, y, x.shape[-1]).name], x.shape)


@step
def feed_forward(graph: Graph) -> None:
    """Two layers around an activation, gated or not, with a residual."""
    x = graph.pick(lambda v: v.rank >= 2)
    if x is None:
        return
    inner = width(graph)
    up = _linear(graph, x, inner)
    y = graph.node("Sigmoid", [up.name], up.shape)
    if graph.random.random() < 0.5:
        y = graph.node("Mul", [y.name, _linear(graph, x, inner).name], up.shape)
    graph.node("Add", [x.name, _linear(graph, y, x.shape[-1]).name], x.shape)


@step
def experts(graph: Graph) -> None:
    """Every expert is computed; a router of two weighs them."""
    x = graph.pick(lambda v: v.rank == 2)
    if x is None or graph.random.random() < 0.5:
        return
    n, d = x.shape
    count, inner = 4, 3
    logits = graph.node("MatMul", [x.name, graph.weight(d, count)], (n, count))
    routed = graph.node("Softmax", [logits.name], (n, count), axis=-1)
    stacked = [graph.weight(count, d, inner), graph.weight(count, inner, d)]
    up = graph.node("Einsum", [x.name, stacked[0]], (n, count, inner), equation="nd,edi->nei")
    hidden = graph.node("Relu", [up.name], up.shape)
    down = graph.node("Einsum", [hidden.name, stacked[1]], (n, count, d), equation="nei,eid->ned")
    graph.node("Einsum", [down.name, routed.name], (n, d), equation="ned,ne->nd")


@step
def channel_shuffle(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank == 4 and v.shape[0] == BATCH and v.shape[1] % 2 == 0)
    if x is None:
        return
    b, c, h, w = x.shape
    y = graph.node("Reshape", [x.name, graph.ints(-1, 2, c // 2, h, w)], (b, 2, c // 2, h, w))
    z = graph.node("Transpose", [y.name], (b, c // 2, 2, h, w), perm=[0, 2, 1, 3, 4])
    graph.node("Reshape", [z.name, graph.ints(-1, c, h, w)], x.shape)


@step
def pool(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank == 4 and min(v.shape[2:]) >= 2)
    if x is None:
        return
    op = graph.random.choice(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"))
    if op.startswith("Global"):
        graph.node(op, [x.name], (*x.shape[:2], 1, 1))
        return
    shape = (*x.shape[:2], *(s - 1 for s in x.shape[2:]))
    graph.node(op, [x.name], shape, kernel_shape=[2, 2])


@step
def squeeze_excite(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank == 4)
    if x is None:
        return
    b, c = x.shape[:2]
    y = graph.node("GlobalAveragePool", [x.name], (b, c, 1, 1))
    inner = width(graph)
    y = graph.node("Conv", [y.name, graph.weight(inner, c, 1, 1)], (b, inner, 1, 1))
    y = graph.node("Relu", [y.name], y.shape)
    y = graph.node("Conv", [y.name, graph.weight(c, inner, 1, 1)], (b, c, 1, 1))
    y = graph.node("Sigmoid", [y.name], y.shape)
    graph.node("Mul", [x.name, y.name], x.shape)


@step
def pixels(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank == 4)
    if x is None:
        return
    b, c, h, w = x.shape
    if c % 4 == 0 and graph.random.random() < 0.5:
        mode = graph.random.choice(("DCR", "CRD"))
        shape = (b, c // 4, 2 * h, 2 * w)
        graph.node("DepthToSpace", [x.name], shape, blocksize=2, mode=mode)
    elif h % 2 == 0 and w % 2 == 0:
        graph.node("SpaceToDepth", [x.name], (b, 4 * c, h // 2, w // 2), blocksize=2)


@step
def resize(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank == 4 and v.shape[2] <= 6)
    if x is None:
        return
    b, c, h, w = x.shape
    if graph.random.random() < 0.5:
        scales = graph.constant(np.array([1, 1, 2, 2], np.float32))
        graph.node("Resize", [x.name, "", scales], (b, c, 2 * h, 2 * w), mode="nearest")
    else:
        sizes = graph.ints(BATCH, c, h + 1, w)
        if b == BATCH:
            graph.node("Resize", [x.name, "", "", sizes], (b, c, h + 1, w), mode="nearest")


@step
def patches(graph: Graph) -> None:
    """(B, C, H, W) -> (B, H*W, C), with a class token before it."""
    x = graph.pick(lambda v: v.rank == 4 and v.shape[0] == BATCH and math.prod(v.shape[2:]) <= 36)
    if x is None:
        return
    b, c, h, w = x.shape
    y = graph.node("Reshape", [x.name, graph.ints(0, c, -1)], (b, c, h * w))
    y = graph.node("Transpose", [y.name], (b, h * w, c), perm=[0, 2, 1])
    token = graph.node("Expand", [graph.weight(1, 1, c), graph.ints(BATCH, 1, 1)], (b, 1, c))
    y = graph.node("Concat", [token.name, y.name], (b, h * w + 1, c), axis=1)
    y = graph.node("Add", [y.name, graph.weight(1, h * w + 1, c)], y.shape)
    graph.node("Gather", [y.name, graph.constant(np.array(0))], (b, c), axis=1)


@step
def self_product(graph: Graph) -> None:
    """x @ x^T of computed values."""
    x = graph.pick(lambda v: v.rank >= 2)
    if x is None:
        return
    perm = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    y = graph.node("Transpose", [x.name], [x.shape[p] for p in perm], perm=perm)
    shape = (*x.shape[:-1], x.shape[-2])
    graph.node("MatMul", [x.name, y.name], shape)
