"""How much each layer keeps by how far it turns its tokens: CFSP's coarse step.

Source: Wang et al., CFSP, COLING 2025, arXiv:2409.13199, section 3.2; as in wyxscir/CFSP, whose
divisor fits 131072 tokens of calibration; here sums are brought to as many, so that the shares do
not depend on how much data there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.calibration.activations import observe
from secateur.calibration.importance.cfsp import Distance, block_importance, keep_ratios
from secateur.calibration.statistics.padding import Padding
from secateur.calibration.statistics.rows import samples_of, weights_of
from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.blocks import Block, find_blocks
from secateur.graph_passes.groups import Analysis, Group
from secateur.graph_passes.names import layer_of

_TOKENS = 131072
_Run = tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]


def block_shares(
    analysis: Analysis,
    groups: Sequence[Group],
    data: Iterable[Mapping[str, NDArray[Any]]],
    ratio: float,
    distance: Distance = "angular",
) -> dict[str, float]:
    """Return the share of each group that goes; their mean is ``ratio``.

    Args:
        analysis: of the model.
        groups: to be cut, each in a residual block.
        data: batches.
        ratio: share that goes on average.
        distance: between what goes into a layer and what comes out.

    Raises:
        BadInputError: no data, or hidden states that are NaN or infinite.
        PreconditionError: a group that stands in no residual block.
    """
    sums, n_tokens = block_importances(analysis, groups, data, distance)
    importance = np.array(list(sums.values())) * _TOKENS / n_tokens
    kept = np.clip(keep_ratios(importance, ratio), 0.0, 1.0)
    return {name: float(1 - keep) for name, keep in zip(sums, kept, strict=True)}


def block_importances(
    analysis: Analysis,
    groups: Sequence[Group],
    data: Iterable[Mapping[str, NDArray[Any]]],
    distance: Distance = "angular",
) -> tuple[dict[str, float], float]:
    """Sum over tokens of how far the layer of each group turns them, and how many those were.

    Raises:
        BadInputError: no data, or hidden states that are NaN or infinite.
        PreconditionError: a group that stands in no residual block.
    """
    ends = {group.name: layer_ends(analysis, group) for group in groups}
    sums, n_tokens = dict.fromkeys(ends, 0.0), 0.0
    padding = Padding(analysis.model)
    names = sorted({name for pair in ends.values() for name in pair} | set(padding.outputs))
    for batch, seen in observe(analysis.model, names, data):
        for i, (group, pair) in enumerate(ends.items()):
            found = [_tokens(seen[name], name, padding, (batch, seen)) for name in pair]
            (before, counts), (after, _) = found
            sums[group] += block_importance(before, after, distance, counts)
            n_tokens += float(counts.sum()) if i == 0 else 0.0
    if not n_tokens:
        raise BadInputError("shares by layer need data, and there is none")
    if bad := [name for name, value in sums.items() if not np.isfinite(value)]:
        raise BadInputError(
            "what a layer reads or gives holds NaN or infinities",
            where=f"{' or '.join(ends[bad[0]])}, around {bad[0]}",
            next_step="`secateur parity --bisect` names the first layer where they appear",
        )
    return sums, n_tokens


def layer_ends(analysis: Analysis, group: Group) -> tuple[str, str]:
    """Names of what goes into the layer that a group belongs to, and of what comes out.

    Raises:
        PreconditionError: the group stands in no residual block.
    """
    blocks = find_blocks(analysis.model)
    nodes = {use.node for use in group.weights}
    around = [block for block in blocks if nodes & set(block.nodes)]
    if not around:
        raise PreconditionError(
            "these units stand in no residual block, so that no layer is measured for them",
            where=group.name,
            next_step="allocate with scope local or global",
        )
    own = min(around, key=lambda block: len(block.nodes))
    layer = [b for b in blocks if group.layer and layer_of(b.name) == group.layer]
    return _ends(analysis.model, [own, *layer])


def _ends(model: ir.Model, blocks: Sequence[Block]) -> tuple[str, str]:
    order = {node: i for i, node in enumerate(model.graph)}
    first = min(blocks, key=lambda block: order[block.nodes[0]])
    last = max(blocks, key=lambda block: order[block.add])
    value = first.add.inputs[first.skip]
    assert value is not None
    return str(value.name), str(last.add.outputs[0].name)


def _tokens(
    array: NDArray[Any],
    name: str,
    padding: Padding,
    run: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """(tokens, width) without padding, and how much each counts, (tokens,).

    A feature map has a token at every position.
    """
    axis = 1 if array.ndim == 4 else array.ndim - 1
    real = padding.rows(name, array.shape, *run) if axis > 1 else None
    counts = padding.counts(name, array.shape, *run) if axis > 1 else None
    samples = samples_of(array, axis, real)
    weights = weights_of(counts, real, samples)
    rows = np.concatenate(samples)
    return rows, np.ones(len(rows)) if weights is None else np.concatenate(weights)


__all__ = ["block_importances", "block_shares", "layer_ends"]
