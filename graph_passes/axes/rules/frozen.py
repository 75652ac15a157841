"""Ops that nothing can be cut through: all that they touch stays, and the report says why."""

from __future__ import annotations

from collections.abc import Iterator

from secateur.graph_passes.axes.relations import AXIS_RULES, Fresh, Frozen, Port, Relation
from secateur.graph_passes.axes.view import View

FROZEN: dict[str, str] = {
    "AffineGrid": "its positions are coordinates",
    "BlackmanWindow": "its positions are values",
    "Compress": "which positions stay is computed",
    "DFT": "a transform combines its positions",
    "DeformConv": "each channel is read at offsets of its own",
    "Det": "rows and columns make one number",
    "HammingWindow": "its positions are values",
    "HannWindow": "its positions are values",
    "MaxUnpool": "it is written at positions that count all axes together",
    "MelWeightMatrix": "its positions are values",
    "Multinomial": "random numbers are drawn for it",
    "NonMaxSuppression": "its positions come out as numbers",
    "NonZero": "its positions come out as numbers",
    "RandomNormal": "random numbers are drawn for it",
    "RandomUniform": "random numbers are drawn for it",
    "STFT": "a transform combines its positions",
    "Unique": "which positions stay is computed",
    "com.microsoft:MatMulNBits": "its weights are packed, several in a byte",
}
"""Op to what speaks against cutting any axis of its inputs and outputs."""


@AXIS_RULES.register(*FROZEN)
def frozen(view: View) -> Iterator[Relation]:
    """(A, ...), ... -> (B, ...), ...: everything stays."""
    domain = f"{view.node.domain}:" if view.node.domain else ""
    reason = FROZEN[f"{domain}{view.node.op_type}"]
    for slot in range(len(view)):
        for axis in range(view.rank(slot) or 0):
            yield Frozen(Port(slot, axis), reason)
    for i in range(len(view.node.outputs)):
        for axis in range(len(view.shape(~i) or ())):
            yield Fresh(Port(~i, axis))
            yield Frozen(Port(~i, axis), reason)
