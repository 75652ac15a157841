"""Why no attention block of a graph can choose among tokens: none scores them one by one.

Linear and factorised attention multiply keys by values first, (Dh, N) by (N, Dh), so that a
query meets their sum over the tokens.
"""

from __future__ import annotations

import onnx_ir as ir

from secateur.errors import PreconditionError
from secateur.graph_passes.axes import AxisMap, Expr, FoldUse, leaves, node_name, show
from secateur.graph_passes.axes.axis_map import constant_tensor
from secateur.graph_passes.axes.expression import Reason

_NEIGHBOURS = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool"})


def sums_over_tokens(order: list[ir.Node], axes: AxisMap) -> PreconditionError | None:
    """Return the refusal of a graph whose attention sums keys by values over its tokens.

    None where there is no such product.
    """
    grid_readers = {node_name(node): node for node in order if node.op_type in _NEIGHBOURS}
    for fold in axes.folds:
        tokens = _summed_tokens(fold, axes, grid_readers)
        if tokens is None:
            continue
        reader = _reader(tokens, axes, grid_readers)
        place = "" if reader is None else f": they lie on a grid, where {reader.text}"
        beside = "" if reader is None else f"; {grid_readers[reader.node].op_type} {reader.node}"
        return PreconditionError(
            f"tokens cannot be selected{place}; attention multiplies keys by values before a "
            "query meets them, so that no token has a score",
            where=f"{fold.node.op_type} node {node_name(fold.node)}",
            got=f"a sum over {show(tokens)}{beside}",
            next_step="remove heads or channels instead",
        )
    return None


def _summed_tokens(fold: FoldUse, axes: AxisMap, grid_readers: dict[str, ir.Node]) -> Expr | None:
    """Return the tokens that a product of keys and values sums over, None for other folds."""
    node = fold.node
    if node.op_type not in {"MatMul", "Einsum"} or node.domain or len(fold.ports) != 2:
        return None
    if any(item is None or constant_tensor(item) is not None for item in node.inputs):
        return None
    summed = axes.at(node, fold.ports[0].slot)[fold.ports[0].axis]
    kept = axes.of(node.outputs[0])[-2:]
    if not _are_tokens(summed, axes, grid_readers):
        return None
    is_map = any(_are_tokens(expr, axes, grid_readers) for expr in kept)
    return None if is_map else summed  # with tokens left, these may be probabilities by values


def _are_tokens(expr: Expr, axes: AxisMap, grid_readers: dict[str, ir.Node]) -> bool:
    """Tell whether an axis is of varying length, or a grid that something reads neighbours of."""
    varies = any(not isinstance(atom.size, int) for atom in leaves(expr))
    return varies or _reader(expr, axes, grid_readers) is not None


def _reader(expr: Expr, axes: AxisMap, grid_readers: dict[str, ir.Node]) -> Reason | None:
    """Return why a node that reads the axis as one of a grid mixes its positions."""
    for atom in leaves(expr):
        for reason in axes.reasons(atom):
            node = grid_readers.get(reason.node)
            if node is not None and any(atom in leaves(one) for one in axes.at(node, 0)[2:]):
                return reason
    return None


__all__ = ["sums_over_tokens"]
