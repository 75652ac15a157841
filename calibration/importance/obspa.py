"""OBSPA: second-order scores of every coupled weight, summed over the group.

Source: Wang et al., Structurally Prune Anything, arXiv:2403.18955, section 3.3; scores as in the
structured SparseGPT of a co-author's code (johnrachwan123/Torch-Pruning at 777d5aa), its public
precursor. Without data the workflow hands in random inputs, which run through the whole network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.statistics.gathering import BY_KERNEL, gather
from secateur.calibration.statistics.gram import Gram
from secateur.calibration.statistics.normal import DAMPING, damped, upper_factor, without_dead
from secateur.calibration.statistics.places import Place, all_places
from secateur.calibration.units import sum_by_unit, sum_of_units
from secateur.errors import PreconditionError
from secateur.graph_passes.groups import Group, WeightUse

_KEY = "obspa"


@CRITERIA.register("obspa")
def obspa(group: Group, context: Context) -> Scores:
    """Sum over all coupled weights of w^2 over the squared factor of the inverse Hessian."""
    if _KEY not in context.gathered:
        context.gathered[_KEY] = _scores(context)
    places, scores = context.gathered[_KEY]
    rows = [
        _by_unit(scores[place.node], use, place, group) for use, place in _products(group, places)
    ]
    if not rows:
        raise PreconditionError("no product makes or reads these units", where=group.name)
    total: Scores = np.sum(rows, axis=0)
    return total


def weight_scores(weight: Scores, hessian: Scores, damping: float = DAMPING) -> Scores:
    """(out, in) scores: w^2 / U_jj^2, U the upper factor of the damped inverse Hessian."""
    hessian, weight = without_dead(hessian, weight)
    factor = np.diag(upper_factor(damped(hessian, damping)))
    return np.square(weight) / np.square(factor)


_Places = Mapping[ir.Node, Place]


def _scores(context: Context) -> tuple[_Places, dict[ir.Node, Scores]]:
    """Scores of every product that a ranked group takes part in; one pass over the data."""
    known = {place.node: place for place in all_places(context.analysis)}
    products = (pair for group in context.groups for pair in _products(group, known))
    places = {place.node: place for _, place in products}
    shared: dict[str, Gram] = {}
    pairs = []
    for place in places.values():
        if _input(place) not in shared:
            shared[_input(place)] = Gram()
            pairs.append((place, shared[_input(place)]))
    gather(context.analysis.model, pairs, context.data, BY_KERNEL)
    scores = {
        node: weight_scores(place.matrix(), shared[_input(place)].hessian)
        for node, place in places.items()
    }
    return places, scores


def _input(place: Place) -> str:
    """What makes the rows: places of one activation share their Hessian."""
    return f"{place.value} {place.axis} {place.node.name if place.kernel else ''}"


def _products(group: Group, places: _Places) -> Iterator[tuple[WeightUse, Place]]:
    """Yield the uses of matrices and kernels that make or read the units of a group."""
    for use in group.weights:
        place = places.get(use.node)
        is_matrix = len(use.shape) == 2 or (place is not None and place.kernel)
        if place is None or place.weight_slot != use.slot or not is_matrix:
            continue
        if use.node.attributes.get_int("group", 1) == 1:
            yield use, place


def _by_unit(scores: Scores, use: WeightUse, place: Place, group: Group) -> Scores:
    """Sum (out, in) scores over the slices of each unit, rows or columns."""
    if use.axis == place.weight_axis:
        return sum_by_unit(scores.sum(axis=0), place.owners(group.atom), group.size)
    return sum_of_units(scores.sum(axis=1), use.expr, group.atom)


__all__ = ["obspa", "weight_scores"]
