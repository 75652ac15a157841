"""Which positions of an axis stay, also where its length is known only at run time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.errors import PreconditionError
from secateur.graph_passes.axes import Atom, Expr, indices, leaves, size
from secateur.graph_passes.axes.constants import new_constant
from secateur.graph_passes.names import node_name


@dataclass(frozen=True, slots=True)
class KeptPositions:
    """What stays of an axis that is laid out as (before, len(stays), after)."""

    stays: NDArray[np.bool_]
    before: int | None = 1
    after: int | None = 1
    """One of the two is None where only the length at run time says it."""


def kept_positions(
    expr: Expr, keep: Mapping[Atom, NDArray[np.int64]], node: ir.Node
) -> KeptPositions:
    """Return what stays of an axis of a node; of channels * columns, say, what of the channels.

    Raises:
        PreconditionError: the axis has several lengths that are known only at run time.
    """
    if isinstance(size(expr), int):
        return KeptPositions(_stays(expr, keep, node))
    cut = [i for i, factor in enumerate(expr) if any(a in keep for a in leaves((factor,)))]
    before, after = _static(expr[: cut[0]]), _static(expr[cut[-1] + 1 :])
    if before is None and after is None:
        raise dynamic_axis(node)
    return KeptPositions(_stays(expr[cut[0] : cut[-1] + 1], keep, node), before, after)


def _stays(expr: Expr, keep: Mapping[Atom, NDArray[np.int64]], node: ir.Node) -> NDArray[np.bool_]:
    length = _static(expr)
    if length is None:
        raise dynamic_axis(node)
    stays = np.zeros(length, dtype=bool)
    stays[indices(expr, keep)] = True
    return stays


def _static(expr: Expr) -> int | None:
    length = size(expr)
    return length if isinstance(length, int) else None


def dynamic_axis(node: ir.Node) -> PreconditionError:
    """What is raised where a node's cut axis has no length before run time, and has to."""
    return PreconditionError("a cut axis has a dynamic size", where=node_name(node))


def condition(
    graph: ir.Graph, value: ir.Value, shape: list[int], kept: KeptPositions, name: str
) -> tuple[list[ir.Node], ir.Value]:
    """Return booleans of a shape, (1, ..., -1, ..., 1), and the nodes that make them.

    -1 stands for the axis of ``value`` that the positions are of. Known lengths need no node.
    """
    if kept.before is not None and kept.after is not None:
        tiled = np.broadcast_to(kept.stays[:, None], (kept.before, kept.stays.size, kept.after))
        return [], new_constant(graph, name, tiled.reshape(shape))

    def constant(what: str, array: NDArray[Any]) -> ir.Value:
        return new_constant(graph, f"{name}.{what}", array)

    nodes: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        made = [ir.AttrInt64(key, number) for key, number in attributes.items()]
        nodes.append(ir.Node("", op, inputs, made, name=f"{name}.{op.lower()}"))
        nodes[-1].outputs[0].name = nodes[-1].name
        return nodes[-1].outputs[0]

    known = (kept.before or 1) * kept.stays.size * (kept.after or 1)
    length = add(
        "Gather", add("Shape", value), constant("axis", np.array([shape.index(-1)])), axis=0
    )
    open_size = add("Div", length, constant("known", np.array([known])))
    sizes = [
        open_size if number is None else constant(f"size{i}", np.array([number]))
        for i, number in enumerate((kept.before, kept.stays.size, kept.after))
    ]
    whole = add("Expand", constant("kept", kept.stays[:, None]), add("Concat", *sizes, axis=0))
    return nodes, add("Reshape", whole, constant("layout", np.array(shape)))


__all__ = ["KeptPositions", "condition", "dynamic_axis", "kept_positions"]
