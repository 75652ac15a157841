"""Shapes, and what moves elements without changing them."""

from __future__ import annotations

import math
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.export.torch_ops.call import TORCH_OPS, Call, Integers


@TORCH_OPS.register("Shape")
def shape(call: Call) -> Integers:
    """(...) -> its sizes from ``start`` to ``end``."""
    sizes = tuple(_shape(call, 0))
    end = call.get_int("end", len(sizes))
    return Integers(sizes[call.get_int("start", 0) : end])


def _shape(call: Call, slot: int) -> tuple[int, ...]:
    value = call.inputs[slot]
    if isinstance(value, Integers):
        return () if value.is_scalar else (len(value.values),)
    return tuple(call.tensor(slot).shape)


@TORCH_OPS.register("Size")
def count(call: Call) -> Integers:
    """(...) -> the number of elements."""
    return Integers((math.prod(_shape(call, 0)),), is_scalar=True)


@TORCH_OPS.register("Reshape")
def reshape(call: Call) -> Tensor:
    """(...) -> (...); 0 takes the size that stands there, unless ``allowzero`` is set."""
    x, target = call.tensor(0), call.ints(1)
    if not call.get_int("allowzero", 0):
        target = tuple(
            x.shape[i] if isinstance(size, int) and size == 0 else size
            for i, size in enumerate(target)
        )
    return x.reshape(target)


@TORCH_OPS.register("Flatten")
def flatten(call: Call) -> Tensor:
    """(...) -> (all before ``axis``, the rest)."""
    x = call.tensor(0)
    axis = call.get_int("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@TORCH_OPS.register("Transpose")
def transpose(call: Call) -> Tensor:
    """(...) -> (...), the axes in another order."""
    x = call.tensor(0)
    return x.permute(call.get_ints("perm") or tuple(reversed(range(x.dim()))))


def _axes(call: Call) -> tuple[int, ...]:
    return call.ints(1) if call.has(1) else call.get_ints("axes") or ()


@TORCH_OPS.register("Squeeze")
def squeeze(call: Call) -> Tensor:
    """(..., 1, ...) -> (...)."""
    x, axes = call.tensor(0), _axes(call)
    return x.squeeze(axes) if axes else x.squeeze()


@TORCH_OPS.register("Unsqueeze")
def unsqueeze(call: Call) -> Tensor:
    """(...) -> (..., 1, ...); the axes are counted in the result."""
    x, axes = call.tensor(0), _axes(call)
    for axis in sorted(a % (x.dim() + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


@TORCH_OPS.register("Concat")
def concat(call: Call) -> Tensor:
    """(..., A, ...), (..., B, ...) -> (..., A + B, ...)."""
    return torch.cat(call.tensors(), call.get_int("axis", 0))


@TORCH_OPS.register("Split")
def split(call: Call) -> tuple[Tensor, ...]:
    """(..., A + B, ...) -> (..., A, ...), (..., B, ...); equal parts unless told otherwise."""
    x, axis = call.tensor(0), call.get_int("axis", 0)
    sizes = call.ints(1) if call.has(1) else call.get_ints("split")
    if sizes is None:
        parts = len(call.step.outputs)
        size = -(-x.shape[axis] // parts)
        sizes = (*(size,) * (parts - 1), x.shape[axis] - size * (parts - 1))
    return torch.split(x, list(sizes), axis)


@TORCH_OPS.register("Slice")
def cut(call: Call) -> Tensor:
    """(...) -> (...); before opset 10 the bounds are attributes."""
    x = call.tensor(0)
    if call.opset < 10:
        starts, ends = call.get_ints("starts") or (), call.get_ints("ends") or ()
        axes = call.get_ints("axes") or tuple(range(len(starts)))
    else:
        starts, ends = call.ints(1), call.ints(2)
        axes = call.ints(3) if call.has(3) else tuple(range(len(starts)))
    steps = call.ints(4) if call.has(4) else (1,) * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = _along(x, axis, slice(start, end, step))
    return x


def _along(x: Tensor, axis: int, part: slice) -> Tensor:
    if part.step > 0:
        return x[(*(slice(None),) * (axis % x.dim()), part)]
    positions = range(*part.indices(x.shape[axis]))
    return x.index_select(axis, torch.tensor(list(positions), device=x.device, dtype=torch.int64))


@TORCH_OPS.register("Expand")
def expand(call: Call) -> Tensor:
    """(...) -> (...), broadcast to a shape; 1 in the shape keeps the size that stands there."""
    x, target = call.tensor(0), call.ints(1)
    target = (*(1,) * (x.dim() - len(target)), *target)
    new = len(target) - x.dim()
    sizes = [
        -1 if i >= new and isinstance(size, int) and size == 1 else size
        for i, size in enumerate(target)
    ]
    return x.expand(sizes)


@TORCH_OPS.register("Tile")
def tile(call: Call) -> Tensor:
    """(...), repeats -> (...)."""
    return call.tensor(0).repeat(call.ints(1))


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@TORCH_OPS.register("Pad")
def pad(call: Call) -> Tensor:
    """(...) -> (...); a negative pad cuts."""
    x = call.tensor(0)
    amounts = call.ints(1) if call.opset >= 11 else call.get_ints("pads") or ()
    axes = call.ints(3) if call.has(3) else tuple(range(len(amounts) // 2))
    before, behind = amounts[: len(axes)], amounts[len(axes) :]
    wanted = {axis % x.dim(): pair for axis, *pair in zip(axes, before, behind, strict=True)}
    pairs = [wanted.get(axis, [0, 0]) for axis in range(x.dim())]
    while pairs and not any(pairs[0]):  # torch pads from the last axis on
        del pairs[0]
    if not pairs:
        return x
    mode = _PAD_MODES[call.get_str("mode", "constant")]
    flat = list(chain.from_iterable(reversed(pairs)))
    if mode != "constant":
        return F.pad(x, flat, mode=mode)
    value = call.number(2, 0.0) if call.opset >= 11 else call.get_float("value", 0.0)
    return F.pad(x, flat, value=value)


@TORCH_OPS.register("DepthToSpace")
def depth_to_space(call: Call) -> Tensor:
    """(B, C * s * s, H, W) -> (B, C, H * s, W * s)."""
    x, side = call.tensor(0), call.get_int("blocksize", 1)
    if call.get_str("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, side)
    batch, depth, height, width = x.shape
    blocks = x.reshape(batch, side, side, depth // side**2, height, width)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, height * side, width * side)


@TORCH_OPS.register("SpaceToDepth")
def space_to_depth(call: Call) -> Tensor:
    """(B, C, H * s, W * s) -> (B, s * s * C, H, W)."""
    x, side = call.tensor(0), call.get_int("blocksize", 1)
    batch, depth, height, width = x.shape
    blocks = x.reshape(batch, depth, height // side, side, width // side, side)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // side, width // side)
