"""Shape arithmetic on the host: the same ops on whole numbers that are known while running.

Sizes, and what a graph computes of them, never become tensors: nothing waits for a device,
and under ``torch.export`` a symbol stays a symbol.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence

import numpy as np
import torch

from secateur.export.torch_ops.call import DTYPES, Call, Integers
from secateur.registry import Registry

IntegerOp = Callable[[Call, tuple[Integers, ...]], Integers | None]

INTEGER_OPS: Registry[IntegerOp] = Registry("integer op")
"""Run instead of the torch op where every input is known; None hands over to the torch op."""


def _quotient(left: int, right: int) -> int:
    """ONNX cuts towards zero; a symbol is a size, which is never negative."""
    if isinstance(left, int) and isinstance(right, int):
        return abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
    return left // right


_TWO: dict[str, Callable[[int, int], int]] = {
    "Add": operator.add,
    "Div": _quotient,
    "Equal": operator.eq,
    "Greater": operator.gt,
    "Less": operator.lt,
    "Max": torch.sym_max,
    "Min": torch.sym_min,
    "Mod": operator.mod,
    "Mul": operator.mul,
    "Sub": operator.sub,
}
_COMPARISONS = {"Equal", "Greater", "Less"}


def _broadcast(inputs: Sequence[Integers]) -> list[tuple[int, ...]]:
    length = max(len(given.values) for given in inputs)
    return [given.values * length if len(given.values) == 1 else given.values for given in inputs]


@INTEGER_OPS.register(*_TWO)
def two(call: Call, inputs: tuple[Integers, ...]) -> Integers | None:
    """(n), (n) -> (n)."""
    if len(inputs) != 2:
        return None
    left, right = _broadcast(inputs)
    values = tuple(_TWO[call.step.op](a, b) for a, b in zip(left, right, strict=True))
    dtype = torch.bool if call.step.op in _COMPARISONS else inputs[0].dtype
    return Integers(values, all(given.is_scalar for given in inputs), dtype)


@INTEGER_OPS.register("Neg")
def negative(_: Call, inputs: tuple[Integers, ...]) -> Integers:
    """(n) -> (n)."""
    return Integers(tuple(-v for v in inputs[0].values), inputs[0].is_scalar, inputs[0].dtype)


@INTEGER_OPS.register("Where")
def where(_: Call, inputs: tuple[Integers, ...]) -> Integers:
    """Condition (n), (n), (n) -> (n)."""
    rows = zip(*_broadcast(inputs), strict=True)
    values = tuple(yes if condition else no for condition, yes, no in rows)
    return Integers(values, all(given.is_scalar for given in inputs), inputs[1].dtype)


@INTEGER_OPS.register("Cast")
def cast(call: Call, inputs: tuple[Integers, ...]) -> Integers | None:
    """(n) -> (n), to another integer type only."""
    dtype = DTYPES.get(call.get_int("to", 0))
    if dtype not in {torch.int64, torch.int32}:
        return None
    return Integers(inputs[0].values, inputs[0].is_scalar, dtype)


@INTEGER_OPS.register("Identity")
def identity(_: Call, inputs: tuple[Integers, ...]) -> Integers:
    """(n) -> (n)."""
    return inputs[0]


@INTEGER_OPS.register("Gather")
def gather(_: Call, inputs: tuple[Integers, ...]) -> Integers | None:
    """(n), positions -> (k) or ()."""
    data, positions = inputs
    if data.is_scalar:
        return None
    values = tuple(data.values[p] for p in positions.values)
    return Integers(values, positions.is_scalar, data.dtype)


@INTEGER_OPS.register("Concat")
def concat(_: Call, inputs: tuple[Integers, ...]) -> Integers:
    """(a), (b), ... -> (a + b + ...)."""
    return Integers(tuple(v for given in inputs for v in given.values), dtype=inputs[0].dtype)


@INTEGER_OPS.register("Slice")
def cut(call: Call, inputs: tuple[Integers, ...]) -> Integers:
    """(n) -> (k)."""
    step = call.ints(4)[0] if call.has(4) else 1
    values = inputs[0].values[slice(call.ints(1)[0], call.ints(2)[0], step)]
    return Integers(values, dtype=inputs[0].dtype)


@INTEGER_OPS.register("Squeeze")
def squeeze(_: Call, inputs: tuple[Integers, ...]) -> Integers:
    """(1) -> ()."""
    return Integers(inputs[0].values, len(inputs[0].values) == 1, inputs[0].dtype)


@INTEGER_OPS.register("Unsqueeze")
def unsqueeze(call: Call, inputs: tuple[Integers, ...]) -> Integers | None:
    """() -> (1); a result of rank 2 is left to the torch op."""
    axes = call.ints(1) if call.has(1) else call.get_ints("axes") or ()
    if not inputs[0].is_scalar or len(axes) != 1:
        return None
    return Integers(inputs[0].values, dtype=inputs[0].dtype)


@INTEGER_OPS.register("Reshape")
def reshape(call: Call, inputs: tuple[Integers, ...]) -> Integers | None:
    """(n) -> (n), (1) or ()."""
    rank = len(call.ints(1))
    return None if rank > 1 else Integers(inputs[0].values, rank == 0, inputs[0].dtype)


@INTEGER_OPS.register("ReduceProd")
def product(call: Call, inputs: tuple[Integers, ...]) -> Integers:
    """(n) -> (1) or ()."""
    return Integers(
        (math.prod(inputs[0].values),), not call.get_int("keepdims", 1), inputs[0].dtype
    )


@INTEGER_OPS.register("ConstantOfShape")
def fill(call: Call, inputs: tuple[Integers, ...]) -> Integers | None:
    """(1) -> (n), of whole numbers only."""
    value = call.step.attributes.get("value")
    shape = inputs[0].values
    is_small = len(shape) <= 1 and all(isinstance(n, int) and n <= 64 for n in shape)
    if not isinstance(value, np.ndarray) or value.dtype.kind != "i" or not is_small:
        return None
    dtype = torch.int32 if value.dtype == np.int32 else torch.int64
    return Integers((int(value.reshape(-1)[0]),) * math.prod(shape), not shape, dtype)


__all__ = ["INTEGER_OPS", "IntegerOp"]
