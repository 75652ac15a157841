"""The steps of a random network: each adds a few nodes, or none where no value fits."""

from __future__ import annotations

import math

import numpy as np
from tests.laws.random_graphs import BATCH, Graph, Value, step

_WIDTHS = (2, 3, 4, 6, 8, 12)


def begin(graph: Graph) -> int:
    """Declare an input and give it channels; return how many inputs there are."""
    kind = graph.random.randrange(3)
    if kind == 0:
        shape: tuple[int, ...] = (BATCH, graph.random.choice((3, 5)))
    elif kind == 1:
        shape = (BATCH, graph.random.choice((4, 6)), graph.random.choice((3, 5)))
    else:
        shape = (BATCH, graph.random.choice((1, 3)), 6, 6)
    names = ("input", "other") if graph.random.random() < 0.3 else ("input",)
    graph.values += [Value(name, shape) for name in names]
    if kind == 2:
        conv(graph)
        conv(graph)
    else:
        matmul(graph)
    return len(names)


def width(graph: Graph) -> int:
    return graph.random.choice(_WIDTHS)


# --- layers with weights -----------------------------------------------------------------


@step
def matmul(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 1)
    if x is None:
        return
    out = width(graph)
    y = graph.node("MatMul", [x.name, graph.weight(x.shape[-1], out)], (*x.shape[:-1], out))
    if graph.random.random() < 0.6:
        graph.node("Add", [y.name, graph.weight(out)], y.shape)


@step
def matmul_from_the_left(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 2)
    if x is None:
        return
    out = width(graph)
    shape = (*x.shape[:-2], out, x.shape[-1])
    graph.node("MatMul", [graph.weight(out, x.shape[-2]), x.name], shape)


@step
def gemm(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank == 2)
    if x is None:
        return
    out, swap = width(graph), graph.random.randrange(2)
    shape = (out, x.shape[1]) if swap else (x.shape[1], out)
    inputs = [x.name, graph.weight(*shape)]
    if graph.random.random() < 0.7:
        inputs.append(graph.weight(*graph.random.choice([(out,), (1, out), (1,)])))
    graph.node("Gemm", inputs, (x.shape[0], out), transB=swap)


@step
def einsum(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank in (2, 3, 4))
    if x is None:
        return
    letters = "abcd"[: x.rank]
    axis = graph.random.randrange(x.rank)
    out = width(graph)
    target = letters.replace(letters[axis], "z")
    shape = [out if i == axis else s for i, s in enumerate(x.shape)]
    weight = graph.weight(x.shape[axis], out)
    graph.node("Einsum", [x.name, weight], shape, equation=f"{letters},{letters[axis]}z->{target}")


