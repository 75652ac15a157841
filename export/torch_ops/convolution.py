"""Convolutions, of one to three spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from torch import Tensor
from torch.nn import functional as F

from secateur.export.torch_ops.call import TORCH_OPS, Call

Pads = tuple[tuple[int, int], ...]
"""How much is added before and behind each spatial axis."""

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def pads_of(call: Call, kernel: Sequence[int]) -> Pads:
    """Read ``pads``, or work out what ``auto_pad`` asks for."""
    n, mode = len(kernel), call.get_str("auto_pad", "NOTSET")
    if mode in {"NOTSET", "VALID"}:
        pads = call.get_ints("pads") if mode == "NOTSET" else None
        return tuple(zip(pads[:n], pads[n:], strict=True)) if pads else ((0, 0),) * n
    strides = call.get_ints("strides") or (1,) * n
    dilations = call.get_ints("dilations") or (1,) * n
    sizes = call.tensor(0).shape[2:]
    found = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        found.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return tuple(found)


def padded(x: Tensor, pads: Pads, value: float) -> Tensor:
    """Add the pads, which F.pad wants from the last axis on."""
    return F.pad(x, list(chain.from_iterable(reversed(pads))), value=value)


def is_even(pads: Pads) -> bool:
    """Whether as much is added before as behind every axis, as torch's own pads are."""
    return all(before == behind for before, behind in pads)


@TORCH_OPS.register("Conv")
def conv(call: Call) -> Tensor:
    """(B, C, ...), weight (O, C / group, ...), bias (O) -> (B, O, ...)."""
    x, weight = call.tensor(0), call.tensor(1)
    kernel = weight.shape[2:]
    if len(kernel) not in _CONVOLUTIONS:
        raise call.refuse(f"{len(kernel)} spatial axes")
    pads = pads_of(call, kernel)
    if not is_even(pads):
        x, pads = padded(x, pads, 0.0), ((0, 0),) * len(kernel)
    return _CONVOLUTIONS[len(kernel)](  # type: ignore[operator, no-any-return]
        x,
        weight,
        call.optional(2),
        stride=call.get_ints("strides") or (1,) * len(kernel),
        padding=tuple(before for before, _ in pads),
        dilation=call.get_ints("dilations") or (1,) * len(kernel),
        groups=call.get_int("group", 1),
    )


@TORCH_OPS.register("ConvTranspose")
def conv_transpose(call: Call) -> Tensor:
    """(B, C, ...), weight (C, O / group, ...), bias (O) -> (B, O, ...)."""
    weight = call.tensor(1)
    kernel = weight.shape[2:]
    if "output_shape" in call.step.attributes or call.get_str("auto_pad", "NOTSET") != "NOTSET":
        raise call.refuse("output_shape or auto_pad")
    pads = pads_of(call, kernel)
    if not is_even(pads) or len(kernel) not in _TRANSPOSED:
        raise call.refuse(f"pads {pads}")
    return _TRANSPOSED[len(kernel)](  # type: ignore[operator, no-any-return]
        call.tensor(0),
        weight,
        call.optional(2),
        stride=call.get_ints("strides") or (1,) * len(kernel),
        padding=tuple(before for before, _ in pads),
        output_padding=call.get_ints("output_padding") or (0,) * len(kernel),
        groups=call.get_int("group", 1),
        dilation=call.get_ints("dilations") or (1,) * len(kernel),
    )
