"""Make an exported graph say what it computes: no identity gathers, no repeated work, no paths."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import Sequential, common

_STACK_TRACE = "pkg.torch.onnx.stack_trace"


def simplify(model: ir.Model) -> ir.Model:
    """Rewrite ``model`` in place; values, names of weights and module scopes stay."""
    _drop_stack_traces(model)
    Sequential(
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    )(model)
    return model


def _drop_stack_traces(model: ir.Model) -> None:
    """They hold paths of the machine that exported, and change the file's hash with it."""
    for node in model.graph:
        node.metadata_props.pop(_STACK_TRACE, None)


__all__ = ["simplify"]
