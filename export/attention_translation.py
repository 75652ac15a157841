"""How scaled dot-product attention becomes ONNX: decomposed without plumbing, or one node.

torch's own translation reads shapes at run time to transpose the keys and guards every
softmax against NaN; at the sizes that are pruned here that costs more than a selection
saves, and the shape arithmetic hides heads from the axis analysis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

if TYPE_CHECKING:
    from onnxscript.values import Opset

FUSED_ATTENTION_OPSET = 23
"""The first opset that has the ``Attention`` operator."""

Translation = Callable[..., Any]


def translations(opset: int) -> dict[Callable[..., Any], Translation]:
    """Return the table that ``torch.onnx.export`` takes, for one opset."""
    translate = _fused(opset) if opset >= FUSED_ATTENTION_OPSET else _decomposed(opset)
    return {torch.ops.aten.scaled_dot_product_attention.default: translate}


def _operators(opset: int) -> Opset:
    from onnxscript.onnx_opset import all_opsets

    return all_opsets["", opset]


def _fused(opset: int) -> Translation:
    """One ``Attention`` node; ONNX Runtime wants a mask whose query axis is not broadcast."""
    op = _operators(opset)

    def attention(  # noqa: PLR0913, PLR0917 - the operator's own signature
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        attn_mask: ir.Value | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> ir.Value:
        del dropout_p, enable_gqa  # evaluation mode; Attention derives the groups from shapes
        if attn_mask is not None and _dims(attn_mask)[-2] == 1:
            rows = op.Shape(query, start=2, end=3)
            one = op.Constant(value_ints=[1])
            dims = [*_dims(attn_mask)[:-2], _dims(query)[-2], _dims(attn_mask)[-1]]
            attn_mask = op.Expand(attn_mask, op.Concat(one, one, rows, one, axis=0))
            attn_mask.shape = ir.Shape(dims)
        outputs = op.Attention(
            query, key, value, attn_mask, is_causal=int(is_causal), scale=_scale(query, scale)
        )
        attended: ir.Value = outputs[0]
        return attended  # not the present keys and values, nor the raw scores

    return attention


def _decomposed(opset: int) -> Translation:
    """Softmax(q * scale @ k^T + mask) @ v."""
    op = _operators(opset)

    def attention(  # noqa: PLR0913, PLR0917 - the operator's own signature
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        attn_mask: ir.Value | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> ir.Value:
        del dropout_p  # evaluation mode
        if enable_gqa and _dims(query)[-3] != _dims(key)[-3]:
            key, value = _repeat_heads(op, query, key), _repeat_heads(op, query, value)
        rank = len(_dims(query))
        perm = [*range(rank - 2), rank - 1, rank - 2]
        factor = op.CastLike(op.Constant(value_float=_scale(query, scale)), query)
        scores = op.MatMul(op.Mul(query, factor), op.Transpose(key, perm=perm))
        mask = _causal_mask(op, query, key) if is_causal else attn_mask
        if mask is not None:
            scores = op.Add(scores, _additive(op, mask, query))
        weights = op.Softmax(scores, axis=-1)
        if (
            mask is not None and mask.dtype != ir.DataType.BOOL
        ):  # a row that is -inf everywhere is 0 in PyTorch and NaN in Softmax
            weights = op.Where(
                op.IsNaN(weights), op.CastLike(op.Constant(value_float=0.0), query), weights
            )
        attended: ir.Value = op.MatMul(weights, value)
        return attended

    return attention


def _dims(value: ir.Value) -> tuple[int | ir.SymbolicDim, ...]:
    if value.shape is None:
        raise ValueError(f"torch's exporter left {value.name!r} without a shape")
    return value.shape.dims


def _scale(query: ir.Value, scale: float | None) -> float:
    width = _dims(query)[-1]
    if scale is not None:
        return float(scale)
    if not isinstance(width, int):
        raise TypeError(f"the head width of {query.name!r} is not a constant: {width}")
    return 1.0 / math.sqrt(width)


def _additive(op: Opset, mask: ir.Value, like: ir.Value) -> ir.Value:
    """Turn a boolean mask (True may attend) into 0 and the lowest finite number."""
    if mask.dtype != ir.DataType.BOOL:
        return mask
    zero = op.CastLike(op.Constant(value_float=0.0), like)
    masked: ir.Value = op.Where(mask, zero, op.CastLike(_lowest(op, like), like))
    return masked


def _lowest(op: Opset, like: ir.Value) -> ir.Value:
    torch_type = {
        ir.DataType.FLOAT16: torch.float16,
        ir.DataType.BFLOAT16: torch.bfloat16,
    }.get(like.dtype or ir.DataType.FLOAT, torch.float32)
    lowest: ir.Value = op.Constant(value_float=torch.finfo(torch_type).min)
    return lowest


def _causal_mask(op: Opset, query: ir.Value, key: ir.Value) -> ir.Value:
    """(N, M) True where query row i may see key column j <= i."""
    rank = len(_dims(query))
    rows = op.Range(
        op.Constant(value_int=0),
        op.Squeeze(op.Shape(query, start=rank - 2, end=rank - 1)),
        op.Constant(value_int=1),
    )
    columns = op.Range(
        op.Constant(value_int=0),
        op.Squeeze(op.Shape(key, start=rank - 2, end=rank - 1)),
        op.Constant(value_int=1),
    )
    seen: ir.Value = op.GreaterOrEqual(
        op.Unsqueeze(rows, op.Constant(value_ints=[1])),
        op.Unsqueeze(columns, op.Constant(value_ints=[0])),
    )
    seen.dtype = ir.DataType.BOOL  # nobody has inferred types yet, and what is added depends on it
    return seen


def _repeat_heads(op: Opset, query: ir.Value, tensor: ir.Value) -> ir.Value:
    """(B, G, N, Dh) -> (B, H, N, Dh), every head ``H / G`` times in a row."""
    heads, groups = _dims(query)[1], _dims(tensor)[1]
    if not isinstance(heads, int) or not isinstance(groups, int):
        raise TypeError("grouped-query attention needs constant head counts")
    repeats = op.Constant(value_ints=[1, 1, heads // groups, 1, 1])
    tall = op.Expand(op.Unsqueeze(tensor, op.Constant(value_ints=[2])), repeats)
    rows = op.Shape(tensor, start=2, end=3)
    target = op.Concat(
        op.Constant(value_ints=[0]),
        op.Constant(value_ints=[heads]),
        rows,
        op.Constant(value_ints=[_dims(tensor)[-1]]),
        axis=0,
    )
    repeated: ir.Value = op.Reshape(tall, target)
    return repeated


__all__ = ["FUSED_ATTENTION_OPSET", "translations"]
