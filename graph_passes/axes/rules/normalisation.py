"""Normalisations and softmax: what they combine, and whether a cut can be exact."""

from __future__ import annotations

import math
from collections.abc import Iterator

from secateur.graph_passes.axes.relations import (
    AXIS_RULES,
    OUT,
    Blocks,
    Fold,
    Fresh,
    Port,
    Relation,
    Same,
    by_units,
    carried,
)
from secateur.graph_passes.axes.view import View


@AXIS_RULES.register("Softmax", "LogSoftmax", "Hardmax")
@by_units
def softmax(view: View) -> Iterator[Relation]:
    """Every axis is carried; the normalised one also folds, with neutral -inf.

    Before opset 13 all axes from ``axis`` on are normalised together.
    """
    rank = view.rank(0) or 0
    axis = view.integer("axis", -1 if view.opset >= 13 else 1) % max(rank, 1)
    for i in range(rank):
        folds = i == axis if view.opset >= 13 else i >= axis
        if folds:
            yield Fold((Port(0, i),), neutral=-math.inf)
        yield carried(i)


@AXIS_RULES.register("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
@by_units
def layer_norm(view: View) -> Iterator[Relation]:
    """(..., D), scale (D), bias (D) -> (..., D): D folds without a neutral element."""
    rank = view.rank(0) or 0
    first = view.integer("axis", -1) % max(rank, 1)
    for axis in range(rank):
        ports = [Port(0, axis)]
        for slot in (1, 2):
            shape = view.shape(slot) or ()
            here = axis - rank + len(shape)
            if view.has(slot) and here >= 0 and shape[here] != 1:
                ports.append(Port(slot, here))
        if axis >= first:
            yield Fold(tuple(ports), neutral=None)
        yield Same((*ports, Port(OUT, axis)))
        for output in range(1, len(view.node.outputs)):
            if axis < first:
                yield Same((Port(0, axis), Port(~output, axis)))
            else:
                yield Fresh(Port(~output, axis), 1)


@AXIS_RULES.register(
    "com.microsoft:SkipLayerNormalization", "com.microsoft:SkipSimplifiedLayerNormalization"
)
@by_units
def skip_layer_norm(view: View) -> Iterator[Relation]:
    """(B, N, D), skip (B, N, D), scale, bias, bias (D) -> (B, N, D), and the sum as output 3."""
    rank = view.rank(0) or 0
    for axis in range(rank):
        ports = []
        for slot in range(len(view)):
            shape = view.shape(slot) or ()
            here = axis - rank + len(shape)
            if view.has(slot) and here >= 0 and shape[here] != 1:
                ports.append(Port(slot, here))
        if axis == rank - 1:
            yield Fold(tuple(ports), neutral=None)
        outputs = [Port(~i, axis) for i in (0, 3) if i < len(view.node.outputs)]
        yield Same((*ports, *outputs))


@AXIS_RULES.register("BatchNormalization")
@by_units
def batch_norm(view: View) -> Iterator[Relation]:
    """(B, C, *S), scale, bias, mean, variance (C) -> (B, C, *S), with frozen statistics."""
    for axis in range(view.rank(0) or 0):
        per_channel = [Port(slot, 0) for slot in range(1, 5)] if axis == 1 else []
        yield Same((Port(0, axis), *per_channel, Port(OUT, axis)))


@AXIS_RULES.register("InstanceNormalization")
@by_units
def instance_norm(view: View) -> Iterator[Relation]:
    """(B, C, *S), scale, bias (C) -> (B, C, *S): space folds without a neutral element."""
    for axis in range(view.rank(0) or 0):
        per_channel = [Port(1, 0), Port(2, 0)] if axis == 1 else []
        if axis > 1:
            yield Fold((Port(0, axis),), neutral=None)
        yield Same((Port(0, axis), *per_channel, Port(OUT, axis)))


@AXIS_RULES.register("GroupNormalization")
def group_norm(view: View) -> Iterator[Relation]:
    """(B, G*I, *S), scale, bias -> (B, G*I, *S): whole groups can go, parts of one cannot.

    Scale and bias are per channel from opset 21 on, per group before.
    """
    groups = view.integer("num_groups", 1)
    fixed = "the statistics of a group are taken over it"
    per_channel = view.opset >= 21
    if per_channel:
        yield Same((Port(0, 1), Port(1, 0), Port(2, 0), Port(OUT, 1)))
        yield Blocks((Port(0, 1),), groups, ((),), fixed=fixed, fixed_blocks=_COUNTED)
    else:
        yield carried(1)
        outer = (Port(1, 0), Port(2, 0))
        yield Blocks((Port(0, 1),), groups, ((),), outer, fixed=fixed, fixed_blocks=_COUNTED)
    for axis in range(view.rank(0) or 0):
        if axis > 1:
            yield Fold((Port(0, axis),), neutral=None)
        if axis != 1:
            yield carried(axis)


_COUNTED = "the number of groups is an attribute"


@AXIS_RULES.register("LpNormalization", "MeanVarianceNormalization")
def lp_norm(view: View) -> Iterator[Relation]:
    """Every axis is carried; a norm over an axis has the neutral element 0, a mean none."""
    rank = view.rank(0) or 0
    if view.node.op_type == "LpNormalization":
        axes, neutral = (view.integer("axis", -1) % max(rank, 1),), 0.0
        for axis in axes:
            yield Fold((Port(0, axis),), neutral)
    else:
        for axis in view.attribute_ints("axes") or (0, 2, 3):
            yield Fold((Port(0, axis % rank),), None)
    for axis in range(rank):
        yield carried(axis)


@AXIS_RULES.register("LRN")
def local_response(view: View) -> Iterator[Relation]:
    """(B, C, *S) -> (B, C, *S): neighbouring channels are combined, so C folds."""
    for axis in range(view.rank(0) or 0):
        if axis == 1:
            yield Fold((Port(0, axis),), None)
        yield carried(axis)
