"""The PyTorch module with the weights that were fitted in its graph."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from secateur.graph_passes.names import parameter_records

if TYPE_CHECKING:
    from torch import Tensor, nn


def fitted_module(net: nn.Module, dense: ir.Model, fitted: ir.Model) -> nn.Module | None:
    """Copy a module and give it the weights of a graph that compensation has changed.

    Args:
        net: the module that was exported; stays as it is.
        dense: its export.
        fitted: the export after ``calibration.compensation``: the same nodes, other weights.

    Returns:
        The copy; None where the fitted graph holds a weight or a node that the module has no
        place for, such as a bias behind a layer without one.
    """
    changed = _changed(dense, fitted)
    records = parameter_records(dense)
    if changed is None or not changed.keys() <= records.keys():
        return None
    import torch

    made = copy.deepcopy(net)
    tensors: dict[str, Tensor] = dict(made.named_parameters(remove_duplicate=False))
    tensors.update(made.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for initialiser, array in changed.items():
            record = records[initialiser]
            back = np.argsort(record["transpose"] or range(array.ndim))
            for name in record.get("names", [record["name"]]):
                tensors[name].copy_(torch.from_numpy(np.array(array.transpose(back))))
    return made


def _changed(dense: ir.Model, fitted: ir.Model) -> dict[str, np.ndarray] | None:
    """Weights of the fitted graph that differ, by name; None where it has other parts."""
    before, after = dense.graph.initializers, fitted.graph.initializers
    nodes = [[(node.name, node.op_type) for node in model.graph] for model in (dense, fitted)]
    if nodes[0] != nodes[1] or before.keys() != after.keys():
        return None
    found = {}
    for name, value in after.items():
        old, new = before[name].const_value, value.const_value
        if old is None or new is None or old is new:
            continue
        array = new.numpy()
        if not np.array_equal(old.numpy(), array):
            found[name] = array
    return found


__all__ = ["fitted_module"]
