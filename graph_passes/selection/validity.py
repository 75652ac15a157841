"""Which tokens are padding, read off the attention mask of a site."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from secateur.graph_passes.axes import UNIT, Expr, constant, size
from secateur.graph_passes.selection.emit import Emitter
from secateur.graph_passes.selection.flow import ancestors
from secateur.graph_passes.selection.neutral import MASKED
from secateur.graph_passes.selection.region import Regions
from secateur.graph_passes.sites import Attention, Site


class Kind(enum.Enum):
    """How a mask says that a key may be attended to."""

    ADDITIVE = "0, against a very low number"
    ALLOWED = "true, against false"
    FORBIDDEN = "false, against true"
    ALLOWED_FLAG = "a number that is not 0"
    FORBIDDEN_FLAG = "the number 0"


@dataclass(frozen=True, slots=True)
class Mask:
    """One operand of the attention scores that differs between samples."""

    value: ir.Value
    exprs: tuple[Expr, ...]
    kind: Kind

    @property
    def serves_all_queries(self) -> bool:
        """Whether it is the same for every query."""
        return len(self.exprs) < 2 or self.exprs[-2] == UNIT

    @property
    def is_certain(self) -> bool:
        """Whether it is known to hide keys: what is added may be a bias, made otherwise."""
        return self.kind is not Kind.ADDITIVE or self.value.is_graph_input()


@dataclass(frozen=True, slots=True)
class Validity:
    """``valid`` (B, N) bool; ``source`` is the mask value that equals it, if one does."""

    valid: ir.Value
    source: ir.Value | None


def validity(emit: Emitter, regions: Regions, site: Site) -> Validity | None:
    """Derive which tokens are no padding; None where the site has no mask per sample."""
    found = () if site.attention is None else _masks(regions, site.attention)
    masks = [_ascend(mask, regions) for mask in found]
    if any(mask.is_certain for mask in masks):
        masks = [mask for mask in masks if mask.is_certain]
    if not masks:
        return None
    made = _as_valid(emit, masks[0], regions)
    for mask in masks[1:]:
        made = Validity(emit.op("And", made.valid, _as_valid(emit, mask, regions).valid), None)
    return made


def _masks(regions: Regions, attention: Attention) -> list[Mask]:
    if attention.product is None:
        slot = 5 if attention.node.domain == "com.microsoft" else 3
        if attention.mask is None:
            return []
        kind = Kind.ALLOWED if attention.mask.dtype == ir.DataType.BOOL else Kind.ADDITIVE
        return _per_sample(regions, attention.node, slot, kind)
    found: list[Mask] = []
    for step in attention.steps:
        if step.node.op_type == "Add":
            found += _per_sample(regions, step.node, 1 - step.slot, Kind.ADDITIVE)
        elif step.node.op_type == "Where" and step.slot:
            kind = Kind.ALLOWED if step.slot == 1 else Kind.FORBIDDEN
            found += _per_sample(regions, step.node, 0, kind)
    return found


def _per_sample(regions: Regions, node: ir.Node, slot: int, kind: Kind) -> list[Mask]:
    """Return the operand as a mask if it differs between samples and has the token axis.

    Its first axis is the batch, or batch and heads in one: (B, 1, 1, N), (B * H, 1, N).
    """
    inputs, exprs = regions.inputs(node), regions.exprs(node, slot)
    value = inputs[slot] if slot < len(inputs) else None
    if value is None or not exprs or not regions.bears(exprs[-1]):
        return []
    padded = (UNIT,) * (4 - len(exprs)) + exprs
    is_joined = len(exprs) == 3 and exprs[0] == regions.batch
    is_joined |= len(exprs) == 3 and regions.beside_batch(exprs[0]) is not None
    if not (padded[0] == regions.batch or is_joined) or not _reads_input(value):
        return []
    return [Mask(value, exprs, kind)]


def _reads_input(value: ir.Value) -> bool:
    """Tell whether data of a graph input, not only its shape, reaches the value."""
    if value.is_graph_input():
        return True
    return any(
        item is not None and item.is_graph_input()
        for node in ancestors(value)
        for item in node.inputs
    )


# --- up to where the mask is small ---------------------------------------------------------


def _ascend(mask: Mask, regions: Regions) -> Mask:
    """Follow the mask up to its smallest form."""
    while True:
        if mask.kind is Kind.ALLOWED and mask.serves_all_queries:
            return mask
        above = _above(mask, regions)
        if above is None:
            return mask
        mask = above


def _above(mask: Mask, regions: Regions) -> Mask | None:
    node = mask.value.producer()
    climb = None if node is None or node.domain else _CLIMBS.get(node.op_type)
    return None if climb is None or node is None else climb(mask, node, regions)


def _above_same(mask: Mask, node: ir.Node, regions: Regions) -> Mask | None:
    return _operand(regions, node, 0, mask.kind)


def _above_not(mask: Mask, node: ir.Node, regions: Regions) -> Mask | None:
    return _operand(regions, node, 0, _NEGATED[mask.kind])


def _operand(regions: Regions, node: ir.Node, slot: int, kind: Kind) -> Mask | None:
    found = _per_sample(regions, node, slot, kind)
    return found[0] if found else None


def _above_cast(mask: Mask, node: ir.Node, regions: Regions) -> Mask | None:
    source = node.inputs[0]
    if mask.kind is Kind.ADDITIVE:
        return _operand(regions, node, 0, Kind.ADDITIVE)
    is_allowed = mask.kind in (Kind.ALLOWED, Kind.ALLOWED_FLAG)
    if source is not None and source.dtype == ir.DataType.BOOL:
        return _operand(regions, node, 0, Kind.ALLOWED if is_allowed else Kind.FORBIDDEN)
    kind = Kind.ALLOWED_FLAG if is_allowed else Kind.FORBIDDEN_FLAG
    if mask.kind in (Kind.ALLOWED, Kind.FORBIDDEN) and mask.serves_all_queries:
        return None  # a boolean is what is wanted
    return _operand(regions, node, 0, kind)


def _above_where(mask: Mask, node: ir.Node, regions: Regions) -> Mask | None:
    if mask.kind is not Kind.ADDITIVE:
        return None
    for slot, kind in ((2, Kind.ALLOWED), (1, Kind.FORBIDDEN)):
        low = constant(node.inputs[slot])
        if low is not None and (low <= MASKED).all():
            return _operand(regions, node, 0, kind)
    return None


def _above_both(mask: Mask, node: ir.Node, regions: Regions) -> Mask | None:
    """Go on along the one operand that differs between samples.

    A key is no padding if some query may attend to it. The other operand (causality, a
    bias) is the same for all samples, so that it cannot know padding.
    """
    ops = {
        Kind.ALLOWED: "And",
        Kind.FORBIDDEN: "Or",
        Kind.ADDITIVE: "Add",
        Kind.ALLOWED_FLAG: "Mul",
    }
    if ops.get(mask.kind) != node.op_type:
        return None
    operands = [
        found for slot in (0, 1) if (found := _operand(regions, node, slot, mask.kind)) is not None
    ]
    return operands[0] if len(operands) == 1 else None


def _above_reshape(mask: Mask, node: ir.Node, regions: Regions) -> Mask | None:
    """(B, H, 1, N) -> (B * H, 1, N): the queries and keys are the last two axes of both."""
    exprs = regions.exprs(node, 0)
    is_same = exprs is not None and exprs[-2:] == mask.exprs[-2:]
    return _operand(regions, node, 0, mask.kind) if is_same else None


def _above_flag(mask: Mask, node: ir.Node, regions: Regions) -> Mask | None:
    """``(1 - mask) * lowest``: the arithmetic of older exports."""
    left, right = (constant(value) for value in node.inputs)
    if node.op_type == "Mul" and mask.kind is Kind.ADDITIVE:
        for slot, number in ((0, right), (1, left)):
            if number is not None and (number <= MASKED).all():
                return _operand(regions, node, slot, Kind.FORBIDDEN_FLAG)
    if node.op_type == "Mul" and mask.kind is Kind.ALLOWED_FLAG:
        return _above_both(mask, node, regions)
    is_flag = mask.kind in (Kind.ALLOWED_FLAG, Kind.FORBIDDEN_FLAG)
    if node.op_type == "Sub" and is_flag and left is not None and (left == 1).all():
        return _operand(regions, node, 1, _NEGATED[mask.kind])
    return None


_CLIMBS: dict[str, Callable[[Mask, ir.Node, Regions], Mask | None]] = {
    "Expand": _above_same,
    "Identity": _above_same,
    "Reshape": _above_reshape,
    "Not": _above_not,
    "Cast": _above_cast,
    "Where": _above_where,
    "And": _above_both,
    "Or": _above_both,
    "Add": _above_both,
    "Mul": _above_flag,
    "Sub": _above_flag,
}

_NEGATED = {
    Kind.ALLOWED: Kind.FORBIDDEN,
    Kind.FORBIDDEN: Kind.ALLOWED,
    Kind.ALLOWED_FLAG: Kind.FORBIDDEN_FLAG,
    Kind.FORBIDDEN_FLAG: Kind.ALLOWED_FLAG,
    Kind.ADDITIVE: Kind.ADDITIVE,
}


# --- down to (B, N) ------------------------------------------------------------------------


def _as_valid(emit: Emitter, mask: Mask, regions: Regions) -> Validity:
    beside = regions.beside_batch(mask.exprs[0])
    if beside is not None:
        heads = size(beside)
        assert isinstance(heads, int)
        apart = emit.apart(mask.value, heads, len(mask.exprs))
        apart.type = mask.value.type
        mask = Mask(apart, (regions.batch, beside, *mask.exprs[1:]), mask.kind)
    rank = len(mask.exprs)
    middle = list(range(1, rank - 1))
    is_small = all(mask.exprs[axis] == UNIT for axis in middle)
    allowed = mask.value
    if not is_small:
        return Validity(_any_query(emit, mask, middle), None)
    match mask.kind:
        case Kind.ADDITIVE:
            allowed = emit.op("Greater", allowed, _threshold(emit, mask.value))
        case Kind.ALLOWED_FLAG | Kind.FORBIDDEN_FLAG:
            allowed = emit.op("Cast", allowed, to=ir.DataType.BOOL.value)
        case _:
            pass
    if mask.kind in (Kind.FORBIDDEN, Kind.FORBIDDEN_FLAG):
        allowed = emit.op("Not", allowed)
    source = mask.value if mask.kind is Kind.ALLOWED else None
    return Validity(emit.squeeze(allowed, middle), source)


def _any_query(emit: Emitter, mask: Mask, middle: list[int]) -> ir.Value:
    """A key is no padding if some query of some head may attend to it."""
    if mask.kind is Kind.ADDITIVE:
        best = emit.op("ReduceMax", mask.value, emit.ints(*middle), keepdims=0)
        return emit.op("Greater", best, _threshold(emit, mask.value))
    numbers = emit.op("Cast", mask.value, to=ir.DataType.FLOAT.value)
    is_allowed = mask.kind in (Kind.ALLOWED, Kind.ALLOWED_FLAG)
    reduce = "ReduceMax" if is_allowed else "ReduceMin"
    best = emit.op(reduce, numbers, emit.ints(*middle), keepdims=0)
    found = emit.op("Cast", best, to=ir.DataType.BOOL.value)
    return found if is_allowed else emit.op("Not", found)


def _threshold(emit: Emitter, like: ir.Value) -> ir.Value:
    """Half of what the mildest masks write; biases stay far above it."""
    return emit.number(MASKED / 2, like.dtype or ir.DataType.FLOAT)


__all__ = ["Validity", "validity"]
