"""New numbers for a weight of the graph, and a bias behind the product that reads it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.calibration.statistics.places import Place
from secateur.graph_passes.axes.axis_map import constant_tensor
from secateur.graph_passes.axes.constants import new_constant
from secateur.graph_passes.names import name_copies, node_name

Array = NDArray[np.float64]

_BIAS_SLOT = {"Conv": 2, "Gemm": 2}


def write_weight(model: ir.Model, places: Sequence[Place], matrix: Array) -> None:
    """Give the weight that the places share new values, (out, in) as ``Place.matrix`` has them.

    Other readers of the same weight keep the old one.
    """
    value = places[0].weight_value
    old = constant_tensor(value)
    assert old is not None
    fresh = laid_out(places[0], matrix)
    readers = {(place.node, place.weight_slot) for place in places}
    is_alone = {(use.node, use.idx) for use in value.uses()} == readers
    if is_alone and value.is_initializer() and not value.is_graph_output():
        value.const_value = ir.Tensor(fresh, dtype=old.dtype, name=value.name)
        return
    copy = new_constant(model.graph, f"{value.name}.fitted", fresh)
    name_copies(model, {copy.name or "": value.name or ""})
    for place in places:
        place.node.replace_input_with(place.weight_slot, copy)


def laid_out(place: Place, matrix: Array) -> NDArray[np.generic]:
    """Lay (out, in) numbers out like the weight of a place, in its type."""
    old = constant_tensor(place.weight_value)
    assert old is not None
    shape = tuple(old.shape.numpy())
    axis = place.weight_axis
    moved = [shape[i] for i in range(len(shape)) if i != axis]
    if place.kernel:  # (out, in * kernel) back to (out, in, *kernel), then the axis home
        rows = matrix.reshape(moved[0], shape[axis], *moved[1:])
        array = np.moveaxis(rows, 1, axis)
    else:
        array = np.moveaxis(matrix.reshape(*moved, shape[axis]), -1, axis)
    fresh: NDArray[np.generic] = np.ascontiguousarray(array.astype(old.dtype.numpy()))
    return fresh


def add_bias(model: ir.Model, place: Place, bias: Array) -> None:
    """Add a number per output channel to the result of a product, in its bias if it has one."""
    node = place.node
    slot = _BIAS_SLOT.get(node.op_type)
    held = node.inputs[slot] if slot is not None and slot < len(node.inputs) else None
    if slot is None:
        _add_behind(model, node, bias)
    elif held is None:
        fresh = new_constant(model.graph, f"{node_name(node)}.bias", _cast(bias, place))
        if len(node.inputs) <= slot:
            node.resize_inputs(slot + 1)
        node.replace_input_with(slot, fresh)
    else:
        _raise_by(model, node, slot, bias)


def _add_behind(model: ir.Model, node: ir.Node, bias: Array) -> None:
    """Change the bias that is added next where only that reads the result; else add one."""
    result = node.outputs[0]
    readers = tuple(result.uses())
    if len(readers) == 1 and readers[0].node.op_type == "Add" and not result.is_graph_output():
        reader = readers[0].node
        other = 1 - readers[0].idx
        value = reader.inputs[other]
        tensor = None if value is None else constant_tensor(value)
        if tensor is not None and tensor.shape.numpy() == (len(bias),):
            _raise_by(model, reader, other, bias)
            return
    name = f"{node_name(node)}.bias"
    dtype = np.float32 if result.dtype is None else result.dtype.numpy()
    constant = new_constant(model.graph, name, bias.astype(dtype))
    added = ir.Node("", "Add", [result, constant], name=f"{name}.add")
    added.metadata_props.update(node.metadata_props)
    made = added.outputs[0]
    made.type, made.shape = result.type, result.shape
    if result.is_graph_output():
        made.name, result.name = result.name, f"{result.name}.plain"
        outputs = model.graph.outputs
        outputs[[value is result for value in outputs].index(True)] = made
    else:
        made.name = f"{name}.sum"
    model.graph.insert_after(node, added)
    for reader, slot in readers:
        reader.replace_input_with(slot, made)


def _raise_by(model: ir.Model, node: ir.Node, slot: int, bias: Array) -> None:
    value = node.inputs[slot]
    assert value is not None
    tensor = constant_tensor(value)
    assert tensor is not None
    raised = (tensor.numpy().astype(np.float64) + bias).astype(tensor.dtype.numpy())
    if len(value.uses()) == 1 and value.is_initializer() and raised.shape == tensor.numpy().shape:
        value.const_value = ir.Tensor(raised, dtype=tensor.dtype, name=value.name)
        return
    copy = new_constant(model.graph, f"{value.name}.fitted", raised)
    name_copies(model, {copy.name or "": value.name or ""})
    node.replace_input_with(slot, copy)


def _cast(bias: Array, place: Place) -> NDArray[np.generic]:
    tensor = constant_tensor(place.weight_value)
    assert tensor is not None
    cast: NDArray[np.generic] = bias.astype(tensor.dtype.numpy())
    return cast


__all__ = ["add_bias", "laid_out", "write_weight"]
