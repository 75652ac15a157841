"""Tyr's local pruner: remove input groups greedily by reconstruction error, then refit.

Source: Li et al., Tyr-the-Pruner: Structural Pruning LLMs via Global Sparsity Distribution
Optimization, NeurIPS 2025, arXiv:2503.09657, section 3; as in AMD-AGI/Tyr-the-Pruner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

_DAMPING = 0.01


@dataclass(frozen=True, slots=True)
class Normal:
    """Normal equations of one layer: the Gram matrix of its inputs, and its target."""

    gram: Array
    """(in, in), damped."""
    target: Array
    """(in, out): Gram matrix times the transposed weight."""
    weight: Array
    """(in, out), dead inputs zero."""


def normal_equations(weight: NDArray[Any], inputs: NDArray[Any]) -> Normal:
    """Set up the equations from (out, in) weights and (..., in) inputs."""
    rows = np.asarray(inputs, dtype=np.float64).reshape(-1, inputs.shape[-1])
    raw = rows.T @ rows
    transposed = np.asarray(weight, dtype=np.float64).T.copy()
    dead = np.diag(raw) == 0
    transposed[dead] = 0
    gram = raw + np.eye(len(raw)) * _DAMPING * np.diag(raw).mean()
    return Normal(gram, gram @ transposed, transposed)


def choose(normal: Normal, group: int, n_keep: int, *, rounds: int) -> NDArray[np.bool_]:
    """Return which groups of ``group`` consecutive inputs stay, (groups,) bool.

    Each round removes the groups whose loss, with all others free to compensate, is smallest.
    """
    n_groups = len(normal.gram) // group
    inverse = np.asarray(np.linalg.inv(normal.gram), dtype=np.float64)
    weight = normal.weight.copy()
    alive = np.ones(n_groups, dtype=bool)
    for count in _split(n_groups - n_keep, rounds):
        losses = np.full(n_groups, np.inf)
        for g in np.flatnonzero(alive).tolist():
            losses[g] = _loss(inverse, weight, normal.target, _positions(g, group))
        gone = np.argsort(losses, kind="stable")[:count]
        alive[gone] = False
        removed = np.concatenate([_positions(g, group) for g in sorted(gone.tolist())])
        solved = np.linalg.inv(inverse[np.ix_(removed, removed)])
        weight = weight - inverse[:, removed] @ solved @ weight[removed]
        inverse = inverse - inverse[:, removed] @ solved @ inverse[removed]
        weight[removed] = 0
    return alive


def refit(normal: Normal, kept: NDArray[np.bool_], group: int) -> Array:
    """Least-squares weight (out, in) on the kept groups, zero elsewhere."""
    positions = np.flatnonzero(np.repeat(kept, group))
    weight = np.zeros(normal.target.shape)
    if len(positions):
        gram = normal.gram[np.ix_(positions, positions)]
        weight[positions] = np.linalg.solve(gram, normal.target[positions])
    result: Array = weight.T
    return result


def _positions(group_index: int, group: int) -> NDArray[np.int64]:
    return np.arange(group_index * group, (group_index + 1) * group)


def _split(total: int, rounds: int) -> list[int]:
    """Spread ``total`` over rounds as evenly as possible, larger ones first."""
    rounds = min(rounds, total)
    return [total // rounds + (i < total % rounds) for i in range(rounds)] if total else []


def _loss(inverse: Array, weight: Array, target: Array, at: NDArray[np.int64]) -> float:
    """Reconstruction loss of removing inputs ``at``; the second term is not zero after a round."""
    block = np.linalg.inv(inverse[np.ix_(at, at)])
    return float((weight[at] * (block @ weight[at] / 2 + target[at])).sum())


__all__ = ["Normal", "choose", "normal_equations", "refit"]
