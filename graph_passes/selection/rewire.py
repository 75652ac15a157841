"""Make one region read what its selection left: gathered values, masks, shapes."""

from __future__ import annotations

import onnx_ir as ir

from secateur.graph_passes.axes import FoldUse
from secateur.graph_passes.selection.budget import Kept
from secateur.graph_passes.selection.checks import open_ended
from secateur.graph_passes.selection.emit import Emitter
from secateur.graph_passes.selection.folds import Edge, Requests
from secateur.graph_passes.selection.neutral import Fill, Neutral
from secateur.graph_passes.selection.recount import Recounter
from secateur.graph_passes.selection.region import Crossing, Regions, refusal
from secateur.graph_passes.selection.versions import Versions, Want
from secateur.graph_passes.shape_repair import ShapeSpeller

_BROADCASTING = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "And", "Or", "Xor", "Where", "Min", "Max"),
        *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "MatMul", "PRelu"),
    }
)
"""Consumers whose operands line up from the right."""

_AS_IT_IS = frozenset(
    {
        *("Concat", "Cast", "Identity", "Transpose", "Unsqueeze", "Attention", "Neg", "Softmax"),
        *("MultiHeadAttention", "RotaryEmbedding", "Expand", "Not", "ReduceSum", "ReduceMax"),
        "GatherElements",
    }
)
"""Consumers that take a gathered operand of the same rank."""

_FUSED_MASK_SLOT = {"Attention": 3, "MultiHeadAttention": 5}


def rewire(
    emit: Emitter,
    versions: Versions,
    regions: Regions,
    found: list[Crossing],
    asked: Requests,
) -> None:
    """Replace every crossing input of one region and mask its folds.

    Args:
        emit: Where nodes go.
        versions: Gathered values.
        regions: The chain of cuts.
        found: The crossings of this region.
        asked: What its folds need.
    """
    neutrals = _shared(found, asked.crossings)
    for crossing in found:
        edge = (crossing.node, crossing.slot)
        value = versions.get(_want(crossing, regions, neutrals.get(edge)))
        if _FUSED_MASK_SLOT.get(crossing.node.op_type) == crossing.slot:
            value = _in_full(emit, value, versions.kept[crossing.region - 1], crossing, regions)
        crossing.node.replace_input_with(crossing.slot, value)
    recounter = Recounter(emit, versions, regions)
    number = len(versions.kept)
    for node, region in regions.in_region():
        if region == number:
            recounter.recount(node, region)
    for (node, slot), neutral in asked.direct.items():
        _mask_operand(versions, regions, node, slot, neutral)
    for fold in asked.means:
        _rewrite_mean(emit, versions, regions, fold)
    for node in asked.fused:
        _give_mask(emit, versions, regions, node)


def repair_shapes(emit: Emitter, regions: Regions, region: int, kept: Kept) -> None:
    """Spell the shapes of one region again."""
    speller = ShapeSpeller(emit, regions)
    for node, number in regions.in_region():
        if number != region:
            continue
        speller.repair(node, kept)
        if node.op_type == "Slice" and not node.domain:
            ends = open_ended(regions, node)
            if ends is not None:
                node.replace_input_with(2, emit.constant(ends))


def _shared(found: list[Crossing], neutrals: dict[Edge, Neutral]) -> dict[Edge, Neutral]:
    """Let all readers of one value share the neutral version of it.

    What a slot without a token holds is nobody's concern but the folds', so that one
    version per value is enough.
    """
    per_value: dict[ir.Value, Neutral] = {}
    for crossing in found:
        neutral = neutrals.get((crossing.node, crossing.slot))
        if neutral is not None:
            per_value.setdefault(crossing.value, neutral)
    return {
        (crossing.node, crossing.slot): neutrals.get(
            (crossing.node, crossing.slot), per_value[crossing.value]
        )
        for crossing in found
        if crossing.value in per_value
    }


def _want(crossing: Crossing, regions: Regions, neutral: Neutral | None) -> Want:
    node, rank = crossing.node, len(crossing.exprs)
    if node.op_type in _BROADCASTING:
        others = [regions.exprs(node, slot) or () for slot in range(len(regions.inputs(node)))]
        rank = max(len(exprs) for exprs in others)
    elif node.op_type not in _AS_IT_IS:
        raise refusal(regions, node, f"its input {crossing.value.name!r} cannot be gathered")
    return Want(
        value=crossing.value,
        exprs=crossing.exprs,
        rank=rank,
        source=crossing.source,
        region=crossing.region,
        may_broadcast=_may_broadcast(crossing, regions),
        neutral=neutral,
        reader=node,
    )


