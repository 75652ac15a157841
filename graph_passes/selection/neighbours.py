"""Ops that read tokens beside one another: convolutions and scans along a sequence.

Where tokens may close the gaps, those that stay are neighbours: the op reads the shorter sequence,
as it does in a module whose forward drops tokens. That is not what a mask would give.
"""

from __future__ import annotations

import onnx_ir as ir

from secateur.graph_passes.attention_steps import axes_of
from secateur.graph_passes.selection.neutral import Fill, Neutral
from secateur.graph_passes.selection.region import Regions, refusal

Edge = tuple[ir.Node, int]

_OPS = frozenset({"Conv", "Scan"})
GAPS_HINT = "say close_gaps if tokens that stay may be neighbours, or select at a later site"


def neighbours(regions: Regions) -> frozenset[ir.Node]:
    """Return the nodes behind a cut that read neighbours among the tokens and make one for each."""
    return frozenset(
        node
        for node, _ in regions.in_region()
        if node.op_type in _OPS
        and not node.domain
        and _token_axes(node, regions)
        and any(
            regions.is_tokens(expr)
            for value in node.outputs
            for expr in axes_of(regions.axes, value) or ()
        )
    )


def blanks(regions: Regions, region: int) -> dict[Edge, Neutral]:
    """Return what has to be zero in slots without a token, so that no neighbour reads them.

    Raises:
        PreconditionError: a scan of which nobody knows what an empty step is.
    """
    wanted: dict[Edge, Neutral] = {}
    for node, here in regions.in_region():
        axes = _token_axes(node, regions) if node.op_type in _OPS and not node.domain else []
        if here != region or not axes:
            continue
        slot = 0 if node.op_type == "Conv" else _addend(node)
        axis = dict(axes).get(slot)
        if axis is None:
            reason = "samples keep different numbers of tokens, and its empty steps are not known"
            raise refusal(regions, node, reason, "keep an equal count of tokens per sample")
        exprs = regions.exprs(node, slot)
        assert exprs is not None
        wanted[node, slot] = Neutral(Fill.ZERO, axis - len(exprs))
    return wanted


def _token_axes(node: ir.Node, regions: Regions) -> list[tuple[int, int]]:
    """Return (slot, axis) wherever a node that reads neighbours has tokens along them."""
    found = []
    for slot in range(len(node.inputs)):
        for axis, expr in enumerate(regions.exprs(node, slot) or ()):
            is_space = node.op_type == "Scan" or (slot == 0 and axis > 1)
            if is_space and regions.bears(expr):
                found.append((slot, axis))
    return found


def _addend(node: ir.Node) -> int:
    """Return the input that a scan of one state adds in each step, -1 where it does not.

    With h = decay * h + update from h = 0, a step whose update is 0 at either end changes nothing.
    """
    body = node.attributes["body"].as_graph()
    scanned = node.attributes.get_int("num_scan_inputs", 0)
    last = body.outputs[0].producer()
    if len(node.inputs) - scanned != 1 or last is None or last.op_type != "Add":
        return -1
    for mine, other in (last.inputs, reversed(last.inputs)):
        product = None if other is None else other.producer()
        if product is None or product.op_type != "Mul" or mine not in body.inputs:
            continue
        if body.inputs[0] in product.inputs:
            return body.inputs.index(mine)
    return -1


__all__ = ["GAPS_HINT", "blanks", "neighbours"]
