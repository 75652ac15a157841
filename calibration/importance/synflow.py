"""Keep the units that much of the flow through all paths of weights goes through; no data.

Source: Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic
flow, NeurIPS 2020, arXiv:2006.05467, equation 2; as in ganguli-lab/Synaptic-Flow: every stored
number is taken absolute, the input is all ones, and what is differentiated is the sum of the
outputs. There single weights go over a hundred rounds; here units are ranked once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.calibration.importance.aggregation import aggregate
from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.gradients import by_slice
from secateur.calibration.importance.tape import LAYOUT, LINEAR, PASSING, POOLING, Tape
from secateur.calibration.importance.unit_weights import counted, weight
from secateur.errors import PreconditionError
from secateur.graph_passes.groups import Group

_KEY = "synflow"
_NORM = "BatchNormalization"
_RISING = frozenset({_NORM, "Add", "Gelu", "Sigmoid", "HardSwish", "Elu", "Softplus"})
_WITHOUT_SIZE = 32
"""Of an axis, other than the batch, whose size the model leaves open."""

Flows = dict[tuple[str, int], NDArray[np.float64]]


@CRITERIA.register("synflow")
def synflow(group: Group, context: Context) -> Scores:
    """Sum over the unit's weights of |weight| times the flow that it alone lets through.

    Raises:
        PreconditionError: a model that is no product of weights along paths: with attention, a
            norm over features, gates, or inputs that are whole numbers.
    """
    if _KEY not in context.gathered:
        context.gathered[_KEY] = _flows(context.analysis.model)
    flows: Flows = context.gathered[_KEY]
    found = [
        by_slice(np.abs(weight(use)) * flows[str(use.node.outputs[0].name), use.slot], use, group)
        for use in counted(group, context)
    ]
    return aggregate(np.stack(found), context.scoring.aggregate)


def _flows(model: ir.Model) -> Flows:
    """Derivative of the summed outputs by every weight, by first output and slot of its node."""
    import torch

    _check(model)
    tape = Tape(model)
    stored = {
        (step.outputs[0], slot): tensor.double().abs()
        for step in tape.steps
        for slot, tensor in tape.weights(step).items()
    }
    statistics = {(s.outputs[0], i) for s in tape.steps if s.op == _NORM for i in (3, 4)}
    leaves = {key: leaf.requires_grad_(key not in statistics) for key, leaf in stored.items()}
    values = tape.forward(_ones(model), leaves)
    outputs = [values[str(value.name)] for value in model.graph.outputs]
    total = sum((x.sum() for x in outputs if isinstance(x, torch.Tensor)), torch.zeros(()).double())
    if not torch.isfinite(total):
        raise PreconditionError("the flow through the model's weights overflows")
    weights = {key: leaf for key, leaf in leaves.items() if key not in statistics}
    found = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    return {
        key: np.zeros(tuple(leaf.shape)) if gradient is None else gradient.numpy()
        for (key, leaf), gradient in zip(weights.items(), found, strict=True)
    }


def _check(model: ir.Model) -> None:
    allowed = LINEAR | POOLING | LAYOUT | PASSING | _RISING
    for node in model.graph:
        floats = any(v.dtype is None or v.dtype.is_floating_point() for v in node.outputs)
        if floats and node.op_type not in allowed:
            raise PreconditionError(
                f"{node.op_type} is no path of weights",
                where=f"node {node.name!r}",
                wanted="convolutions, linear layers, batch norms, activations and sums alone",
                next_step="rank by group_norm, or by taylor with gradients",
            )


def _ones(model: ir.Model) -> dict[str, Any]:
    """All ones for every input, one sample."""
    import torch

    feeds = {}
    for value in model.graph.inputs:
        if value.const_value is not None or value.shape is None:
            continue
        if value.dtype is not None and not value.dtype.is_floating_point():
            raise PreconditionError(
                "no flow goes through an input of whole numbers", where=str(value.name)
            )
        open_sizes = [1] + [_WITHOUT_SIZE] * (len(value.shape) - 1)
        sizes = [
            dim if isinstance(dim, int) else size
            for dim, size in zip(value.shape, open_sizes, strict=True)
        ]
        feeds[str(value.name)] = torch.ones(sizes, dtype=torch.float64)
    return feeds


__all__ = ["synflow"]
