"""What a selector may look at, built at a site in the cheapest way.

``class_row`` is one row of attention, O(N d), and never asks fused attention for its
probabilities; ``column_mean`` needs the whole map, which a fused node has to repeat.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from secateur.errors import PreconditionError
from secateur.graph_passes.attention import LogitStep, Site
from secateur.graph_passes.axes import UNIT, node_name
from secateur.graph_passes.selection.budget import Tokens
from secateur.graph_passes.selection.emit import Emitter
from secateur.graph_passes.selection.neutral import Fill
from secateur.graph_passes.selection.region import Regions
from secateur.registry import Registry

logger = logging.getLogger(__name__)

_LAST = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True)
class Context:
    """Where signals are built: the site, its tokens, and the hidden states to be cut."""

    emit: Emitter
    regions: Regions
    site: Site
    hidden: ir.Value
    tokens: Tokens


SIGNALS: Registry[Callable[[Context], ir.Value]] = Registry("signal")


def build(context: Context, names: tuple[str, ...]) -> dict[str, ir.Value]:
    """Emit the named signals.

    Raises:
        BadInputError: a name is not a signal.
        PreconditionError: the site's attention cannot give it.
    """
    made = {name: SIGNALS[name](context) for name in names}
    for name, value in made.items():
        if value.type is None:
            value.type = ir.TensorType(_type_of(context, name))
    return made


def _type_of(context: Context, name: str) -> ir.DataType:
    if name == "valid":
        return ir.DataType.BOOL
    return context.site.query.dtype or context.hidden.dtype or ir.DataType.FLOAT


@SIGNALS.register("hidden")
def hidden(context: Context) -> ir.Value:
    """(B, N, D), the very tokens that are selected from."""
    return context.hidden


@SIGNALS.register("valid")
def valid(context: Context) -> ir.Value:
    """(B, N) bool, False on padding."""
    if context.tokens.valid is not None:
        return context.tokens.valid
    shape = context.emit.op("Shape", context.hidden, start=0, end=2)
    yes = ir.tensor(np.array([True]))
    return context.emit.op("ConstantOfShape", shape, value=yes)


@SIGNALS.register("keys")
def keys(context: Context) -> ir.Value:
    """(B, H, N, Dh), unscaled, rotated where the model rotates them; H of the keys."""
    site, emit = context.site, context.emit
    return _as_heads(emit, site.key, site.key_layout, (site.key_heads, site.head_dim))


@SIGNALS.register("values")
def values(context: Context) -> ir.Value:
    """(B, H, N, Dh)."""
    site, emit = context.site, context.emit
    return _as_heads(emit, site.value, site.layout, (site.key_heads, site.head_dim))


@SIGNALS.register("class_row")
def class_row(context: Context) -> ir.Value:
    """(B, N): how much the first token attends to each token, mean over heads."""
    emit = context.emit
    logits = _logits(context, only_first=True)
    weights = emit.op("Softmax", logits, axis=-1)
    return emit.op("ReduceMean", weights, emit.ints(1, 2), keepdims=0)


@SIGNALS.register("column_mean")
def column_mean(context: Context) -> ir.Value:
    """(B, N): how much each token is attended to, mean over heads and valid queries."""
    emit, site = context.emit, context.site
    if site.transposed_key is not None:
        weights = site.node.outputs[0]
    else:
        logger.info("column_mean computes the attention map of %s a second time", site.name)
        logits = _logits(context, only_first=False)
        weights = emit.op("Softmax", logits, axis=-1)
    if context.tokens.valid is None:
        return emit.op("ReduceMean", weights, emit.ints(1, 2), keepdims=0)
    counted = emit.op("CastLike", context.tokens.valid, weights)
    total = emit.op("ReduceSum", counted, emit.ints(1), keepdims=1)
    share = emit.unsqueeze(emit.op("Div", counted, total), (1, 2))
    columns = emit.op("MatMul", share, weights)
    return emit.op("ReduceMean", columns, emit.ints(1, 2), keepdims=0)


def _as_heads(emit: Emitter, value: ir.Value, layout: str, sizes: tuple[int, int]) -> ir.Value:
    if layout == "bnd":
        value, layout = emit.op("Reshape", value, emit.ints(0, 0, *sizes)), "bnhd"
    perms = {"bhnd": (0, 1, 2, 3), "bnhd": (0, 2, 1, 3), "bhdn": (0, 1, 3, 2)}
    return emit.transpose(value, perms[layout])


# --- attention scores --------------------------------------------------------------------


def _logits(context: Context, *, only_first: bool) -> ir.Value:
    site = context.site
    if site.transposed_key is None:
        return _fused_logits(context, only_first=only_first)
    emit = context.emit
    matmul = site.steps[0].node.inputs[site.steps[0].slot] if site.steps else site.node.inputs[0]
    assert matmul is not None
    product = matmul.producer()
    assert product is not None
    query, right = product.inputs[0], product.inputs[1]
    assert query is not None
    rows = _first(emit, query, 2) if only_first else query
    here = emit.op("MatMul", rows, right)
    for step in site.steps:
        here = _replay(context, step, here, only_first=only_first)
    return here


def _replay(context: Context, step: LogitStep, here: ir.Value, *, only_first: bool) -> ir.Value:
    """Apply one node between q k^T and the softmax to other rows."""
    inputs: list[ir.Value | None] = []
    for slot, value in enumerate(step.node.inputs):
        exprs = context.regions.exprs(step.node, slot)
        if slot == step.slot:
            inputs.append(here)
        elif value is not None and only_first and exprs and len(exprs) > 1 and exprs[-2] != UNIT:
            inputs.append(_first(context.emit, value, len(exprs) - 2))
        else:
            inputs.append(value)
    return context.emit.copy(step.node, inputs).outputs[0]


def _first(emit: Emitter, value: ir.Value, axis: int) -> ir.Value:
    return emit.op("Slice", value, emit.ints(0), emit.ints(1), emit.ints(axis))


def _fused_logits(context: Context, *, only_first: bool) -> ir.Value:
    emit, site = context.emit, context.site
    _check_fused(site, only_first=only_first)
    groups, repeats = site.key_heads, site.heads // max(site.key_heads, 1)
    query = site.query
    if only_first:
        query = _first(emit, query, 2 if site.layout == "bhnd" else 1)
    query = _as_heads(emit, query, site.layout, (site.heads, site.head_dim))
    if repeats > 1 and only_first:
        query = emit.op("Reshape", query, emit.ints(0, groups, repeats, site.head_dim))
    scale = emit.number(site.scale, query.dtype or site.query.dtype or ir.DataType.FLOAT)
    transposed = emit.transpose(keys(context), (0, 1, 3, 2))
    logits = emit.op("MatMul", emit.op("Mul", query, scale), transposed)
    mask = site.node.inputs[_mask_slot(site)] if site.mask is not None else None
    if mask is None or site.mask is None:
        return logits
    exprs = context.regions.exprs(site.node, _mask_slot(site))
    if only_first and exprs and len(exprs) > 1 and exprs[-2] != UNIT:
        mask = _first(emit, mask, len(exprs) - 2)
    if site.mask.dtype == ir.DataType.BOOL:
        dtype = site.query.dtype or ir.DataType.FLOAT
        return emit.op("Where", mask, logits, emit.number(Fill.LOWEST.number(dtype), dtype))
    return emit.op("Add", logits, mask)


def _mask_slot(site: Site) -> int:
    return 5 if site.node.domain == "com.microsoft" else 3


def _check_fused(site: Site, *, only_first: bool) -> None:
    node = site.node
    reason = ""
    if node.attributes.get_int("is_causal", 0) or node.attributes.get_int("unidirectional", 0):
        reason = "a causal attention: its first token sees only itself"
    elif node.attributes.get_float("softcap", 0.0):
        reason = "an attention with softcap"
    elif site.key_heads != site.heads and not only_first:
        reason = "the whole map of an attention with grouped queries"
    if reason:
        raise PreconditionError(
            f"attention scores cannot be computed beside {reason}",
            where=f"{node.op_type} node {node_name(node)}",
            next_step="choose a selector that reads keys, values or hidden states",
        )


__all__ = ["SIGNALS", "Context", "build"]
