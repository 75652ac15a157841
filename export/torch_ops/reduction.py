"""Reductions over axes, and what counts along one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from secateur.export.torch_ops.call import TORCH_OPS, Call

Axes = tuple[int, ...]


def _product(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


_REDUCTIONS: dict[str, Callable[[Tensor, Axes, bool], Tensor]] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _product,
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}


@TORCH_OPS.register(*_REDUCTIONS)
def reduce(call: Call) -> Tensor:
    """(...), axes -> (...); without axes over all of them, unless the node says over none."""
    x = call.tensor(0)
    axes = call.ints(1) if call.has(1) else call.get_ints("axes") or ()
    if not axes:
        if call.get_int("noop_with_empty_axes", 0):
            return x
        axes = tuple(range(x.dim()))
    return _REDUCTIONS[call.step.op](x, axes, bool(call.get_int("keepdims", 1)))


@TORCH_OPS.register("ArgMax", "ArgMin")
def arg(call: Call) -> Tensor:
    """(...) -> int64 positions along one axis, the first of equals."""
    if call.get_int("select_last_index", 0):
        raise call.refuse("the last of equal elements is asked for")
    function = torch.argmax if call.step.op == "ArgMax" else torch.argmin
    x = call.tensor(0)
    return function(x, dim=call.get_int("axis", 0), keepdim=bool(call.get_int("keepdims", 1)))


@TORCH_OPS.register("CumSum")
def cumulative_sum(call: Call) -> Tensor:
    """(...), axis -> (...), from either end, with or without the element itself."""
    x, axis = call.tensor(0), call.ints(1)[0]
    is_reversed = call.get_int("reverse", 0)
    turned = x.flip(axis) if is_reversed else x
    total = turned.cumsum(axis, dtype=x.dtype)
    total = total - turned if call.get_int("exclusive", 0) else total
    return total.flip(axis) if is_reversed else total


@TORCH_OPS.register("TopK")
def top_k(call: Call) -> tuple[Tensor, Tensor]:
    """(...), k -> values and int64 positions; of equals the first ones, as ONNX demands."""
    axis, is_largest = call.get_int("axis", -1), bool(call.get_int("largest", 1))
    count = call.ints(1)[0]
    values, positions = call.tensor(0).sort(dim=axis, descending=is_largest, stable=True)
    return values.narrow(axis, 0, count), positions.narrow(axis, 0, count)