def _may_broadcast(crossing: Crossing, regions: Regions) -> bool:
    """Tell whether another operand, from inside the region, has the token axes in full."""
    node = crossing.node
    if node.domain or node.op_type in _FUSED_MASK_SLOT:
        return True  # the query axis is put back, the others broadcast
    if node.op_type not in _BROADCASTING or node.op_type == "MatMul":
        return False
    for slot in range(len(regions.inputs(node))):
        exprs = regions.exprs(node, slot)
        if exprs is None or regions.edge(node, slot) != crossing.region:
            continue
        if len(exprs) >= len(crossing.exprs) and all(
            exprs[axis] == crossing.exprs[axis]
            for axis in range(-len(crossing.exprs), 0)
            if regions.bears(crossing.exprs[axis])
        ):
            return True
    return False


def _full_mask(emit: Emitter, mask: ir.Value, kept: Kept, *, over_keys: bool) -> ir.Value:
    """(B, 1, 1 or K, 1 or K) -> (B, 1, K, K): ONNX Runtime broadcasts no axis of tokens."""
    one = emit.ints(1)
    keys = kept.length if over_keys else one
    return emit.op("Expand", mask, emit.op("Concat", one, one, kept.length, keys, axis=0))


def _in_full(
    emit: Emitter, mask: ir.Value, kept: Kept, crossing: Crossing, regions: Regions
) -> ir.Value:
    """Give a fused mask its axis of queries, and that of keys where it runs over the tokens.

    Keys of another length, in attention to other tokens, are never broadcast.
    """
    over_keys = regions.is_tokens(crossing.exprs[-1])
    return _full_mask(emit, mask, kept, over_keys=over_keys)


def _mask_operand(
    versions: Versions, regions: Regions, node: ir.Node, slot: int, neutral: Neutral
) -> None:
    value, exprs = node.inputs[slot], regions.exprs(node, slot)
    assert value is not None
    assert exprs is not None
    region = regions.of[node]
    node.replace_input_with(slot, versions.neutralise(value, exprs, region, neutral))


def _rewrite_mean(emit: Emitter, versions: Versions, regions: Regions, fold: FoldUse) -> None:
    """mean(x, tokens) -> sum(x without empty slots) / number of tokens."""
    node, exprs = fold.node, regions.exprs(fold.node, 0)
    assert exprs is not None
    axes = [port.axis for port in fold.ports if port.slot == 0]
    region = regions.of[node]
    counts, value = versions.kept[region - 1].counts, node.inputs[0]
    if len(axes) != 1 or not regions.is_tokens(exprs[axes[0]]) or counts is None or value is None:
        hint = "pool over the token axis alone"
        raise refusal(regions, node, "it averages over tokens and other axes at once", hint)
    keepdims = node.attributes.get_int("keepdims", 1)
    rank = len(exprs)
    neutral = Neutral(Fill.ZERO, axes[0] - rank)
    masked = versions.neutralise(value, exprs, region, neutral)
    total = emit.op("ReduceSum", masked, emit.ints(axes[0]), keepdims=keepdims)
    n_axes = rank if keepdims else rank - 1
    divisor = emit.op("CastLike", emit.unsqueeze(counts, range(2, n_axes)), total)
    if n_axes == 1:
        divisor = emit.squeeze(divisor, (1,))
    node.outputs[0].replace_all_uses_with(emit.op("Div", total, divisor))


def _give_mask(emit: Emitter, versions: Versions, regions: Regions, node: ir.Node) -> None:
    """A fused attention without a mask gets the validity as one."""
    region, slot = regions.of[node], _FUSED_MASK_SLOT[node.op_type]
    mask = versions.slots(region, 4, -1)
    if node.domain:
        query = node.inputs[0]
        dtype = query.dtype if query is not None and query.dtype else ir.DataType.FLOAT
        low = emit.number(Fill.LOWEST.number(dtype), dtype)
        mask = emit.op("Where", mask, emit.number(0.0, dtype), low)
    if len(node.inputs) <= slot:
        node.resize_inputs(slot + 1)
    full = _full_mask(emit, mask, versions.kept[region - 1], over_keys=False)
    node.replace_input_with(slot, full)


__all__ = ["repair_shapes", "rewire"]
