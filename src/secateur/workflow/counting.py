"""How large a graph is, without the user's data."""

from __future__ import annotations

import onnx_ir as ir

from secateur.workflow.flops import count_flops
from secateur.workflow.random_inputs import dimension_names, random_inputs
from secateur.workflow.results import Size


def flops_by_node(model: ir.Model, *, tokens: int) -> dict[str, int]:
    """FLOPs of one forward pass at batch 1, every other dynamic dimension ``tokens``."""
    names = dimension_names(model)
    sizes = {name: 1 if name == names[0] else tokens for name in names}
    return count_flops(model, random_inputs(model, sizes, seed=0, ragged=False)).by_node


def parameter_count(model: ir.Model) -> int:
    """Numbers in all floating-point initialisers."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(t.size for t in tensors if t is not None and _is_weight(t))


def _is_weight(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype.is_floating_point() and len(tensor.shape) > 0


def size_of(model: ir.Model, *, tokens: int) -> Size:
    """Parameters, FLOPs and nodes."""
    flops = flops_by_node(model, tokens=tokens)
    return Size(parameter_count(model), sum(flops.values()), model.graph.num_nodes())


__all__ = ["flops_by_node", "parameter_count", "size_of"]
