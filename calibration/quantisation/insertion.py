"""Q/DQ nodes: one pair for an activation that several products read, one DQ for a weight."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from secateur.calibration.quantisation.weights import Stored
from secateur.calibration.statistics.places import Place
from secateur.graph_passes.axes.constants import new_constant
from secateur.graph_passes.names import name_copies, node_name

_TYPES = {"int8": np.dtype(np.int8), "fp8": np.dtype(ml_dtypes.float8_e4m3fn)}


def round_activation(model: ir.Model, place: Place, scale: float, kind: str) -> None:
    """Let a product read its activation through Q/DQ; others that do share the pair."""
    value = place.node.inputs[place.slot]
    assert value is not None
    name = f"{value.name}.{kind}"
    there = next((use.node for use in value.uses() if use.node.name == f"{name}.quantise"), None)
    if there is not None:
        back = next(iter(there.outputs[0].uses())).node
        place.node.replace_input_with(place.slot, back.outputs[0])
        return
    constant = new_constant(model.graph, f"{name}.scale", np.array(scale, np.float32))
    zero = new_constant(model.graph, f"{name}.zero", np.zeros((), _TYPES[kind]))
    down = ir.Node("", "QuantizeLinear", [value, constant, zero], name=f"{name}.quantise")
    code = down.outputs[0]
    code.name, code.shape = f"{name}.codes", value.shape
    code.type = ir.TensorType(zero.dtype or ir.DataType.INT8)
    up = ir.Node("", "DequantizeLinear", [code, constant, zero], name=f"{name}.dequantise")
    up.outputs[0].name, up.outputs[0].shape = f"{name}.values", value.shape
    up.outputs[0].type = value.type
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(model.graph[0], [down, up])
    else:
        model.graph.insert_after(producer, [down, up])
    place.node.replace_input_with(place.slot, up.outputs[0])


def round_weight(model: ir.Model, place: Place, stored: Stored) -> None:
    """Let a product read stored codes through DQ; other readers keep the weight."""
    value = place.weight_value
    name = f"{value.name}.codes"
    codes = ir.Value(
        name=_unused(model.graph, name),
        shape=ir.Shape(stored.codes.shape.numpy()),
        type=ir.TensorType(stored.codes.dtype),
        const_value=stored.codes,
    )
    stored.codes.name = codes.name  # type: ignore[misc]
    model.graph.register_initializer(codes)
    scale = new_constant(model.graph, f"{value.name}.scale", stored.scale)
    zero = new_constant(
        model.graph,
        f"{value.name}.zero",
        np.zeros(stored.scale.shape, stored.codes.dtype.numpy()),
    )
    attributes = [ir.AttrInt64("axis", stored.axis)]
    if stored.block:
        attributes.append(ir.AttrInt64("block_size", stored.block))
    back = ir.Node(
        "",
        "DequantizeLinear",
        [codes, scale, zero],
        attributes,
        name=f"{node_name(place.node)}.weight",
    )
    back.outputs[0].name = f"{codes.name}.values"
    back.outputs[0].shape, back.outputs[0].type = value.shape, ir.TensorType(ir.DataType.FLOAT)
    model.graph.insert_before(place.node, back)
    place.node.replace_input_with(place.weight_slot, back.outputs[0])
    name_copies(model, {codes.name or "": value.name or ""})
    if not value.uses() and value.is_initializer() and not value.is_graph_output():
        del model.graph.initializers[value.name or ""]


def _unused(graph: ir.Graph, name: str) -> str:
    unique, number = name, 1
    while unique in graph.initializers:
        unique, number = f"{name}.{number}", number + 1
    return unique


__all__ = ["round_activation", "round_weight"]
