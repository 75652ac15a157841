"""Make an exported graph say what it computes: no identity gathers, no repeated work, no paths.

torch.export proves which dimensions are equal and writes that into the shapes; these rewrites
use nothing else, so they are exact.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import Sequential, common

_STACK_TRACE = "pkg.torch.onnx.stack_trace"


def simplify(model: ir.Model) -> ir.Model:
    """Rewrite ``model`` in place; values, names of weights and module scopes stay."""
    for node in model.graph:
        # Paths of the exporting machine, which change the file's hash with it.
        node.metadata_props.pop(_STACK_TRACE, None)
    read_sizes_from_inputs(model)
    unsqueeze_instead_of_gather(model)
    Sequential(
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    )(model)
    return model


def read_sizes_from_inputs(model: ir.Model) -> int:
    """Read a named size from the graph input that has it, and once only.

    Given   n = Shape(some inner tensor)[i]      where that dimension is called "tokens"
    Result  n = Shape(input)[axis]               where the input's axis is called "tokens"

    Returns:
        how many nodes were replaced.
    """
    homes = {
        dim.value: (value, axis)
        for value in reversed(model.graph.inputs)
        for axis, dim in reversed(list(enumerate(value.shape or ())))
        if isinstance(dim, ir.SymbolicDim) and dim.value is not None
    }
    made: dict[str, ir.Value] = {}
    replaced = 0
    for node in tuple(model.graph):
        name = _one_size(node)
        if name is None or name not in homes or node.outputs[0].is_graph_output():
            continue
        if name not in made:
            value, axis = homes[name]
            size = ir.node("Shape", [value], {"start": axis, "end": axis + 1})
            size.outputs[0].shape, size.outputs[0].dtype = ir.Shape([1]), ir.DataType.INT64
            size.outputs[0].name = f"size_of_{name}"
            model.graph.insert_before(model.graph[0], size)
            made[name] = size.outputs[0]
        _replace(model, node, made[name])
        replaced += 1
    return replaced


def _one_size(node: ir.Node) -> str | None:
    """Return the name of the single dimension that a Shape node reads."""
    source = node.inputs[0] if node.op_type == "Shape" and node.inputs else None
    if node.domain or source is None or source.shape is None:
        return None
    rank = len(source.shape)
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", rank)
    dims = source.shape[start:end]
    if len(dims) != 1 or isinstance(dims[0], int):
        return None
    return dims[0].value


def unsqueeze_instead_of_gather(model: ir.Model) -> int:
    """Replace a GatherND whose index runs over whole axes in order.

    Given   y = GatherND(x, Concat(Unsqueeze(Expand(Range(0, size of axis i)))...))
    Result  y = Unsqueeze(x)

    The padding masks of transformers are indexed with arange over batch and tokens, which
    hides from every analysis that nothing is moved.

    Returns:
        how many nodes were replaced.
    """
    replaced = 0
    for node in tuple(model.graph):
        axes = _inserted_axes(node)
        source = node.inputs[0] if node.inputs else None
        if axes is None or source is None:
            continue
        position = ir.val(
            f"{node.outputs[0].name}_axes", const_value=ir.tensor(axes, dtype=ir.DataType.INT64)
        )
        model.graph.register_initializer(position)
        plain = ir.node("Unsqueeze", [source, position], metadata_props=node.metadata_props)
        plain.outputs[0].shape, plain.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
        plain.outputs[0].name = f"{node.outputs[0].name}_whole"
        model.graph.insert_after(node, plain)
        _replace(model, node, plain.outputs[0])
        replaced += 1
    return replaced


def _inserted_axes(node: ir.Node) -> list[int] | None:
    """Return the size-1 axes that an identity GatherND adds, None when it is another one."""
    if node.op_type != "GatherND" or node.attributes.get_int("batch_dims", 0) != 0:
        return None
    source, index = node.inputs
    out = node.outputs[0].shape
    concat = None if index is None else index.producer()
    if source is None or source.shape is None or out is None or concat is None:
        return None
    if concat.op_type != "Concat" or len(concat.inputs) != len(source.shape):
        return None
    places = [
        _range_axis(part, dim, len(out))
        for dim, part in zip(source.shape, concat.inputs, strict=True)
    ]
    known = [place for place in places if place is not None]
    whole = len(known) == len(places) and known == sorted(set(known))
    if not whole or any(out[p] != d for p, d in zip(known, source.shape, strict=True)):
        return None
    added = [axis for axis in range(len(out)) if axis not in known]
    is_inner = not node.outputs[0].is_graph_output()
    return added if is_inner and all(out[axis] == 1 for axis in added) else None


def _range_axis(value: ir.Value | None, dim: int | ir.SymbolicDim, rank: int) -> int | None:
    """Return the axis along which ``value`` counts 0, 1, ... up to ``dim``."""
    found = _range_behind(value, rank)
    if found is None:
        return None
    length, counted = found
    # an Expand further inside may have added an axis
    if counted.shape is None or not _has_rank(counted, rank) or length != [dim]:
        return None
    long = [axis for axis, size in enumerate(counted.shape) if size != 1]
    return long[0] if len(long) == 1 and counted.shape[long[0]] == dim else None


def _range_behind(
    value: ir.Value | None, rank: int
) -> tuple[list[int | ir.SymbolicDim], ir.Value] | None:
    """Return the shape of the Range under Unsqueeze and Expand, and the index that it makes."""
    counted: ir.Value | None = None
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "Range":
            known = counted is not None and value.shape is not None and _counts_from_zero(node)
            return (list(value.shape or ()), counted) if known and counted is not None else None
        if node.op_type not in {"Unsqueeze", "Expand"}:
            return None
        if node.op_type == "Unsqueeze" and counted is None and _has_rank(node.inputs[0], rank):
            counted = node.inputs[0]  # before this the index got its last axis
        value = node.inputs[0]
        if counted is not None and node.op_type == "Expand":
            counted = value
    return None


def _counts_from_zero(node: ir.Node) -> bool:
    start, _, step = node.inputs
    if start is None or step is None:
        return False
    first, stride = ir.convenience.get_const_tensor(start), ir.convenience.get_const_tensor(step)
    if first is None or stride is None:
        return False
    return bool(first.numpy().item() == 0 and stride.numpy().item() == 1)


def _has_rank(value: ir.Value | None, rank: int) -> bool:
    return value is not None and value.shape is not None and len(value.shape) == rank


def _replace(model: ir.Model, node: ir.Node, value: ir.Value) -> None:
    ir.convenience.replace_all_uses_with(node.outputs[0], value)
    model.graph.remove(node, safe=True)


__all__ = ["read_sizes_from_inputs", "simplify", "unsqueeze_instead_of_gather"]
