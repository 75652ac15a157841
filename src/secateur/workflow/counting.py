"""How large a graph is, without the user's data."""

from __future__ import annotations

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.runtime.backend import Array
from secateur.workflow.flops import count_flops
from secateur.workflow.golden import default_budgets
from secateur.workflow.random_inputs import dimension_names, random_inputs
from secateur.workflow.results import Size


def full_inputs(model: ir.Model, *, batch: int, tokens: int) -> dict[str, Array]:
    """Inputs without padding: the first dynamic dimension ``batch``, every other ``tokens``.

    Budgets of token selections are at their defaults.
    """
    names = dimension_names(model)
    sizes = {name: batch if name == names[0] else tokens for name in names}
    return random_inputs(model, sizes, seed=0, ragged=False) | default_budgets(model)


def flops_by_node(model: ir.Model, *, tokens: int) -> dict[str, int]:
    """FLOPs of one forward pass at batch 1, every other dynamic dimension ``tokens``.

    Raises:
        BadInputError: the model does not run at that length.
    """
    inputs = full_inputs(model, batch=1, tokens=tokens)
    try:
        return count_flops(model, inputs).by_node
    except BadInputError as error:
        if not dimension_names(model):
            raise
        raise BadInputError(
            f"FLOPs cannot be counted at {tokens} tokens: {error.what}",
            where=error.where,
            got=error.got,
            next_step="if the model takes fewer tokens, say how many: --tokens N, or bench: tokens",
        ) from error


def parameter_count(model: ir.Model) -> int:
    """Numbers in all floating-point initialisers."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(t.size for t in tensors if t is not None and _is_weight(t))


def size_of(model: ir.Model, *, tokens: int) -> Size:
    """Parameters, FLOPs and nodes."""
    flops = flops_by_node(model, tokens=tokens)
    return Size(parameter_count(model), sum(flops.values()), model.graph.num_nodes())


def _is_weight(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype.is_floating_point() and len(tensor.shape) > 0


__all__ = ["flops_by_node", "full_inputs", "parameter_count", "size_of"]
