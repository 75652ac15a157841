"""Which residual blocks go whole: those with the smallest weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from secateur.calibration.allocation import Allocation, allocate
from secateur.calibration.importance.core import Scores
from secateur.errors import BadInputError
from secateur.graph_passes.axes.axis_map import constant_tensor
from secateur.graph_passes.blocks import Block, find_blocks

_MEASURES: dict[str, Callable[[Scores], Scores]] = {"l1": np.abs, "l2": np.square}


def choose_blocks(
    model: ir.Model, allocation: Allocation, importance: str, *, seed: int
) -> tuple[str, ...]:
    """Return the names of the blocks that go, in graph order.

    A block inside another one is not asked about. ``l1`` and ``l2`` are means over the
    weights of a block, which a wide block does not win by its size.

    Args:
        model: prepared.
        allocation: its ratio is of the blocks of the model.
        importance: ``l1``, ``l2`` or ``random``.
        seed: for ``random``.

    Raises:
        BadInputError: no block, another criterion, or a ratio that leaves none or all.
    """
    blocks = _outermost(find_blocks(model))
    if not blocks:
        raise BadInputError(
            "the model has no residual block",
            wanted="an Add of a value and of something that weights make of it",
        )
    scores = _scores(blocks, importance, seed)
    (kept,) = allocate({"the blocks": scores}, allocation).values()
    return tuple(block.name for i, block in enumerate(blocks) if i not in kept)


def _outermost(blocks: tuple[Block, ...]) -> list[Block]:
    nodes = {block.name: set(block.nodes) for block in blocks}
    return [
        block
        for block in blocks
        if not any(nodes[block.name] < nodes[other.name] for other in blocks)
    ]


def _scores(blocks: list[Block], importance: str, seed: int) -> Scores:
    if importance == "random":
        return np.random.default_rng(seed).random(len(blocks))
    if importance not in _MEASURES:
        raise BadInputError(f"blocks are not ranked by {importance!r}", wanted="l1, l2 or random")
    return np.array([_mean(block, _MEASURES[importance]) for block in blocks])


def _mean(block: Block, measure: Callable[[Scores], Scores]) -> float:
    """Mean of ``measure`` over all floating-point weights that the block reads."""
    weights = {
        value: tensor
        for node in block.nodes
        for value in node.inputs
        if value is not None
        and (tensor := constant_tensor(value)) is not None
        and tensor.dtype.is_floating_point()
        and tensor.size > 1
    }
    totals = [float(measure(t.numpy().astype(np.float64)).sum()) for t in weights.values()]
    return sum(totals) / max(sum(tensor.size for tensor in weights.values()), 1)


__all__ = ["choose_blocks"]
