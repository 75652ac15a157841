"""Keep the units whose output is long where the next weight reads it.

For a head this is its part of the output projection's input, for an FFN channel its
activation. Source: head and neuron scores by activation norm; the aggregated form is FLAP's
input feature norm (An et al., AAAI 2024, arXiv:2312.11983, section 3) without its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.activations import observe
from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.units import sum_by_unit, units
from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.axes import Expr, leaves
from secateur.graph_passes.axes.axis_map import constant_tensor
from secateur.graph_passes.groups import Analysis, Group


@dataclass(frozen=True, slots=True)
class _Reading:
    """A value in which units lie side by side, where a weight combines them."""

    value: str
    axis: int
    expr: Expr


@CRITERIA.register("output_norm")
def output_norm(group: Group, context: Context) -> Scores:
    """Mean length of the unit's output over all tokens of the data that are no padding."""
    if group.name not in context.gathered:
        context.gathered.update(_gather(context))
    return context.gathered[group.name]


def _gather(context: Context) -> dict[str, Scores]:
    """One pass over the data for every group that is ranked."""
    readings = {g.name: list(_readings(context.analysis, g)) for g in context.groups}
    names = sorted({reading.value for found in readings.values() for reading in found})
    totals = {g.name: np.zeros(g.size) for g in context.groups}
    rows = dict.fromkeys(totals, 0)
    for batch, seen in observe(context.analysis.model, names, context.data):
        for group in context.groups:
            for reading in readings[group.name]:
                norms = _norms(seen[reading.value], reading, group)
                kept = _without_padding(norms, batch)
                totals[group.name] += kept.sum(axis=0)
                rows[group.name] += len(kept)
    if not all(rows.values()):
        raise BadInputError(
            "this criterion needs data, and there is none",
            wanted="batches of input arrays",
            next_step="give data, or rank by weights: l1, l2",
        )
    return {name: totals[name] / rows[name] for name in totals}


def _readings(analysis: Analysis, group: Group) -> Iterator[_Reading]:
    """Where a weight sums over the group's units, the other operand."""
    found = False
    for fold in analysis.axes.folds:
        inputs = [port for port in fold.ports if port.slot >= 0]
        if not any(_is_weight(fold.node.inputs[port.slot]) for port in inputs):
            continue
        for port in inputs:
            value = fold.node.inputs[port.slot]
            if value is None or _is_weight(value):
                continue
            expr = analysis.axes.expr(fold.node, port)
            if group.atom in leaves(expr):
                found = True
                yield _Reading(value.name or "", port.axis, expr)
    if not found:
        raise PreconditionError(
            f"no weight reads the output of {group.name}", next_step="rank by weights: l1, l2"
        )


def _is_weight(value: object) -> bool:
    return value is not None and constant_tensor(value) is not None  # type: ignore[arg-type]


def _norms(array: NDArray[Any], reading: _Reading, group: Group) -> NDArray[np.float64]:
    """(..., L, ...) -> (..., size): length of each unit's part at each place.

    Raises:
        BadInputError: the activation holds NaN.
    """
    if np.isnan(array).any():
        raise BadInputError(
            "an activation holds NaN",
            where=f"{reading.value}, read by {group.name}",
            next_step="`secateur parity --bisect` names the first layer where they appear",
        )
    squares = np.moveaxis(np.square(array, dtype=np.float64), reading.axis, -1)
    sums = sum_by_unit(squares, units(reading.expr, group.atom), group.size)
    lengths: NDArray[np.float64] = np.sqrt(sums)
    return lengths


def _without_padding(
    norms: NDArray[np.float64], batch: Mapping[str, NDArray[Any]]
) -> NDArray[np.float64]:
    """(B, N, size) -> (rows, size) without the tokens that ``attention_mask`` leaves out."""
    mask = batch.get("attention_mask")
    if mask is not None and norms.shape[:2] == mask.shape:
        norms = norms[mask.astype(bool)]
    return norms.reshape(-1, norms.shape[-1])


__all__ = ["output_norm"]
