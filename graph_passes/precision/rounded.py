"""The float32 twin of a lowered model: every half-precision result rounded, then float32 again.

For runtimes without kernels of a type (ONNX Runtime's CPU has none for bfloat16): what a
lowered model computes can be compared with its reference anywhere.
"""

from __future__ import annotations

import onnx_ir as ir

from secateur.graph_passes.precision.casts import converted, write_type
from secateur.graph_passes.precision.rules import HOLDS


def rounded_twin(model: ir.Model) -> ir.Model:
    """Return a model that holds float32 only and computes a lowered model's numbers.

    Given   y: half = Op(x: half)
    Result  y.exact = Op(x); y = Cast<float32>(Cast<half>(y.exact))
    """
    twin = model.clone()
    for value in twin.graph.initializers.values():
        if value.dtype in HOLDS:
            value.const_value = converted(value, ir.DataType.FLOAT)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in list(twin.graph):
        for value in node.outputs:
            if value.dtype in HOLDS:
                _round(twin.graph, node, value)
    return twin


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    half, name = value.dtype, value.name
    assert half is not None
    write_type(node, ir.DataType.FLOAT)
    value.type, value.name = ir.TensorType(ir.DataType.FLOAT), f"{name}.exact"
    down = ir.node("Cast", [value], {"to": half.value}, name=f"round:{name}")
    down.outputs[0].name, down.outputs[0].type = f"{name}.rounded", ir.TensorType(half)
    up = ir.node("Cast", down.outputs, {"to": ir.DataType.FLOAT.value}, name=f"back:{name}")
    made = up.outputs[0]
    made.name, made.shape, made.type = name, value.shape, value.type
    for cast in (down, up):
        cast.metadata_props.update(node.metadata_props)
    for user, slot in tuple(value.uses()):
        if user is not down:
            user.replace_input_with(slot, made)
    graph.insert_after(node, [down, up])


__all__ = ["rounded_twin"]
