"""Products that sum over an axis: MatMul, Gemm, Einsum."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from secateur.graph_passes.axes.relations import (
    AXIS_RULES,
    OUT,
    Fold,
    Fresh,
    Port,
    Relation,
    Same,
    by_units,
)
from secateur.graph_passes.axes.view import View


@AXIS_RULES.register("MatMul")
@by_units
def matmul(view: View) -> Iterator[Relation]:
    """(..., M, K) @ (..., K, N) -> (..., M, N); 1-D operands as in NumPy."""
    left, right = view.shape(0), view.shape(1)
    if left is None or right is None:
        return
    a, b = len(left), len(right)
    yield Fold((Port(0, a - 1), Port(1, max(b - 2, 0))), neutral=0.0)
    n_batch = max(a, b, 2) - 2
    yield from broadcast_axes(view, (0, 1), n_batch)
    out = n_batch
    if a > 1:
        yield Same((Port(0, a - 2), Port(OUT, out)))
        out += 1
    if b > 1:
        yield Same((Port(1, b - 1), Port(OUT, out)))


def broadcast_axes(view: View, slots: tuple[int, int], n_batch: int) -> Iterator[Relation]:
    """Relate the leading ``n_batch`` axes of operands whose last two axes are matrices."""
    for axis in range(n_batch):
        ports: list[Port] = []
        units: list[Port] = []
        for slot in slots:
            shape = view.shape(slot) or ()
            here = axis - n_batch + len(shape) - 2
            if here < 0:
                continue
            (units if shape[here] == 1 else ports).append(Port(slot, here))
        yield Same((*(ports or units[:1]), Port(OUT, axis)))


@AXIS_RULES.register("com.microsoft:FusedMatMul")
def fused_matmul(view: View) -> Iterator[Relation]:
    """(..., M, K) @ (..., K, N) with either operand's last two axes swapped."""
    a, b = view.rank(0), view.rank(1)
    if a is None or b is None or min(a, b) < 2 or view.integer("transBatchA", 0):
        return
    if view.integer("transBatchB", 0):
        return
    swap_a, swap_b = view.integer("transA", 0), view.integer("transB", 0)
    yield Fold((Port(0, a - 2 if swap_a else a - 1), Port(1, b - 1 if swap_b else b - 2)), 0.0)
    n_batch = max(a, b) - 2
    yield from broadcast_axes(view, (0, 1), n_batch)
    yield Same((Port(0, a - 1 if swap_a else a - 2), Port(OUT, n_batch)))
    yield Same((Port(1, b - 2 if swap_b else b - 1), Port(OUT, n_batch + 1)))


@AXIS_RULES.register("Gemm", "com.microsoft:FusedGemm")
@by_units
def gemm(view: View) -> Iterator[Relation]:
    """(M, K) @ (K, N) + C -> (M, N), operands possibly transposed; C broadcasts."""
    swap_a, swap_b = view.integer("transA", 0), view.integer("transB", 0)
    yield Fold((Port(0, 0 if swap_a else 1), Port(1, 1 if swap_b else 0)), neutral=0.0)
    yield Same((Port(0, 1 if swap_a else 0), Port(OUT, 0)))
    yield Same((Port(1, 0 if swap_b else 1), Port(OUT, 1)))
    bias = view.shape(2) or ()
    for axis, length in enumerate(bias):
        if length != 1:
            yield Same((Port(2, axis), Port(OUT, axis + 2 - len(bias))))


@AXIS_RULES.register("Einsum")
def einsum(view: View) -> Iterator[Relation]:
    """A letter is one axis wherever it stands; letters that vanish are summed.

    An equation with an ellipsis stays frozen.
    """
    equation = view.string("equation", "").replace(" ", "")
    if "." in equation:
        return
    left, arrow, right = equation.partition("->")
    operands = left.split(",")
    if not arrow:
        letters = left.replace(",", "")
        right = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    ports: dict[str, list[Port]] = defaultdict(list)
    for slot, operand in enumerate(operands):
        shape = view.shape(slot)
        if shape is None or len(shape) != len(operand):
            return
        for axis, letter in enumerate(operand):
            if shape[axis] != 1:
                ports[letter].append(Port(slot, axis))
    for letter in dict.fromkeys(left.replace(",", "")):
        out = tuple(Port(OUT, axis) for axis, other in enumerate(right) if other == letter)
        if not ports[letter]:
            yield from (Fresh(port, 1) for port in out)
        elif out:
            yield Same((*ports[letter], *out))
        else:
            yield Fold(tuple(ports[letter]), neutral=0.0)
