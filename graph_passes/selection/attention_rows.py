"""Attention probabilities of a site: one row of them, or the whole map.

A row is one product with the keys, O(N d), whatever form the attention has; fused attention is
never asked for its probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from secateur.errors import PreconditionError
from secateur.graph_passes.attention_steps import (
    APART,
    JOINED,
    RELAYOUTS,
    Step,
    axes_of,
    mixed_layout,
)
from secateur.graph_passes.axes import UNIT, Expr, node_name
from secateur.graph_passes.selection.emit import Emitter
from secateur.graph_passes.selection.neutral import Fill
from secateur.graph_passes.selection.region import Regions
from secateur.graph_passes.selection.versions import Versions
from secateur.graph_passes.sites import Attention

_LAST = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True)
class Row:
    """One query per sample.

    Attributes:
        end: The first or the last token.
        position: (B,) int64, where samples differ in which token that is; None where not.
    """

    end: Literal["first", "last"] = "first"
    position: ir.Value | None = None


class Rows:
    """Emits the probabilities of sites of one graph."""

    def __init__(self, versions: Versions, regions: Regions) -> None:
        self._emit = versions.emit
        self._versions = versions
        self._regions = regions

    def row(self, attention: Attention, row: Row) -> ir.Value:
        """(B, H, 1, N) weights of one query; (B, Hkv, G, N) of grouped ones.

        They are what values are summed by: probabilities, with heads mixed where the model
        mixes them behind the softmax.

        Raises:
            PreconditionError: fused attention that does more than softmax(q k^T + mask).
        """
        return self._softmax(attention, row)

    def full(self, attention: Attention) -> ir.Value:
        """(B, H, N, N) weights, as ``row``; computed again beside fused attention.

        Raises:
            PreconditionError: as ``row``, and where queries share keys.
        """
        if attention.weights is None:
            return self._softmax(attention, None)
        exprs = axes_of(self._regions.axes, attention.weights) or ()
        heads = self._versions.heads_of(exprs) if len(exprs) == 3 else attention.heads
        return self._of_tokens(attention, self._apart(attention.weights, exprs, heads))

    def _softmax(self, attention: Attention, row: Row | None) -> ir.Value:
        """Normalise over the keys; slots without a token get nothing."""
        if row is not None and not attention.replays:
            exprs = self._of(attention.node, 0)
            first = exprs[0] if len(exprs) == 4 else self._regions.batch
            return self._take(self.full(attention), (first, UNIT, *exprs[-2:]), row)
        emit, logits = self._emit, self._logits(attention, row)
        slots = self._slots(attention)
        if slots is not None and _lacks_mask(attention):
            dtype = attention.dtype
            lowest = emit.number(Fill.LOWEST.number(dtype), dtype)
            logits = emit.op("Where", slots, logits, lowest)
        weights = emit.op("Softmax", logits, axis=-1)
        return self._of_tokens(attention, self._replayed(attention.mixing, weights, row, attention))

    def _slots(self, attention: Attention) -> ir.Value | None:
        """(B, 1, 1, K) which slots hold a token; None where all do."""
        region = self._regions.of.get(attention.node, 0)
        if not region or self._versions.kept[region - 1].valid is None:
            return None
        return self._versions.slots(region, 4, -1)

    def _of_tokens(self, attention: Attention, weights: ir.Value) -> ir.Value:
        """Mixed heads may weigh slots without a token: they add a bias to what was 0."""
        slots = self._slots(attention) if attention.mixing else None
        if slots is None:
            return weights
        nothing = self._emit.number(0.0, attention.dtype)
        return self._emit.op("Where", slots, weights, nothing)

    def _logits(self, attention: Attention, row: Row | None) -> ir.Value:
        product = attention.product
        if product is None:
            return self._fused(attention, row)
        emit, query, sizes = self._emit, product.query, (attention.heads, attention.head_dim)
        exprs = self._of(product.node, product.query_slot)
        if product.query_layout != "bhnd":
            query = as_heads(emit, query, product.query_layout, sizes)
            named = dict(zip(product.query_layout, exprs, strict=True))
            exprs = (named.get("b", self._regions.batch), UNIT, named["n"], named["d"])
        rows = query if row is None else self._take(query, exprs, row, 2)
        sizes = (attention.key_heads, attention.head_dim)
        here = emit.op(
            "MatMul", rows, as_heads(emit, product.key, product.key_layout, sizes, "bhdn")
        )
        return self._replayed(attention.steps, here, row, attention)

    def _replayed(
        self, steps: tuple[Step, ...], here: ir.Value, row: Row | None, attention: Attention
    ) -> ir.Value:
        """Apply nodes to other rows, (B, H, row, N): axes are never made one here."""
        order = "bhnm"
        for step in steps:
            if step.node.op_type in RELAYOUTS:
                here, order = self._moved(step, here, order)
            elif step.mixes_heads:
                here, order = self._mixed(step, here), "".join(mixed_layout(step) or order)
            else:
                here = self._replay(step, here, row, attention)
        return here

    def _moved(self, step: Step, here: ir.Value, order: str) -> tuple[ir.Value, str]:
        perm = step.node.attributes.get_ints("perm", tuple(reversed(range(len(step.layout)))))
        if step.node.op_type != "Transpose":
            return here, order
        wanted = "".join(step.layout[axis] for axis in perm)
        return self._emit.transpose(here, [order.index(letter) for letter in wanted]), wanted

    def _mixed(self, step: Step, here: ir.Value) -> ir.Value:
        """Mix the heads of other rows, which stand where the node's own do."""
        emit, node = self._emit, step.node
        inputs = list(node.inputs)
        inputs[step.slot] = here
        if node.op_type != "Gemm":
            return emit.copy(node, inputs).outputs[0]
        matrix, attributes = inputs[1], node.attributes
        assert matrix is not None
        dtype = here.dtype or step.node.outputs[0].dtype or ir.DataType.FLOAT
        if attributes.get_int("transB", 0):
            matrix = emit.transpose(matrix, (1, 0))
        made = emit.op("MatMul", here, matrix)
        if (alpha := attributes.get_float("alpha", 1.0)) != 1.0:
            made = emit.op("Mul", made, emit.number(alpha, dtype))
        bias = inputs[2] if len(inputs) > 2 else None
        if bias is None:
            return made
        if (beta := attributes.get_float("beta", 1.0)) != 1.0:
            bias = emit.op("Mul", bias, emit.number(beta, dtype))
        return emit.op("Add", made, bias)

    def _replay(
        self, step: Step, here: ir.Value, row: Row | None, attention: Attention
    ) -> ir.Value:
        """Apply one node that moves nothing to other rows."""
        inputs: list[ir.Value | None] = []
        is_merged, is_plain = step.layout == JOINED, step.layout in (APART, JOINED)
        for slot, other in enumerate(step.node.inputs):
            value, exprs = here if slot == step.slot else other, self._of(step.node, slot)
            if value is not None and value is not here and is_merged:
                value, exprs = self._apart(value, exprs, attention.heads), self._apart_axes(exprs)
            if value is not None and value is not here and row and is_plain and _has_queries(exprs):
                value = self._take(value, exprs, row)
            inputs.append(value)
        return self._emit.copy(step.node, inputs).outputs[0]

    def _apart(self, value: ir.Value, exprs: tuple[Expr, ...], heads: int) -> ir.Value:
        """(B * H, x, y) -> (B, H, x, y); what broadcasts over the first axis stays."""
        if len(exprs) != 3 or exprs[0] == UNIT:
            return value
        return self._emit.apart(value, heads, 3)

    def _apart_axes(self, exprs: tuple[Expr, ...]) -> tuple[Expr, ...]:
        if len(exprs) != 3 or exprs[0] == UNIT:
            return exprs
        return (self._regions.batch, exprs[0], *exprs[1:])

    def _fused(self, attention: Attention, row: Row | None) -> ir.Value:
        emit = self._emit
        _check_fused(attention, row)
        groups, repeats = attention.key_heads, attention.heads // max(attention.key_heads, 1)
        query = attention.query
        if row is not None:
            query = self._take(
                query, self._of(attention.node, 0), row, 2 if attention.layout == "bhnd" else 1
            )
        query = as_heads(emit, query, attention.layout, (attention.heads, attention.head_dim))
        if repeats > 1:
            query = emit.op("Reshape", query, emit.ints(0, groups, repeats, attention.head_dim))
        dtype = query.dtype or attention.dtype
        sizes = (attention.key_heads, attention.head_dim)
        key = as_heads(emit, attention.key, attention.key_layout, sizes)
        transposed = emit.transpose(key, (0, 1, 3, 2))
        scaled = emit.op("Mul", query, emit.number(attention.scale, dtype))
        return self._masked(attention, emit.op("MatMul", scaled, transposed), row)

    def _masked(self, attention: Attention, logits: ir.Value, row: Row | None) -> ir.Value:
        slot = mask_slot(attention)
        mask = attention.node.inputs[slot] if attention.mask is not None else None
        if mask is None or attention.mask is None:
            return logits
        exprs = self._of(attention.node, slot)
        if row is not None and _has_queries(exprs):
            mask = self._take(mask, exprs, row)
        if attention.mask.dtype == ir.DataType.BOOL:
            dtype = attention.dtype
            lowest = self._emit.number(Fill.LOWEST.number(dtype), dtype)
            return self._emit.op("Where", mask, logits, lowest)
        return self._emit.op("Add", logits, mask)

    def _of(self, node: ir.Node, slot: int) -> tuple[Expr, ...]:
        return self._regions.exprs(node, slot) or ()

    def _take(
        self, value: ir.Value, exprs: tuple[Expr, ...], row: Row, axis: int | None = None
    ) -> ir.Value:
        """(..., N, x) -> (..., 1, x): the row's query along an axis, the second to last one."""
        emit = self._emit
        at = len(exprs) - 2 if axis is None else axis
        if row.position is None:
            first = row.end == "first"
            start, stop = (0, 1) if first else (-1, _LAST)
            return emit.op("Slice", value, emit.ints(start), emit.ints(stop), emit.ints(at))
        if exprs and exprs[0] == self._regions.batch:
            return self._per_sample(value, (at, len(exprs)), row.position)
        padded = emit.unsqueeze(value, range(4 - len(exprs)))
        taken = emit.op("Gather", padded, row.position, axis=2)
        return emit.transpose(taken, (2, 1, 0, 3))

    def _per_sample(self, value: ir.Value, at: tuple[int, int], position: ir.Value) -> ir.Value:
        """(B, ...) -> one entry of each sample, its own, along the axis ``at[0]`` of ``at[1]``.

        It is taken above a scale and a Transpose that bring that axis from place 1: to permute
        all tokens for the sake of one costs more than everything else here.
        """
        emit, (axis, rank), chain = self._emit, at, _layout_chain(value, at[0])
        if chain:
            source = chain[-1].inputs[0]
            assert source is not None
            made = self._per_sample(source, (1, rank), position)
            for node in reversed(chain):
                made = emit.copy(node, [made, *node.inputs[1:]]).outputs[0]
            return made
        perm = [0, axis, *(i for i in range(1, rank) if i != axis)]
        index = emit.unsqueeze(position, (1, 2))
        taken = emit.op("GatherND", emit.transpose(value, perm), index, batch_dims=1)
        return emit.transpose(taken, [int(i) for i in np.argsort(perm)])


