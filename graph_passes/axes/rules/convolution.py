"""Convolutions and pooling. Layout (B, C, *space)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from secateur.graph_passes.axes.axis_map import AxisMap
from secateur.graph_passes.axes.expression import Keep, indices, leaves
from secateur.graph_passes.axes.relations import (
    AXIS_RULES,
    OUT,
    REWRITES,
    Blocks,
    Fold,
    Fresh,
    Frozen,
    Port,
    Relation,
    Same,
    by_units,
    by_units_if_declared,
    carried,
)
from secateur.graph_passes.axes.sizes import Size
from secateur.graph_passes.axes.view import View

_MIXES = "the convolution mixes neighbours in space"


@AXIS_RULES.register("Conv")
@by_units_if_declared
def conv(view: View) -> Iterator[Relation]:
    """(B, G*I, *S), (G*O, I, *k), (G*O) -> (B, G*O, *S'): groups G; space stays frozen.

    With a kernel of size 1, stride 1 and no padding space is carried. Along a sequence whose
    length it keeps, output n stands for token n, though it reads neighbours.
    """
    yield from conv_like(view, 1, (Port(2, 0),) if view.has(2) else ())


@AXIS_RULES.register("com.microsoft:FusedConv")
def fused_conv(view: View) -> Iterator[Relation]:
    """Conv, to which input 3, (B, G*O, *S'), may be added, and an activation."""
    yield from conv_like(view, 1, (Port(2, 0),) if view.has(2) else ())
    for axis in range(view.rank(3) or 0):
        yield Same((Port(3, axis), Port(OUT, axis)))


def conv_like(view: View, slot: int, per_channel: tuple[Port, ...]) -> Iterator[Relation]:
    """Relate the axes of a convolution whose weight is input ``slot``.

    ``per_channel`` are ports that go along the output channels: bias, scales.
    """
    weight = view.shape(slot)
    if weight is None:
        return
    yield carried(0)
    yield Same((Port(slot, 0), *per_channel, Port(OUT, 1)))
    group = view.integer("group", 1)
    if group == 1:
        yield Fold((Port(0, 1), Port(slot, 1)), neutral=0.0)
    else:
        yield Blocks((Port(0, 1), Port(slot, 0)), group, ((Port(slot, 1),), ()))
        yield Fold((Port(slot, 1),), neutral=0.0)
    pointwise = _is_pointwise(view, weight[2:])
    for axis in range(2, len(weight)):
        if pointwise:
            yield carried(axis)
            continue
        if _is_sequence(view, len(weight)):
            yield carried(axis)
            yield Frozen(Port(0, axis), _MIXES)
        else:
            yield from _space(axis, _MIXES, _extent(view, axis, weight[axis]))
        yield Frozen(Port(slot, axis), "it is the extent of a kernel")


def _extent(view: View, axis: int, kernel: Size) -> Size | None:
    """Size of an output axis in space; None where padding is automatic or a size dynamic."""
    before = (view.shape(0) or ())[axis]
    if not isinstance(before, int) or not isinstance(kernel, int):
        return None
    if view.string("auto_pad", "NOTSET") != "NOTSET" or view.integer("ceil_mode", 0):
        return None
    i, n = axis - 2, len(view.shape(0) or ()) - 2
    stride = (view.attribute_ints("strides") or (1,) * n)[i]
    dilation = (view.attribute_ints("dilations") or (1,) * n)[i]
    pads = view.attribute_ints("pads") or (0,) * (2 * n)
    return (before + pads[i] + pads[i + n] - dilation * (kernel - 1) - 1) // stride + 1


def _is_sequence(view: View, rank: int) -> bool:
    """Tell whether there is one axis in space, and as many outputs along it as inputs."""
    kernel, pads = view.attribute_ints("kernel_shape"), view.attribute_ints("pads") or (0, 0)
    if rank != 3 or not kernel or view.string("auto_pad", "NOTSET") != "NOTSET":
        return False
    stride = (view.attribute_ints("strides") or (1,))[0]
    dilation = (view.attribute_ints("dilations") or (1,))[0]
    return stride == 1 and sum(pads) == dilation * (kernel[0] - 1)


def _is_pointwise(view: View, kernel: tuple[object, ...]) -> bool:
    ones = all(extent == 1 for extent in kernel)
    strides, pads = view.attribute_ints("strides") or (1,), view.attribute_ints("pads") or (0,)
    return ones and set(strides) == {1} and set(pads) == {0}


def _space(axis: int, reason: str, extent: Size | None = None) -> Iterator[Relation]:
    yield Frozen(Port(0, axis), reason)
    yield Fresh(Port(OUT, axis), extent)
    yield Frozen(Port(OUT, axis), reason)


@REWRITES.register("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "com.microsoft:FusedConv")
def conv_group(node: ir.Node, axes: AxisMap, keep: Keep) -> None:
    """Spell ``group`` again: channels over channels per group, on the side where both stand."""
    group = node.attributes.data.get("group")
    if group is None or group.as_int() == 1:
        return
    both = axes.expr(node, Port(OUT if node.op_type == "ConvTranspose" else 0, 1))
    if not any(atom in keep for atom in leaves(both)):
        return  # neither groups nor what is inside one
    weight = 3 if node.op_type == "QLinearConv" else 1
    per_group = len(indices(axes.expr(node, Port(weight, 1)), keep))
    node.attributes["group"] = ir.AttrInt64("group", len(indices(both, keep)) // per_group)


@AXIS_RULES.register("ConvTranspose")
@by_units_if_declared
def conv_transpose(view: View) -> Iterator[Relation]:
    """(B, G*I, *S), (G*I, O, *k), (G*O) -> (B, G*O, *S'): groups G; space stays frozen."""
    weight, group = view.shape(1), view.integer("group", 1)
    if weight is None:
        return
    yield carried(0)
    outs = (*((Port(2, 0),) if view.has(2) else ()), Port(OUT, 1))
    yield Fold((Port(0, 1), Port(1, 0)), neutral=0.0)
    if group == 1:
        yield Same((Port(1, 1), *outs))
    else:
        yield Blocks((Port(0, 1), *outs), group, ((), *(((Port(1, 1),),) * len(outs))))
    for axis in range(2, len(weight)):
        yield from _space(axis, "the convolution mixes neighbours in space")
        yield Frozen(Port(1, axis), "it is the extent of a kernel")


@AXIS_RULES.register("MaxPool", "AveragePool", "LpPool")
@by_units_if_declared
def pool(view: View) -> Iterator[Relation]:
    """(B, C, *S) -> (B, C, *S'): batch and channels are carried, space is frozen."""
    for axis in range(view.rank(0) or 0):
        if axis < 2:
            outs = [Port(~i, axis) for i in range(len(view.node.outputs))]
            yield Same((Port(0, axis), *outs))
        else:
            kernel = (view.attribute_ints("kernel_shape") or ())[axis - 2]
            yield from _space(
                axis, "pooling mixes neighbours in space", _extent(view, axis, kernel)
            )


@AXIS_RULES.register("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
@by_units
def global_pool(view: View) -> Iterator[Relation]:
    """(B, C, *S) -> (B, C, 1, ...): space is folded; a mean has no neutral element."""
    neutral = {"GlobalMaxPool": -math.inf, "GlobalLpPool": 0.0}.get(view.node.op_type)
    for axis in range(view.rank(0) or 0):
        if axis < 2:
            yield carried(axis)
        else:
            yield Fold((Port(0, axis),), neutral)
            yield Fresh(Port(OUT, axis), 1)