@step
def conv(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank in (3, 4) and min(v.shape[2:]) >= 1)
    if x is None:
        return
    channels, space = x.shape[1], x.shape[2:]
    groups = graph.random.choice([g for g in (1, 1, 1, 2, 3, channels) if channels % g == 0])
    out = groups * graph.random.choice((1, 2, 3)) if groups > 1 else width(graph)
    kernel = graph.random.choice((1, 3)) if min(space) >= 2 else 1
    pads = kernel // 2
    inputs = [x.name, graph.weight(out, channels // groups, *([kernel] * len(space)))]
    if graph.random.random() < 0.5:
        inputs.append(graph.weight(out))
    pad = [pads] * (2 * len(space))
    graph.node("Conv", inputs, (x.shape[0], out, *space), group=groups, pads=pad)


@step
def conv_transpose(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank in (3, 4))
    if x is None:
        return
    channels, space = x.shape[1], x.shape[2:]
    groups = graph.random.choice([g for g in (1, 1, 2, channels) if channels % g == 0])
    each = graph.random.choice((1, 2, 3))
    inputs = [x.name, graph.weight(channels, each, *([2] * len(space)))]
    if graph.random.random() < 0.5:
        inputs.append(graph.weight(groups * each))
    shape = (x.shape[0], groups * each, *(s + 1 for s in space))
    graph.node("ConvTranspose", inputs, shape, group=groups)


@step
def embedding(graph: Graph) -> None:
    """A table read at computed positions."""
    x = graph.pick(lambda v: v.rank == 2)
    if x is None:
        return
    top = graph.node("ArgMax", [x.name], (x.shape[0],), axis=1, keepdims=0)
    graph.values.remove(top)
    out = width(graph)
    table = graph.weight(x.shape[1], out)
    graph.node("Gather", [table, top.name], (x.shape[0], out), axis=0)


@step
def words(graph: Graph) -> None:
    """Rows read by ids from outside, here and there by a second input, or again by a tied head."""
    rows, out, n = width(graph), width(graph), graph.random.choice((1, 3, 5))
    table, shape = graph.weight(rows, out), (BATCH, n)
    last = graph.node("Gather", [table, graph.ids_below(rows, shape)], (*shape, out))
    if graph.random.random() < 0.2:
        again = graph.node("Gather", [table, graph.ids_below(rows, shape)], last.shape)
        last = graph.node("Mul", [last.name, again.name], last.shape)
    if graph.random.random() < 0.3:
        turned = graph.node("Transpose", [table], (out, rows), perm=[1, 0])
        graph.values.remove(turned)
        graph.node("MatMul", [last.name, turned.name], (*shape, rows))


@step
def lstm(graph: Graph) -> None:
    """Recurrent units, some of which may go."""
    x = graph.pick(lambda v: v.rank == 3)
    if x is None or graph.random.random() < 0.7:
        return
    n, hidden = x.shape[2], 3
    weights = [graph.weight(1, 4 * hidden, n), graph.weight(1, 4 * hidden, hidden)]
    shape = (x.shape[0], 1, x.shape[1], hidden)
    graph.node("LSTM", [x.name, *weights], shape, hidden_size=hidden)


# --- normalisations ----------------------------------------------------------------------


@step
def batch_norm(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 2)
    if x is None:
        return
    c = x.shape[1]
    scale, bias, mean = graph.weight(c), graph.weight(c), graph.weight(c)
    variance = graph.weight(c, low=0.5, high=2.0)
    graph.node("BatchNormalization", [x.name, scale, bias, mean, variance], x.shape)


@step
def layer_norm(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 2 and v.shape[-1] > 1)
    if x is None:
        return
    d = x.shape[-1]
    inputs = [x.name, graph.weight(d), graph.weight(d)]
    graph.node("LayerNormalization", inputs, x.shape, axis=-1, epsilon=0.1)


@step
def other_norm(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank in (3, 4) and math.prod(v.shape[2:]) > 1)
    if x is None:
        return
    c, kind = x.shape[1], graph.random.randrange(3 if graph.opset >= 21 else 2)
    if kind == 0:
        inputs = [x.name, graph.weight(c), graph.weight(c)]
        graph.node("InstanceNormalization", inputs, x.shape, epsilon=0.1)
    elif kind == 1:
        axis = graph.random.randrange(1, x.rank)
        shifted = graph.node("Add", [x.name, graph.constant(np.float32(3.0))], x.shape)
        graph.node("LpNormalization", [shifted.name], x.shape, axis=axis)
    else:
        groups = graph.random.choice([g for g in (1, 2, 3) if c % g == 0])
        inputs = [x.name, graph.weight(c), graph.weight(c)]
        graph.node("GroupNormalization", inputs, x.shape, num_groups=groups, epsilon=0.1)


@step
def softmax(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 2)
    if x is not None:
        axis = graph.random.choice((-1, -1, graph.random.randrange(1, x.rank)))
        graph.node(graph.random.choice(("Softmax", "LogSoftmax")), [x.name], x.shape, axis=axis)


# --- element by element ------------------------------------------------------------------

_ACTIVATIONS = ("Relu", "Sigmoid", "Tanh", "Erf", "Softplus", "HardSwish", "Cos", "Neg", "Gelu")


@step
def activation(graph: Graph) -> None:
    x = graph.pick()
    op = graph.random.choice(_ACTIVATIONS)
    if x is not None and (op != "Gelu" or graph.opset >= 20):
        graph.node(op, [x.name], x.shape)


@step
def scale(graph: Graph) -> None:
    """A vector along one axis, or one number."""
    x = graph.pick(lambda v: v.rank >= 1)
    if x is None:
        return
    axis = graph.random.randrange(x.rank)
    shape = (x.shape[axis], *([1] * (x.rank - 1 - axis))) if graph.random.random() < 0.8 else ()
    op = graph.random.choice(("Add", "Mul", "Sub", "Max", "PRelu"))
    graph.node(op, [x.name, graph.weight(*shape)], x.shape)


@step
def join_alike(graph: Graph) -> None:
    """Residuals and gates."""
    x = graph.pick()
    if x is None:
        return
    y = graph.pick(lambda v: v.shape == x.shape and v != x)
    if y is not None:
        graph.node(graph.random.choice(("Add", "Mul", "Min", "Sub")), [x.name, y.name], x.shape)


@step
def join_broadcast(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 2)
    if x is None:
        return
    y = graph.pick(
        lambda v: (
            v.rank <= x.rank
            and v != x
            and all(
                a in (1, b) or b == 1 for a, b in zip(v.shape[::-1], x.shape[::-1], strict=False)
            )
        )
    )
    if y is not None:
        shape = np.broadcast_shapes(x.shape, y.shape)
        graph.node(graph.random.choice(("Add", "Mul")), [x.name, y.name], shape)


@step
def where(graph: Graph) -> None:
    x = graph.pick(lambda v: v.rank >= 1)
    if x is None:
        return
    mask = graph.node("Greater", [x.name, graph.constant(np.float32(0.1))], x.shape)
    graph.values.remove(mask)
    graph.node("Where", [mask.name, x.name, graph.weight(x.shape[-1])], x.shape)


@step
def cast(graph: Graph) -> None:
    x = graph.pick()
    if x is not None:
        there = graph.node("Cast", [x.name], x.shape, to=11)
        graph.values.remove(there)
        graph.node("Cast", [there.name], x.shape, to=1)
