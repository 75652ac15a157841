"""How the operators of ``secateur.models.selective_scan`` become ONNX: Scan and Conv."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir

from secateur.export.attention_translation import Translation


def translations(opset: int) -> dict[Callable[..., Any], Translation]:
    """Return the entries for ``torch.onnx.export``'s table, for one opset."""
    import torch
    from onnxscript.onnx_opset import all_opsets
    from onnxscript.values import Op

    import secateur.models.selective_scan  # noqa: F401 - registers the operators

    op = all_opsets["", opset]
    scan_node = Op(op, "Scan", _schema())

    def scan(decay: ir.Value, update: ir.Value, read: ir.Value, backward: bool) -> ir.Value:
        """One Scan along axis 1; a direction of 1 reads and writes from the end."""
        sizes = op.Concat(op.Shape(update, start=0, end=1), op.Shape(update, start=2), axis=0)
        start = op.Expand(op.CastLike(op.Constant(value_float=0.0), update), sizes)
        way = int(backward)
        outputs = scan_node(
            start,
            decay,
            update,
            read,
            body=_body(update.dtype or ir.DataType.FLOAT),
            num_scan_inputs=3,
            scan_input_axes=[1, 1, 1],
            scan_output_axes=[1],
            scan_input_directions=[way] * 3,
            scan_output_directions=[way],
        )
        read_off: ir.Value = outputs[1]  # the first one is the state behind the last token
        return read_off

    def convolution(x: ir.Value, weight: ir.Value, bias: ir.Value, backward: bool) -> ir.Value:
        """Conv with padding on one side; backwards, with the kernel turned round."""
        channels, extent = _sizes(weight)
        pads = [0, extent - 1] if backward else [extent - 1, 0]
        if backward:
            last, end = op.Constant(value_ints=[-1]), op.Constant(value_ints=[-extent - 1])
            weight = op.Slice(weight, last, end, op.Constant(value_ints=[2]), last)
        made: ir.Value = op.Conv(
            x, weight, bias, group=channels, pads=pads, kernel_shape=[extent], strides=[1]
        )
        return made

    return {
        torch.ops.secateur.selective_scan.default: scan,
        torch.ops.secateur.sequence_convolution.default: convolution,
    }


def _sizes(weight: ir.Value) -> tuple[int, int]:
    """Return E and k of a weight (E, 1, k)."""
    dims = () if weight.shape is None else weight.shape.dims
    channels, extent = dims[0], dims[-1]
    if not isinstance(channels, int) or not isinstance(extent, int):
        raise TypeError(f"the sizes of the kernel {weight.name!r} are no constants: {dims}")
    return channels, extent


def _body(dtype: ir.DataType) -> ir.Graph:
    """State (B, E, S), decay (B, E, S), update (B, E, S), read (B, S) -> state, (B, E)."""
    kind = ir.TensorType(dtype)
    state, decay, update, read = (
        ir.Value(name=name, type=kind) for name in ("state", "decay", "update", "read")
    )
    middle = ir.node("Constant", [], {"value_ints": [1]}, name="middle")
    last = ir.node("Constant", [], {"value_ints": [-1]}, name="last")
    left = ir.node("Mul", [decay, state], name="left")
    after = ir.node("Add", [left.outputs[0], update], name="after")
    rows = ir.node("Unsqueeze", [read, middle.outputs[0]], name="rows")
    seen = ir.node("Mul", [after.outputs[0], rows.outputs[0]], name="seen")
    made = ir.node("ReduceSum", [seen.outputs[0], last.outputs[0]], {"keepdims": 0}, name="made")
    nodes = [middle, last, left, after, rows, seen, made]
    for node in nodes:
        node.outputs[0].name = f"{node.name}_value"
    after.outputs[0].type = made.outputs[0].type = kind
    outputs = [after.outputs[0], made.outputs[0]]
    return ir.Graph([state, decay, update, read], outputs, nodes=nodes, name="selective_scan")


@functools.cache
def _schema() -> onnx.defs.OpSchema:
    """ai.onnx's Scan with as many inputs and outputs as are used here: its own has any number."""
    schema = onnx.defs.OpSchema
    numbers = schema.AttrType.INTS
    return schema(
        "Scan",
        "",
        16,
        inputs=[schema.FormalParameter(name, "T") for name in ("start", "decay", "update", "read")],
        outputs=[schema.FormalParameter(name, "T") for name in ("state", "made")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
        attributes=[
            schema.Attribute("body", schema.AttrType.GRAPH),
            schema.Attribute("num_scan_inputs", schema.AttrType.INT),
            schema.Attribute("scan_input_axes", numbers),
            schema.Attribute("scan_output_axes", numbers),
            schema.Attribute("scan_input_directions", numbers),
            schema.Attribute("scan_output_directions", numbers),
        ],
    )


__all__ = ["translations"]
