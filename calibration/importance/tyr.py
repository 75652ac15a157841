"""Tyr's local pruner: remove input groups greedily by reconstruction error, then refit.

Source: Li et al., Tyr-the-Pruner: Structural Pruning LLMs via Global Sparsity Distribution
Optimization, NeurIPS 2025, arXiv:2503.09657, section 3; as in AMD-AGI/Tyr-the-Pruner.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.gathered import readings
from secateur.calibration.importance.obd import gram
from secateur.calibration.statistics.gathering import BY_KERNEL
from secateur.calibration.statistics.normal import damped
from secateur.graph_passes.groups import Group

Array: TypeAlias = NDArray[np.float64]

_ROUNDS = 16
"""Published for neurons; heads go one at a time where there are fewer."""


@dataclass(frozen=True, slots=True)
class Normal:
    """Normal equations of one layer: the Gram matrix of its inputs, and its target."""

    gram: Array
    """(in, in), damped."""
    target: Array
    """(in, out): Gram matrix times the transposed weight."""
    weight: Array
    """(in, out), dead inputs zero."""


@CRITERIA.register("tyr")
def tyr(group: Group, context: Context) -> Scores:
    """How late a unit goes when the reading weight is pruned greedily by reconstruction error.

    The published local pruner chooses for one number of kept groups; the order in which it would
    remove all of them serves every ratio. Ties of a round are ordered by their loss.
    """
    total = np.zeros(group.size)
    for place, sums in readings(group, context, gram, BY_KERNEL):
        normal = normal_from_gram(place.matrix(), sums.products)
        total = total + removal_order(normal, place.owners(group.atom), group.size)
    return total


def normal_equations(weight: NDArray[Any], inputs: NDArray[Any]) -> Normal:
    """Set up the equations from (out, in) weights and (..., in) inputs."""
    rows = np.asarray(inputs, dtype=np.float64).reshape(-1, inputs.shape[-1])
    return normal_from_gram(weight, rows.T @ rows)


def normal_from_gram(weight: NDArray[Any], raw: Array) -> Normal:
    """Set up the equations from (out, in) weights and the products of their inputs."""
    transposed = np.asarray(weight, dtype=np.float64).T.copy()
    dead = np.diag(raw) == 0
    transposed[dead] = 0
    products = damped(raw)
    return Normal(products, products @ transposed, transposed)


def choose(normal: Normal, group: int, n_keep: int, *, rounds: int) -> NDArray[np.bool_]:
    """Return which groups of ``group`` consecutive inputs stay, (groups,) bool.

    Each round removes the groups whose loss, with all others free to compensate, is smallest.
    """
    n_groups = len(normal.gram) // group
    owners = np.repeat(np.arange(n_groups), group)
    alive = np.ones(n_groups, dtype=bool)
    for gone in _removals(normal, owners, _split(n_groups - n_keep, rounds)):
        alive[gone] = False
    return alive


def removal_order(normal: Normal, owners: NDArray[np.int64], n_units: int) -> Array:
    """Place of each unit in the order of removal, (units,): 0 goes first.

    Args:
        normal: equations of the weight that reads the units.
        owners: (in,) unit of each input, -1 for none.
        n_units: how many there are.
    """
    order = np.full(n_units, n_units - 1.0)
    place = 0
    for gone in _removals(normal, owners, _split(n_units - 1, max(_ROUNDS, 1))):
        order[gone] = np.arange(place, place + len(gone))
        place += len(gone)
    return order


def _removals(
    normal: Normal, owners: NDArray[np.int64], counts: Sequence[int]
) -> Iterator[NDArray[np.int64]]:
    """Yield the units that each round removes, weakest first."""
    inverse = np.asarray(np.linalg.inv(normal.gram), dtype=np.float64)
    weight = normal.weight.copy()
    positions = [np.flatnonzero(owners == unit) for unit in range(int(owners.max()) + 1)]
    alive = np.ones(len(positions), dtype=bool)
    for count in counts:
        losses = np.full(len(positions), np.inf)
        for unit in np.flatnonzero(alive).tolist():
            losses[unit] = _loss(inverse, weight, normal.target, positions[unit])
        gone = np.argsort(losses, kind="stable")[:count]
        yield gone
        alive[gone] = False
        removed = np.concatenate([positions[unit] for unit in sorted(gone.tolist())])
        solved = np.linalg.inv(inverse[np.ix_(removed, removed)])
        weight = weight - inverse[:, removed] @ solved @ weight[removed]
        inverse = inverse - inverse[:, removed] @ solved @ inverse[removed]
        weight[removed] = 0


def refit(normal: Normal, kept: NDArray[np.bool_], group: int) -> Array:
    """Least-squares weight (out, in) on the kept groups, zero elsewhere."""
    positions = np.flatnonzero(np.repeat(kept, group))
    weight = np.zeros(normal.target.shape)
    if len(positions):
        gram = normal.gram[np.ix_(positions, positions)]
        weight[positions] = np.linalg.solve(gram, normal.target[positions])
    result: Array = weight.T
    return result


def _split(total: int, rounds: int) -> list[int]:
    """Spread ``total`` over rounds as evenly as possible, larger ones first."""
    rounds = min(rounds, total)
    return [total // rounds + (i < total % rounds) for i in range(rounds)] if total else []


def _loss(inverse: Array, weight: Array, target: Array, at: NDArray[np.int64]) -> float:
    """Reconstruction loss of removing inputs ``at``; the second term is not zero after a round."""
    block = np.linalg.inv(inverse[np.ix_(at, at)])
    return float((weight[at] * (block @ weight[at] / 2 + target[at])).sum())


__all__ = [
    "Normal",
    "choose",
    "normal_equations",
    "normal_from_gram",
    "refit",
    "removal_order",
    "tyr",
]
