"""Pooling over windows and over everything."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.export.torch_ops.call import TORCH_OPS, Call
from secateur.export.torch_ops.convolution import is_even, padded, pads_of

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEAN = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _kernel(call: Call) -> tuple[int, ...]:
    kernel = call.get_ints("kernel_shape") or ()
    if not 1 <= len(kernel) <= 3:
        raise call.refuse(f"{len(kernel)} spatial axes")
    return kernel


@TORCH_OPS.register("MaxPool")
def max_pool(call: Call) -> Tensor:
    """(B, C, ...) -> (B, C, ...)."""
    if call.wants(1):
        raise call.refuse("the indices are read")
    x, kernel = call.tensor(0), _kernel(call)
    pads = pads_of(call, kernel)
    if not is_even(pads):
        x, pads = padded(x, pads, -math.inf), ((0, 0),) * len(kernel)
    return _MAX[len(kernel)](
        x,
        kernel,
        stride=call.get_ints("strides") or (1,) * len(kernel),
        padding=tuple(before for before, _ in pads),
        dilation=call.get_ints("dilations") or (1,) * len(kernel),
        ceil_mode=bool(call.get_int("ceil_mode", 0)),
    )


@TORCH_OPS.register("AveragePool")
def average_pool(call: Call) -> Tensor:
    """(B, C, ...) -> (B, C, ...)."""
    x, kernel = call.tensor(0), _kernel(call)
    if any(d != 1 for d in call.get_ints("dilations") or ()):
        raise call.refuse("dilations")
    pads, counts_pads = pads_of(call, kernel), bool(call.get_int("count_include_pad", 0))
    strides = call.get_ints("strides") or (1,) * len(kernel)
    is_ceil = bool(call.get_int("ceil_mode", 0))

    def mean(values: Tensor, padding: tuple[int, ...]) -> Tensor:
        pool = _MEAN[len(kernel)]
        return pool(values, kernel, strides, padding, is_ceil, counts_pads)  # type: ignore[arg-type, no-any-return]

    if is_even(pads):
        return mean(x, tuple(before for before, _ in pads))
    none = (0,) * len(kernel)
    pooled = mean(padded(x, pads, 0.0), none)
    # Where pads do not count, divide by the share of each window that is not padding.
    return pooled if counts_pads else pooled / mean(padded(torch.ones_like(x), pads, 0.0), none)


@TORCH_OPS.register("GlobalAveragePool")
def global_average_pool(call: Call) -> Tensor:
    """(B, C, ...) -> (B, C, 1, ...)."""
    x = call.tensor(0)
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


@TORCH_OPS.register("GlobalMaxPool")
def global_max_pool(call: Call) -> Tensor:
    """(B, C, ...) -> (B, C, 1, ...)."""
    x = call.tensor(0)
    return x.amax(tuple(range(2, x.dim())), keepdim=True)