def _layout_chain(value: ir.Value, axis: int) -> list[ir.Node]:
    """Return the nodes from ``value`` up to the Transpose that brings ``axis`` from place 1.

    Between them may stand products with one number. Empty where that is not so.
    """
    chain: list[ir.Node] = []
    node = value.producer()
    while node is not None and not node.domain:
        chain.append(node)
        if node.op_type == "Transpose":
            perm = list(node.attributes.get_ints("perm", ()))
            return chain if perm[:1] == [0] and perm[axis] == 1 else []
        factor = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] else None
        if node.op_type not in ("Mul", "Div") or factor is None or factor.size != 1:
            return []
        source = node.inputs[0]
        node = None if source is None else source.producer()
    return []


def as_heads(
    emit: Emitter, value: ir.Value, layout: str, sizes: tuple[int, int], wanted: str = "bhnd"
) -> ir.Value:
    """Bring queries, keys or values from a layout to (B, H, N, Dh), or as ``wanted`` says."""
    if layout == "bnd":
        value, layout = emit.op("Reshape", value, emit.ints(0, 0, *sizes)), "bnhd"
    if "g" in layout:
        others = layout.replace("g", "")
        turned = emit.transpose(value, [layout.index(letter) for letter in f"g{others}"])
        value, layout = emit.apart(turned, sizes[0], 3), f"bh{others}"
    return emit.transpose(value, [layout.index(letter) for letter in wanted])


