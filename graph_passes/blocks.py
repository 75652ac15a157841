"""Whole residual blocks: what stands between a value and the Add that returns to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.axes.axis_map import constant_tensor
from secateur.graph_passes.axes.constants import new_constant
from secateur.graph_passes.names import module_path, node_name


@dataclass(frozen=True, slots=True)
class Block:
    """``y = x + f(x)``: without the block, y is x."""

    name: str
    """The module that all of f belongs to."""
    add: ir.Node
    skip: int
    """Input slot of ``add`` that is x; the other one is f(x)."""
    nodes: tuple[ir.Node, ...]
    """The nodes of f, in graph order."""


def find_blocks(model: ir.Model) -> tuple[Block, ...]:
    """Return the residual blocks of the main graph, in graph order, innermost first.

    A block's Add joins two computed values of which one is made from the other. Blocks
    of one name get a number.
    """
    order = {node: i for i, node in enumerate(model.graph)}
    found = []
    for node in order:
        if node.op_type != "Add" or node.domain or len(node.inputs) != 2:
            continue
        for skip in (0, 1):
            nodes = _branch(node, skip, order)
            if nodes is not None:
                found.append(Block(_name(nodes), node, skip, nodes))
    return _numbered(found)


def _branch(add: ir.Node, skip: int, order: dict[ir.Node, int]) -> tuple[ir.Node, ...] | None:
    """Nodes between the skipped value and the other input; None where that is no block.

    Every weighted way into the branch has to come from the skipped value, so that what
    is removed is a function of it; masks and positions may come from elsewhere.
    """
    kept, made = add.inputs[skip], add.inputs[1 - skip]
    if kept is None or made is None or made.producer() is None:
        return None
    if constant_tensor(kept) is not None:
        return None
    if kept.shape is None or kept.shape != made.shape:
        return None  # a mask or a bias that is broadcast
    source = kept.producer()
    first = order[source] if source is not None else -1
    between = _reaching(made, kept, first, order)
    if not between or not any(_has_weight(node) for node in between):
        return None
    return tuple(sorted(between, key=order.__getitem__))


def _reaching(
    made: ir.Value, kept: ir.Value, first: int, order: dict[ir.Node, int]
) -> set[ir.Node]:
    """Ancestors of ``made`` that descend from ``kept``."""
    ancestors: set[ir.Node] = set()
    stack = [made]
    while stack:
        value = stack.pop()
        node = value.producer()
        if node is None or node in ancestors or order.get(node, -1) <= first or value is kept:
            continue
        ancestors.add(node)
        stack.extend(v for v in node.inputs if v is not None and v is not kept)
    descends: set[ir.Node] = set()
    for node in sorted(ancestors, key=order.__getitem__):
        parents = (v.producer() for v in node.inputs if v is not None and v is not kept)
        if kept in node.inputs or any(parent in descends for parent in parents):
            descends.add(node)
    return descends if made.producer() in descends else set()


def _has_weight(node: ir.Node) -> bool:
    if node.op_type not in {"MatMul", "Gemm", "Conv", "Einsum"}:
        return False
    return any(v is not None and constant_tensor(v) is not None for v in node.inputs)


def _name(nodes: Sequence[ir.Node]) -> str:
    paths = [path.split(".") for node in nodes if _has_weight(node) and (path := module_path(node))]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) or node_name(nodes[-1])


def _numbered(blocks: list[Block]) -> tuple[Block, ...]:
    counts = Counter(block.name for block in blocks)
    seen: Counter[str] = Counter()
    named = []
    for block in blocks:
        seen[block.name] += 1
        many = counts[block.name] > 1
        name = f"{block.name} ({seen[block.name]})" if many else block.name
        named.append(Block(name, block.add, block.skip, block.nodes))
    return tuple(named)


def select_blocks(model: ir.Model, names: Collection[str]) -> tuple[Block, ...]:
    """Return the named blocks.

    Raises:
        BadInputError: a name that no block has; the message lists those there are.
    """
    blocks = find_blocks(model)
    known = {block.name: block for block in blocks}
    missing = [name for name in names if name not in known]
    if missing:
        raise BadInputError(
            f"the model has no residual block {missing[0]!r}",
            wanted="one of: " + (", ".join(known) or "none"),
        )
    return tuple(known[name] for name in names)


def remove_blocks(model: ir.Model, blocks: Sequence[Block]) -> None:
    """Let readers of each block's result read what the block was added to, in place."""
    for block in blocks:
        if block.add.graph is None:
            continue  # nothing read its result, and it has gone already
        kept, result = block.add.inputs[block.skip], block.add.outputs[0]
        assert kept is not None
        if result.is_graph_output():
            kept = _output_in_place_of(model.graph, result, kept, block.add)
        result.replace_all_uses_with(kept)


def _output_in_place_of(
    graph: ir.Graph, result: ir.Value, kept: ir.Value, before: ir.Node
) -> ir.Value:
    """Let a graph output of the result's name come from ``kept``; return its value."""
    name = result.name
    same = ir.Node("", "Identity", [kept], name=f"{node_name(before)}.skipped")
    same.outputs[0].type, same.outputs[0].shape = result.type, result.shape
    result.name, same.outputs[0].name = f"{name}.block", name
    graph.insert_before(before, same)
    for i, output in enumerate(graph.outputs):
        if output is result:
            graph.outputs[i] = same.outputs[0]
    return same.outputs[0]


def silence_blocks(model: ir.Model, blocks: Sequence[Block]) -> None:
    """Add zeros instead of each block's result, in place: the dense twin of a removal."""
    for block in blocks:
        slot = 1 - block.skip
        made = block.add.inputs[slot]
        assert made is not None
        assert made.dtype is not None
        name = f"{node_name(block.add)}.silent"
        zero = new_constant(model.graph, f"{name}.zero", np.zeros((), made.dtype.numpy()))
        never = new_constant(model.graph, f"{name}.never", np.zeros((), bool))
        where = ir.Node("", "Where", [never, made, zero], name=name)
        where.outputs[0].name, where.outputs[0].type = name, made.type
        where.outputs[0].shape = made.shape
        model.graph.insert_before(block.add, where)
        block.add.replace_input_with(slot, where.outputs[0])


__all__ = ["Block", "find_blocks", "remove_blocks", "select_blocks", "silence_blocks"]
