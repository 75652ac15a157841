"""Compensation on a graph: the dense model, its weights fitted to what a plan will leave.

The result is still dense. Removing the plan's units from it gives the compensated small model, and
that removal can be proved like any other: nothing here slices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.calibration.compensation.core import COMPENSATIONS, Compensation, Kept
from secateur.calibration.compensation.writing import add_bias, write_weight
from secateur.calibration.statistics.gathering import Accumulator, How, gather
from secateur.calibration.statistics.places import Place, all_places
from secateur.errors import BadInputError
from secateur.graph_passes.axes import Atom, indices, leaves
from secateur.graph_passes.groups import Analysis, analyse
from secateur.graph_passes.names import node_name
from secateur.graph_passes.plan import Plan, resolve_plan

Batch = Mapping[str, NDArray[Any]]

_PRODUCTS_BYTES = 1 << 30
"""Most memory for X^T X of all weights of one pass over the data."""


@dataclass(slots=True)
class _Weight:
    """One weight and everything that reads it along an axis that a plan cuts."""

    kept: Kept
    sums: Accumulator
    places: list[Place] = field(default_factory=list)

    @property
    def key(self) -> tuple[object, ...]:
        """What its sums are known by in one model."""
        return tuple((node_name(place.node), place.axis) for place in self.places)


@dataclass(frozen=True, slots=True)
class Remembered:
    """Batches whose sums are kept: many plans for one model are made up for after one pass.

    For one model alone; the sums of all weights are held in memory.
    """

    batches: Sequence[Batch]
    sums: dict[tuple[object, ...], Accumulator] = field(default_factory=dict)


def compensate(
    model: ir.Model,
    plan: Plan,
    data: Iterable[Batch] | Remembered,
    *,
    method: str = "least_squares",
    propagate: bool = False,
) -> ir.Model:
    """Return the dense model with the readers of removed units fitted to those that stay.

    A weight that several products share is fitted to the inputs of all of them. Weights of
    convolutions in groups stay as they are.

    Args:
        model: the model that the plan was made for; it stays as it is.
        plan: whose removal is to be made up for.
        data: batches; read once, or once for every layer with ``propagate``, and as often as
            the sums of all layers do not fit into 1 GiB; or batches with sums that are known.
        method: a name in ``COMPENSATIONS``.
        propagate: gather the inputs of a layer behind the layers before it that were fitted, as
            OBSPA's second pass and Tyr do; else all are those of the dense model, as in FLAP.

    Raises:
        BadInputError: an unknown method, a plan that does not fit or that takes a norm over what
            is left, or data that cannot be used.
    """
    if plan.allow_inexact:
        raise BadInputError(
            "a removal under a norm is not made up for: every later input changes its scale",
            next_step="leave out compensate, or allow_inexact",
        )
    compensation = COMPENSATIONS[method]
    analysis = analyse(model, allow_outputs=plan.allow_outputs, allow_ids=plan.allow_ids)
    keep = resolve_plan(analysis, plan)
    weights = _weights(analysis, keep, compensation)
    if isinstance(data, Remembered):
        if not propagate:
            _fit_remembered(analysis.model, weights, data, compensation)
            return analysis.model
        data = data.batches
    steps = [[one] for one in weights] if propagate else _portions(weights)
    batches = list(data) if len(steps) > 1 else data
    for step in steps:
        pairs = [(place, one.sums) for one in step for place in one.places]
        behind = _silenced(analysis.model, weights) if propagate else analysis.model
        gather(behind, pairs, batches, How(patches=compensation.patches))
        for one in step:
            _fit(analysis.model, one, compensation)
            one.sums = compensation.begin()  # the products are larger than the weights
    return analysis.model


def _fit_remembered(
    model: ir.Model, weights: Sequence[_Weight], known: Remembered, compensation: Compensation
) -> None:
    """Fit with sums that are known, and gather those that are not."""
    kind = (compensation.begin, compensation.patches)
    missing = [one for one in weights if (*kind, *one.key) not in known.sums]
    pairs = [(place, one.sums) for one in missing for place in one.places]
    if pairs:
        gather(model, pairs, known.batches, How(patches=compensation.patches))
    known.sums.update({(*kind, *one.key): one.sums for one in missing})
    for one in weights:
        one.sums = known.sums[*kind, *one.key]
        _fit(model, one, compensation)


def _portions(weights: Sequence[_Weight]) -> list[list[_Weight]]:
    """Split the weights so that the products of one pass over the data fit into memory."""
    steps: list[list[_Weight]] = [[]]
    free = _PRODUCTS_BYTES
    for one in weights:
        needed = 8 * one.kept.size**2
        if steps[-1] and needed > free:
            steps.append([])
            free = _PRODUCTS_BYTES
        free -= needed
        steps[-1].append(one)
    return steps


def _weights(
    analysis: Analysis, keep: Mapping[Atom, NDArray[np.int64]], compensation: Compensation
) -> list[_Weight]:
    """What reads a cut axis, weight by weight in graph order."""
    found: dict[tuple[str, int, bytes], _Weight] = {}
    for place, kept in _cut_places(analysis, keep):
        key = (place.initialiser, place.weight_axis, kept.tobytes())
        found.setdefault(key, _Weight(kept, compensation.begin())).places.append(place)
    return list(found.values())


def _cut_places(
    analysis: Analysis, keep: Mapping[Atom, NDArray[np.int64]]
) -> Iterator[tuple[Place, Kept]]:
    for place in all_places(analysis):
        if not any(atom in keep for atom in leaves(place.expr)):
            continue
        if place.node.attributes.get_int("group", 1) != 1:
            continue
        n_columns = int(np.prod(place.kernel, dtype=np.int64))
        stays = np.zeros(len(indices(place.expr, {})), dtype=bool)
        stays[indices(place.expr, keep)] = True
        yield place, np.repeat(stays, n_columns)


def _fit(model: ir.Model, one: _Weight, compensation: Compensation) -> None:
    fitted = compensation(one.places[0].matrix(), one.kept, one.sums)
    write_weight(model, one.places, fitted.weight)
    if fitted.bias is not None:
        for place in one.places:
            add_bias(model, place, fitted.bias)


def _silenced(model: ir.Model, weights: Sequence[_Weight]) -> ir.Model:
    """The model as it will run: columns that go are 0 in every weight, fitted or not."""
    copy = model.clone()
    nodes = {node.name: node for node in copy.graph}
    for one in weights:
        there = [replace(place, node=nodes[place.node.name]) for place in one.places]
        write_weight(copy, there, np.where(one.kept, there[0].matrix(), 0.0))
    return copy


__all__ = ["Remembered", "compensate"]