def mask_slot(attention: Attention) -> int:
    """Return the input of a fused node that is its mask."""
    return 5 if attention.node.domain == "com.microsoft" else 3


def _lacks_mask(attention: Attention) -> bool:
    """Tell whether validity stands beside the steps that are replayed, not in one of them."""
    if attention.product is None:
        return attention.mask is None
    last = attention.steps[-1].node if attention.steps else attention.product.node
    return attention.node.inputs[0] is not last.outputs[0]


def _has_queries(exprs: tuple[Expr, ...]) -> bool:
    return len(exprs) > 1 and exprs[-2] != UNIT


def _check_fused(attention: Attention, row: Row | None) -> None:
    node = attention.node
    is_causal = node.attributes.get_int("is_causal", 0) or node.attributes.get_int(
        "unidirectional", 0
    )
    reason = ""
    if is_causal and row is None:
        reason = "a causal attention, whose map is not made here"
    elif is_causal and row is not None and row.end == "first":
        reason = "a causal attention: its first token sees only itself"
    elif node.attributes.get_float("softcap", 0.0):
        reason = "an attention with softcap"
    elif attention.key_heads != attention.heads and row is None:
        reason = "the whole map of an attention with grouped queries"
    if reason:
        raise PreconditionError(
            f"attention scores cannot be computed beside {reason}",
            where=f"{node.op_type} node {node_name(node)}",
            next_step="choose a selector that reads keys, values or hidden states",
        )


__all__ = ["Row", "Rows", "as_heads", "mask_slot"]
